"""Small pictures and volumes, written on the spot; by default of random values that depend on the name alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

SHAPE = (5, 7, 4)


def random(shape: tuple[int, ...], name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 256, shape)


def picture(path: Path, array: np.ndarray | None = None, shape: tuple[int, ...] = (20, 30, 3), seed: str = "") -> Path:
    """Write a picture in the format of its suffix; ``seed`` stands for the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = random(shape, seed or path.name) if array is None else array
    Image.fromarray(array if array.dtype in (bool, np.uint16, np.float32) else array.astype(np.uint8)).save(path)
    return path


def oblique(flips: tuple[int, int, int] = (1, 1, 1), order: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    """Return an affine with spacings 0.8, 1.1, 2.5 mm, axes in ``order`` and turned by 10 and 15 degrees."""
    a, b = np.deg2rad(10), np.deg2rad(15)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = (turn * np.array(flips))[:, list(order)] * np.array([0.8, 1.1, 2.5])
    affine[:3, 3] = [-31.5, 12.25, 7.75]
    return affine


def write_nifti(
    path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, slope: float | None = None,
    intercept: float = 0.0,
) -> Path:  # fmt: skip
    """Write a NIfTI file; by default every voxel differs, so that a swapped or flipped axis shows.

    With ``slope`` the array is what is stored, before slope and intercept.
    """
    if array is None:
        array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = nib.Nifti1Image(array, oblique() if affine is None else affine)
    image.header.set_data_dtype(array.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if slope is None:
        nib.save(image, path)
        return path
    image.header.set_slope_inter(slope, intercept)
    # Stored values as they are: nibabel would divide by the slope.
    raw = image.header.structarr
    raw["vox_offset"], raw["scl_slope"], raw["scl_inter"], raw["magic"] = 352, slope, intercept, b"n+1"
    path.write_bytes(raw.tobytes() + b"\0" * 4 + array.tobytes(order="F"))
    return path


def boxes(folder: Path, rows: int, intensities: Sequence[int], noise: int, affine: np.ndarray, training: int) -> Path:
    """Write volumes of different sizes with a box of class 1 in one corner and one of class 2 in the other.

    Args:
        folder: receives them and their ``dataset.json``.
        rows: voxels along the second axis.
        intensities: of the background and the two classes, plus or minus up to ``noise``.
        noise: see there.
        affine: of all of them.
        training: how many are for training; two more are for test.
    """
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number in range(training + 2):
        label = np.zeros((22 + number, rows, 19), np.uint8)
        label[2:11, 1:5, 3 : 10 + number] = 1
        label[14:20, 6:10, 12:17] = 2
        image = np.choose(label, intensities) + np.random.default_rng(number).integers(-noise, noise, label.shape)
        write_nifti(folder / f"{number}.nii.gz", image.astype(np.int16), affine)
        write_nifti(folder / f"{number}_label.nii.gz", label, affine)
        entry = {"image": f"{number}.nii.gz", "label": f"{number}_label.nii.gz"}
        sections["training" if number < training else "test"].append(entry)
    content = {"name": "boxes", "labels": {"background": 0, "bright": 1, "faint": 2}, **sections}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
