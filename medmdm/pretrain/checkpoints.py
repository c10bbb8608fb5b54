"""Checkpoints that survive being killed while they are written, and the random state in them."""

from __future__ import annotations

import logging
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmdm.errors import UserError, refuse_full_disk
from medmdm.files import is_main_process, save_torch, sweep_temporaries
from medmdm.intact import DamagedFileError, load_torch

logger = logging.getLogger(__name__)


def _intern_keys(content: Any) -> None:
    """Make equal keys one object, as in a run that was never cut: pickle writes each object once."""
    if isinstance(content, dict):
        items = [(sys.intern(key) if type(key) is str else key, value) for key, value in content.items()]
        content.clear()
        content.update(items)
    if isinstance(content, (dict, list, tuple)):
        for value in content.values() if isinstance(content, dict) else content:
            _intern_keys(value)


@dataclass(frozen=True)
class Checkpoints:
    """The newest checkpoints of a run, ``step_00000300.pt`` and so on.

    Args:
        folder: where they lie.
        every: steps between two checkpoints, at least 1.
        keep: how many of the newest are kept, at least 1. With 2 or more, a damaged newest one costs only an interval.
    """

    folder: str | Path
    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            found = f"{self.every} and {self.keep}"
            raise UserError(f"checkpoint interval and number kept must be at least 1, got {found}.")

    def paths(self) -> list[Path]:
        """Return the checkpoints that are there, oldest first."""
        return sorted(p for p in Path(self.folder).glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name))

    def save(self, step: int, content: dict[str, Any]) -> Path:
        """Write the checkpoint of ``step`` atomically, then delete the oldest beyond ``keep``."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder)
        path = folder / f"step_{step:08d}.pt"
        save_torch(content, path)
        self._drop_oldest()
        return path

    def _drop_oldest(self) -> None:
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def load_newest(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Return the newest intact checkpoint, or None where none was ever written.

        A damaged one is put aside as ``.damaged``, with a warning. Older ones than are kept go: a run that was killed
        while it saved leaves one.

        Raises:
            UserError: all of them are damaged, or one cannot be read for another reason, such as memory or permission.
        """
        for path in reversed(self.paths()):
            try:
                content = load_torch(path, device)
            except FileNotFoundError:  # the main process has just put it aside
                continue
            except DamagedFileError as error:
                if is_main_process():
                    logger.warning("%s is damaged and is skipped (%s)", path, error)
                    with refuse_full_disk(self.folder):
                        path.rename(path.with_suffix(".damaged"))
                continue
            if not isinstance(content, dict) or "step" not in content:
                raise UserError(f"{path} is no checkpoint of a run: move it away.")
            _intern_keys(content)
            if is_main_process():
                self._drop_oldest()
            return content
        if aside := sorted(Path(self.folder).glob("step_*.damaged")):
            again = f"To begin again at step 0, choose another run_dir or delete {Path(self.folder).parent}"
            raise UserError(f"no checkpoint in {self.folder} is whole (damaged: {aside[-1].name}). {again}.")
        return None


def mix(*numbers: int) -> int:
    """Return one 32-bit seed that depends on all ``numbers``."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def get_random_state() -> dict[str, Any]:
    """Return the state of every global generator, in a form that ``torch.load(weights_only=True)`` reads."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`get_random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
