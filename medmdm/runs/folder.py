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
from medmdm.artifacts.pretrained import save_weights
from medmdm.errors import UserError, when_interrupted
from medmdm.files import claim, file_hash, is_main_process, sweep_temporaries, world_size
from medmdm.intact import DamagedFileError, load_record, load_torch, save_record
from medmdm.runs.keys import differing_keys
from medmdm.runs.log import keep_log
from medmdm.schemas import may_change

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scikit-image", "nibabel", "SimpleITK", "pandas", "pillow")

#: Files of a run folder that hold what was learnt.
WEIGHTS = ("model.pt", "segmenter.pt")


@dataclass
class RunFolder:
    """``runs/<name>/``: ``run.json``, ``model.pt`` and what the handlers write.

    Args:
        path: the folder.
        config: the merged config of the run (JSON-able).
        plan: what a later step needs to know of the weights, see :func:`medmdm.artifacts.pretrained.make_plan`.
        data: what is known of the images, no patient ids; its ``"hash"``, if any, must stay the same.
        seed: the run's seed.
    """

    path: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    seed: int
    record: dict[str, Any] = field(default_factory=dict, init=False)
    _saved: int | None = field(default=None, init=False, repr=False)  # steps of model.pt, once looked at

    def __post_init__(self) -> None:
        self.path = Path(self.path)

    @property
    def model_path(self) -> Path:
        """The weights file."""
        return self.path / "model.pt"

    @property
    def _key(self) -> str:
        """The setting that names the folder."""
        return "run_dir" if "run_dir" in self.config else "output_dir"

    def open(self) -> None:
        """Make the folder, or check that it is this run's; note that a session begins.

        Raises:
            UserError: if the folder belongs to another configuration or to something else, or another process writes
                to it.
        """
        record_path = self.path / "run.json"
        if record_path.exists():
            self.record = _read(record_path, has_hash="hash" in self.data)
            # What the schema lets change: where things lie, how fast they go and which maps are written, not what is
            # learnt. The training images are compared by the hash of their pixels instead of by their path.
            earlier, known = self.record["config"], self.record["data"]  # of an older version: without the order
            differing = differing_keys(earlier, self.config, may_change(self.config["bundle"]))
            if "bundle" in differing:  # then nearly everything differs
                differing = [f"the bundle, {earlier.get('bundle')}"]
            if any(known.get(key, self.data.get(key)) != self.data.get(key) for key in ("hash", "arrangement")):
                differing.append("the images or their split, names, order or labels")
            if differing:
                other = f"a run of another configuration (it differs in {', '.join(differing)})"
                raise UserError(f"{self.path} holds {other}: choose another {self._key}, or delete that folder.")
        elif self.model_path.exists() or (self.path / "checkpoints").exists():
            raise UserError(f"{self.path} holds weights but no run.json: choose another {self._key}.")
        elif not (self.path / "segmenter.pt").exists() and (  # that file says itself what it was fitted to
            any((self.path / "predictions").glob("[!.]*")) or (self.path / "boxes.csv").exists()
        ):
            unknown = "masks, but no run.json that says what they were made with"
            raise UserError(f"{self.path} holds {unknown}: choose another {self._key}, or move them away.")
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
        save_record(self.record, record_path)

    def finish(self, steps: int) -> None:
        """Note in ``run.json`` that the session has reached the last step, and the SHA-256 of its weights files."""
        session = self.record["sessions"][-1]
        session |= {"ended": _now(), "steps": steps}
        started, ended = (datetime.datetime.fromisoformat(session[key]) for key in ("started", "ended"))
        session["wall_seconds"] = (ended - started).total_seconds()
        self.record["weights"] = {p.name: file_hash(p) for p in map(self.path.joinpath, WEIGHTS) if p.is_file()}
        save_record(self.record, self.path / "run.json")

    def save_model(self, weights: dict[str, Tensor], steps: int) -> None:
        """Write ``model.pt``: the same weights and plan always give the same bytes.

        One of more steps stays as it is: a run that goes on from an older checkpoint comes to them again.
        """
        if self._saved is None:
            self._saved = self.saved_steps() or 0
        if self._saved > steps:
            return
        plan = json.loads(json.dumps({**self.plan, "steps": steps}, allow_nan=False))
        save_weights(weights, plan, self.model_path)
        self._saved = steps

    def saved_steps(self) -> int | None:
        """Return the number of steps of the weights in ``model.pt``, or None without an intact one.

        Raises:
            UserError: it cannot be read for another reason.
        """
        try:
            steps = load_torch(self.model_path, "meta")["plan"]["steps"]
        except (FileNotFoundError, DamagedFileError, KeyError, TypeError):  # it is written again
            return None
        return steps if isinstance(steps, int) else None


def _read(path: Path, has_hash: bool) -> dict[str, Any]:
    """Return the record of a run, as far as it is looked into here."""
    record = load_record(path)
    kinds = {"config": dict, "data": dict, "sessions": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    if wrong or (has_hash and "hash" not in record["data"]):
        raise UserError(
            f"{path} has no {(wrong or ['data#hash'])[0]!r}: it is no record of a run; choose another run_dir."
        )
    return record


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
