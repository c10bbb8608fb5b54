"""The folder of a run: its record, and the weights file that leaves it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import medmdm
from medmdm.errors import UserError, when_interrupted
from medmdm.files import claim, is_main_process, save_json, save_torch, sweep_temporaries, world_size
from medmdm.runs.config import differing_keys
from medmdm.runs.log import keep_log
from medmdm.schemas import may_change

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scikit-image", "nibabel", "SimpleITK", "pandas", "pillow")


@dataclass
class RunFolder:
    """``runs/<name>/``: ``run.json``, ``model.pt`` and what the handlers write.

    Args:
        path: the folder.
        config: the merged config of the run (JSON-able).
        plan: what a later step needs to know of the weights, see :func:`medmdm.artifacts.pretrained.make_plan`.
        data: what is known of the training images: at least ``{"hash": ..., "images": ...}``; no patient ids.
        seed: the run's seed.
    """

    path: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    seed: int
    record: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)

    @property
    def model_path(self) -> Path:
        """The weights file."""
        return self.path / "model.pt"

    def open(self) -> None:
        """Make the folder, or check that it is this run's; note that a session begins.

        Raises:
            UserError: if the folder belongs to another configuration or to something else, or another process writes
                to it.
        """
        record_path = self.path / "run.json"
        if record_path.exists():
            self.record = json.loads(record_path.read_text())
            # What the schema lets change: where things lie, how fast they go and which maps are written, not what is
            # learnt. The training images are compared by the hash of their pixels instead of by their path.
            differing = differing_keys(self.record["config"], self.config, may_change(self.config["bundle"]))
            if self.record["data"]["hash"] != self.data["hash"]:
                differing.append("the images or their split")
            if differing:
                other = f"a run of another configuration (it differs in {', '.join(differing)})"
                raise UserError(f"{self.path} holds {other}: choose another run_dir, or delete that folder.")
        elif self.model_path.exists() or (self.path / "checkpoints").exists():
            raise UserError(f"{self.path} holds weights but no run.json: choose another run_dir.")
        else:
            self.record = {
                "medmdm": medmdm.__version__,
                "git_revision": _git_revision(),
                "seed": self.seed,
                "data": self.data,
                "config": self.config,
                "sessions": [],
            }
        if not is_main_process():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            claim(self.path)
        except OSError as error:
            raise UserError(f"The run folder {self.path} cannot be made ({error.strerror}).") from error
        sweep_temporaries(self.path)
        keep_log(self.path)
        when_interrupted(f"{self.path} keeps what is finished; the same command goes on from there.")
        hardware = {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "processes": world_size(),
        }
        session = {"started": _now(), "versions": _versions(), "hardware": hardware, "ended": None, "steps": None}
        self.record["sessions"].append(session)
        save_json(self.record, record_path)

    def finish(self, steps: int) -> None:
        """Note in ``run.json`` that the session has reached the last step."""
        session = self.record["sessions"][-1]
        session |= {"ended": _now(), "steps": steps}
        started, ended = (datetime.datetime.fromisoformat(session[key]) for key in ("started", "ended"))
        session["wall_seconds"] = (ended - started).total_seconds()
        save_json(self.record, self.path / "run.json")

    def save_model(self, weights: dict[str, Tensor], steps: int) -> None:
        """Write ``model.pt``: the same weights and plan always give the same bytes."""
        plan = json.loads(json.dumps({**self.plan, "steps": steps}, allow_nan=False))
        # Plain contiguous CPU tensors: the file does not depend on the device or the memory layout of training.
        model = {name: w.detach().cpu().contiguous().clone() for name, w in weights.items()}
        save_torch({"model": model, "plan": plan}, self.model_path)

    def saved_steps(self) -> int | None:
        """Return the number of steps of the weights in ``model.pt``, or None without an intact one."""
        try:
            return torch.load(self.model_path, weights_only=True, mmap=True)["plan"]["steps"]
        except Exception:  # missing or damaged: it is written again
            return None


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git_revision() -> str | None:
    """Return the revision of the checkout that medmdm is imported from, ``+`` if it has changes; None if installed."""
    here = Path(medmdm.__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        revision, changes = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changes else "")
