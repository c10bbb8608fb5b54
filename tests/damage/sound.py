"""Sound input, to be damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.written import picture, random, write_nifti


def volume(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI volume; default: 20×22×24 random values of its own."""
    array = random((20, 22, 24), path.name).astype(np.int16) if array is None else array
    return write_nifti(path, array, np.eye(4) if affine is None else affine)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """Cut a file off."""
    content = path.read_bytes()
    return written(path, content[: int(len(content) * share)])


def data_list(folder: Path, training: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
    """Write a data list; default: two sound pictures with labels for training and one for the test."""
    if training is None:
        for name in ("a", "b", "c"):
            picture(folder / f"{name}.png")
            picture(folder / f"{name}_mask.png", np.eye(20, 30))
        entries = [{"image": f"{name}.png", "label": f"{name}_mask.png"} for name in ("a", "b", "c")]
        training, keys = entries[:2], {"test": entries[2:], **keys}
    content = {"labels": {"background": 0, "object": 1}, "training": training, **keys}
    return written(folder / "dataset.json", json.dumps(content).encode())
