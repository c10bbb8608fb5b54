"""Sound input, to be damaged."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

__all__ = ["cut", "data_list", "picture", "random", "volume"]


def random(shape: tuple[int, ...], name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 256, shape)


def picture(path: Path, array: np.ndarray | None = None) -> Path:
    """Write a picture in the format of its suffix; default: 24×32 random colours of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = random((24, 32, 3), path.name) if array is None else array
    Image.fromarray(array if array.dtype in (np.uint16, np.float32) else array.astype(np.uint8)).save(path)
    return path


def volume(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI volume; default: 20×22×24 random values of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = random((20, 22, 24), path.name).astype(np.int16) if array is None else array
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """Cut a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def data_list(folder: Path, training: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
    """Write a data list; default: two sound pictures with labels for training and one for the test."""
    if training is None:
        for name in ("a", "b", "c"):
            picture(folder / f"{name}.png")
            picture(folder / f"{name}_mask.png", np.eye(24, 32))
        entries = [{"image": f"{name}.png", "label": f"{name}_mask.png"} for name in ("a", "b", "c")]
        training, keys = entries[:2], {"test": entries[2:], **keys}
    path = folder / "dataset.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"labels": {"background": 0, "object": 1}, "training": training, **keys}))
    return path
