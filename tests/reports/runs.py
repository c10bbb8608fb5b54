"""Run folders as an evaluation leaves them, made of a few small shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmdm.data.writers import encode_picture
from medmdm.files import atomic_write

SHAPE = (40, 56)
VOLUME = (20, 16, 12)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -20], [0, -1.5, 0, 10], [0, 0, 0, 1]])  # axes swapped and flipped


def discs(rng: np.random.Generator, shape: tuple[int, ...] = SHAPE, number: int = 3) -> NDArray[np.uint8]:
    """Objects numbered with gaps: 1, 3, 5, ..."""
    grid = np.indices(shape)
    label = np.zeros(shape, np.uint8)
    for i in range(number):
        centre = [rng.integers(6, size - 6) for size in shape]
        radius = rng.uniform(3, 7)
        inside = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2
        label[inside] = 2 * i + 1
    return label


def picture_run(root: Path, cases: int = 9, name: str = "run", seed: int = 0, shift: int = 2) -> Path:
    """An evaluation of RGB pictures whose labels number objects, with patients, grades and uncertainty.

    Case k is predicted the better the larger k is: the truth, rolled by fewer and fewer pixels.
    """
    data, run = root / "data", root / name
    rng = np.random.default_rng(1)  # of the data, which all runs share
    entries = []
    for k in range(cases):
        label = discs(rng)
        image = rng.integers(0, 255, (3, *SHAPE)).astype(np.uint8)
        moved = np.roll(label, max(cases - 1 - k, 0) * shift // 2 + seed, axis=1)
        own = {"patient_id": f"SECRET-{k // 2}", "spacing": [0.0005, 0.0005]}
        grade = "benign" if k % 2 else "malignant"
        files = {"instances": f"instances/case_{k}.png", "uncertainty": f"uncertainty/case_{k}.tif"}
        entries.append(entry(f"case_{k}", ".png", columns={"grade": grade, "slide": f"s{k}"}, **own, **files))
        picture(data / f"case_{k}.png", image)
        picture(data / f"case_{k}_label.png", label)
        picture(run / "masks" / f"case_{k}.png", (moved > 0).astype(np.uint8))
        picture(run / files["instances"], moved)
        picture(run / files["uncertainty"], np.full(SHAPE, (cases - k) / cases, np.float32))
    (run / "run.json").write_text(json.dumps({"medmdm": "0.1.0", "seed": 7, "data": {"hash": "ab12"}, "sessions": []}))
    write_evaluation(
        run,
        entries,
        data,
        num_classes=2,
        class_names=["background", "gland"],
        data_list={"name": "made", "licence": "none", "label_type": "instances"},
        stamp={"kind": "patients shared", "overlapping": ["case_1"], "sentence": "One patient of SECRET-0 was seen."},
        protocol={"head": "ridge", "shots": 8, "training_patients": ["3", "SECRET-1"]},
    )
    return run


def volume_run(root: Path, cases: int = 3, name: str = "run") -> Path:
    """An evaluation of volumes with three classes and an oblique order of axes; some pixels are ignored."""
    data, run = root / "data", root / name
    rng = np.random.default_rng(2)
    entries = []
    for k in range(cases):
        label = np.zeros(VOLUME, np.uint8)
        label[4:12, 3:12, 3:9] = 1
        label[8:12, 3:12, 3:9] = 2
        label[0, 0] = 255
        predicted = np.where(label == 255, 0, np.roll(label, k, axis=0) % 255).astype(np.uint8)
        nifti(data / f"vol_{k}.nii.gz", rng.normal(100, 20, VOLUME).astype(np.float32))
        nifti(data / f"vol_{k}_label.nii.gz", label.astype(np.float32))
        nifti(run / "masks" / f"vol_{k}.nii.gz", predicted)
        nifti(run / "surprise" / f"vol_{k}.nii.gz", rng.random(VOLUME).astype(np.float32))
        entries.append(entry(f"vol_{k}", ".nii.gz", surprise=f"surprise/vol_{k}.nii.gz"))
    write_evaluation(run, entries, data, num_classes=3, class_names=["background", "head", "body"])
    return run


def entry(name: str, suffix: str, **content: Any) -> dict[str, Any]:
    """What evaluation.json says of a case."""
    files = {"image": name + suffix, "label": f"{name}_label{suffix}", "prediction": f"masks/{name}{suffix}"}
    unknown = {"spacing": None, "columns": {}, "instances": None, "uncertainty": None, "surprise": None}
    return {"case": name, **files, **unknown, **content}


def write_evaluation(run: Path, cases: list[dict[str, Any]], data: Path, **content: Any) -> None:
    """Write evaluation.json with what every evaluation has."""
    record = {"format": 1, "dataset": "made", "dataset_dir": str(data), "section": "test", "record": "run.json"}
    record |= {"data_list": {"name": "made"}, "ignore": 255, "stamp": None, "protocol": {}, "study": None}
    atomic_write(run / "evaluation.json", json.dumps(record | {"cases": cases} | content))


def change(run: Path, **content: Any) -> None:
    """Change keys of evaluation.json."""
    path = run / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))


def change_case(run: Path, number: int, **content: Any) -> None:
    """Change keys of one case of evaluation.json; ``None`` stays as null."""
    cases = cases_of(run)
    cases[number] |= content
    change(run, cases=cases)


def cases_of(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "evaluation.json").read_text())["cases"])


def picture(path: Path, array: np.ndarray) -> None:
    atomic_write(path, encode_picture(array, path.suffix))


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def study(path: Path, cases: list[str]) -> Path:
    """A study of two backbones: 1, 4 and 16 labelled images, three draws, two seeds."""
    rng = np.random.default_rng(3)
    rows = []
    backbones = (("mdm", 0.7), ("random", 0.5))
    for (backbone, base), shots, draw, seed, case in product(backbones, (1, 4, 16), range(3), range(2), cases):
        dice = base + 0.01 * shots + 0.02 * draw + 0.005 * seed + rng.normal(0, 0.02)
        rows.append([backbone, "ridge", shots, draw, seed, case, dice, dice / (2 - dice)])
    titles = ["backbone", "head", "shots", "draw", "seed", "case", "dice", "iou"]
    pd.DataFrame(rows, columns=titles).to_csv(path, index=False)
    return path


def plain_dice(pred: np.ndarray, true: np.ndarray) -> float:
    """Dice written out, as an oracle."""
    return 2 * float((pred & true).sum()) / float(pred.sum() + true.sum())


def columns(path: Path) -> list[Mapping[str, str]]:
    """The rows of a CSV."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
