import json
import re
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.volumes import read_volume, volume_hash
from tests.bundle_runs import Workflow, saved_by
from tests.data.dicom_files import write_series
from tests.made import refused_in_config
from tests.written import picture, write_nifti


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Write six volumes of smooth noise with two sequences, and labels."""
    rng = np.random.default_rng(0)
    for i in range(6):
        for sequence in ("t1", "t2"):
            values = np.kron(rng.normal(0, 300, (6, 8, 3)), np.ones((4, 4, 4))).astype(np.int16)
            write_nifti(tmp_path / "set" / sequence / f"case{i}.nii.gz", values, np.diag([1.0, 1.0, 2.0, 1.0]))
        write_nifti(tmp_path / "set" / "labels" / f"case{i}.nii.gz", (values > 0).astype(np.uint8))
    return tmp_path / "set"


def run(workflow: Workflow, tmp_path: Path, *overlays: str, **overrides: object) -> dict:
    settings = {"max_steps": 2, "preview_crops": 2, "slice_cache": str(tmp_path / "cache"), **overrides}
    saved = saved_by(workflow(*overlays, **settings))
    assert list((tmp_path / "run" / "previews").glob("step_*.png"))
    return saved["plan"]


def test_mr_overlay(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    plan = run(workflow, tmp_path, "mr_slices", dataset_dir=str(volumes / "t1"), slice_axis="coronal")
    assert plan["channels"] == 1
    assert plan["percentiles"] == {"lower": 0.5, "upper": 99.5, "nonzero": False}
    assert plan["slice_axis"] == "coronal"
    assert plan["intensity_range"] is None
    hashes = {volume_hash(read_volume(path)) for path in (volumes / "t1").iterdir()}
    assert len(plan["ledger"]["images"]) == 5  # one volume is held out
    assert set(plan["ledger"]["images"]) < hashes


def test_ct_overlay_on_dicom_at_another_spacing(workflow: Workflow, tmp_path: Path) -> None:
    values = np.kron(np.random.default_rng(0).normal(0, 200, (6, 8, 8)), np.ones((1, 4, 4))).astype(np.int16)
    folder = write_series(tmp_path / "ct" / "a", values)
    plan = run(workflow, tmp_path, "ct_slices", dataset_dir=str(folder.parent), window="liver", spacing=1.2)
    assert plan["intensity_range"] == [-20.0, 140.0]
    assert plan["spacing"] == [1.2, 1.2]


def test_sequences_and_neighbours_are_channels(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    entries = [
        {"image": [f"t1/{i}.nii.gz", f"t2/{i}.nii.gz"], "label": f"labels/{i}.nii.gz", "patient_id": f"p{i[-1]}"}
        for i in (f"case{n}" for n in range(6))
    ]
    content = {"name": "two", "training": entries[:4], "validation": entries[4:5], "test": entries[5:]}
    (volumes / "dataset.json").write_text(json.dumps(content))
    plan = run(workflow, tmp_path, "mr_slices", dataset_dir=str(volumes), context_slices=1, channels=6)
    assert plan["channels"] == 6
    assert plan["context_slices"] == 1
    assert len(plan["ledger"]["images"]) == 4
    assert len(plan["ledger"]["patients"]) == 4
    assert not any(f"p{i}" in (tmp_path / "run" / "run.json").read_text().split('"') for i in range(6))


def test_sets_of_two_magnifications(workflow: Workflow, tmp_path: Path) -> None:
    picture(tmp_path / "fine.png", shape=(120, 120, 3))
    picture(tmp_path / "coarse.png", shape=(60, 60, 3))
    entries = [{"image": "fine.png", "magnification": 40}, {"image": "coarse.png", "spacing": 0.0005}]
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "mixed", "training": entries}))
    plan = run(workflow, tmp_path, dataset_dir=str(tmp_path), magnification=20)
    assert plan["spacing"] == [0.0005, 0.0005]
    assert plan["percentiles"] is None


def test_what_is_missing_is_said(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    for overrides, sentence in (
        ({"channels": 1}, "set window (CT) or percentiles (MR)"),
        ({"channels": 1, "window": "lungs"}, "did you mean 'lung'"),
        ({"channels": 1, "percentiles": [0, 100], "window": "lung"}, "keep one"),
        ({"channels": 3, "percentiles": [0, 100]}, "pass --channels 1"),
    ):
        made = workflow(dataset_dir=str(volumes / "t1"), slice_cache=str(tmp_path / "cache"), **overrides)
        refused_in_config(re.escape(sentence), saved_by, made)
