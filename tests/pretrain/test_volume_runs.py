import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medmdm.data.files.volumes import read_volume, volume_hash
from tests.bundle_runs import TINY, Workflow, bundle_command, run_python, saved_by
from tests.data.dicom_files import write_series
from tests.made import refused_in_config
from tests.pretrain.test_survival import KILLED_RUN, assert_same_run
from tests.written import picture, write_nifti

#: What makes the tiny run one of whole volumes: crops of 12 x 16 x 8 voxels.
WHOLE = {
    "crop_size": [12, 16, 8], "network_def": {**TINY["network_def"], "spatial_dims": 3},
}  # fmt: skip


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


def as_axial(path: Path) -> np.ndarray:
    """Read a volume with voxels along R, A, S as nibabel turns it: slices to the head, rows to the back and left."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]


def test_crops_of_whole_volumes_are_their_voxels(workflow: Workflow, tmp_path: Path) -> None:
    affine = np.array([[0, 0, -2.5, 0], [0.8, 0, 0, 0], [0, -1.1, 0, 0], [0, 0, 0, 1.0]])  # A, I, L
    for number in range(6):
        values = np.random.default_rng(number).permutation(24 * 26 * 20).reshape(24, 26, 20).astype(np.int16)
        write_nifti(tmp_path / "set" / f"{number}.nii.gz", values, affine)
    settings = {
        "dataset_dir": str(tmp_path / "set"), "slice_cache": str(tmp_path / "cache"), "min_foreground": "null",
        "percentiles": [5, 95],
    }  # fmt: skip
    made = workflow("volumes", **WHOLE, **settings)
    made.initialize()
    dataset = made.parser.get_parsed_content("train#dataset")
    volumes = {str(path): as_axial(path) for path in (tmp_path / "set").glob("*.nii.gz")}
    flipped = []
    for k in range(8):
        crop = dataset[k]["image"]
        assert crop.shape == (1, 12, 16, 8)
        assert torch.equal(crop, dataset[k]["image"])
        found = 0
        for volume in volumes.values():
            low, high = np.percentile(volume, [5, 95])
            scaled = ((volume - low) / (high - low) * 2 - 1).clip(-1, 1).astype(np.float32)
            for mirrored in (False, True):
                own = crop[0].numpy()[..., ::-1] if mirrored else crop[0].numpy()
                for start in np.argwhere(np.isclose(scaled, own[0, 0, 0], atol=1e-6)):
                    part = scaled[tuple(slice(a, a + n) for a, n in zip(start, own.shape, strict=True))]
                    if part.shape == own.shape and np.allclose(part, own, atol=1e-6):
                        found += 1
                        flipped.append(mirrored)
        assert found == 1
    assert set(flipped) == {False, True}  # left and right alone


def test_volumes_overlay(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    plan = run(workflow, tmp_path, "volumes", dataset_dir=str(volumes / "t1"), spacing=1.5, **WHOLE)
    assert (plan["channels"], plan["crop_size"], plan["slice_axis"]) == (1, [12, 16, 8], "none")
    assert plan["spacing"] == [1.5, 1.5, 1.5]
    assert plan["corruption"]["_target_"] == "medmdm.corruption.TubeMasking"
    hashes = {volume_hash(read_volume(path)) for path in (volumes / "t1").iterdir()}
    assert len(plan["ledger"]["images"]) == 5  # one volume is held out
    assert set(plan["ledger"]["images"]) < hashes
    first = Image.open(tmp_path / "run" / "previews" / "step_00000000.png")
    assert first.size[0] > first.size[1] > 16


def test_empty_ends_and_strips_of_few_whole_volumes_are_left_out(workflow: Workflow, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(100, 900, (18, 20, 30)).astype(np.int16)
    values[..., :2] = 0  # two empty slices at the feet, one at the head, one between
    values[..., [-1, 15]] = 0
    path = write_nifti(tmp_path / "set" / "one.nii.gz", values, np.diag([-1.0, -1.0, 1.0, 1.0]))
    settings = {
        "dataset_dir": str(path.parent), "slice_cache": str(tmp_path / "cache"), "crop_size": [12, 8, 8],
        "network_def": WHOLE["network_def"],
    }  # fmt: skip
    made = workflow("volumes", **settings)
    made.initialize()
    held_out = made.parser.get_parsed_content("held_out")
    (entry,), strips = held_out.training, [crop["region"] for crop in held_out.crops]
    assert entry["case_region"] == {"slices": [2, 29]}
    assert entry["region"] == {"slices": [2, 29], "rows": [0, 20], "columns": [0, 10]}
    assert all(strip["columns"] == [10, 18] and 2 <= strip["slices"][0] < strip["slices"][1] <= 29 for strip in strips)
    dataset = made.parser.get_parsed_content("train#dataset")
    kept = as_axial(path)[2:29, :, :10]
    assert np.array_equal(dataset._cache[0]["image"][0], kept)
    assert dataset.ledger == [volume_hash(read_volume(path))]


@pytest.mark.slow  # starts programs
def test_a_killed_run_of_whole_volumes_goes_on_to_the_same_bits(tmp_path: Path, volumes: Path) -> None:
    common = {"slice_cache": str(tmp_path / "cache"), "spacing": [2.0, 1.0, 1.0], **WHOLE}
    for name, moments in (("whole", []), ("killed", ["step:5"])):
        command = bundle_command(tmp_path / name, volumes / "t1", "volumes", **common)
        for moment in moments:
            run_python(KILLED_RUN, moment, *command, cwd=tmp_path, code=-signal.SIGKILL)
        run_python("-m", "monai.bundle", *command, cwd=tmp_path)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_what_does_not_go_with_whole_volumes_is_said(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    common = {"dataset_dir": str(volumes / "t1"), "slice_cache": str(tmp_path / "cache"), **WHOLE}
    flat = {**TINY["network_def"], "spatial_dims": 2}
    for overrides, sentence in (
        ({"context_slices": 1}, "context_slices is 1, but slice_axis 'none' reads volumes whole: set it to 0."),
        ({"crop_size": [16, 16]}, "crop_size is [16, 16]: give slices, rows and columns, whole numbers of 1 or more."),
        ({"slice_axis": "axial"}, "three are for volumes that are read whole (slice_axis none)."),
        ({"spacing": [1.0, 1.0]}, "gives spacing [1.0, 1.0]: give a number above 0, or 3 of them"),
        ({"network_def": flat}, "expected [batch, 1, height, width]; set spatial_dims to 3."),
        ({"channels": 2}, "has 1 channel, but the network takes 2"),
    ):
        refused_in_config(re.escape(sentence), saved_by, workflow("volumes", **{**common, **overrides}))
    picture(volumes / "t1" / "picture.png", shape=(20, 30))
    refused_in_config("picture.png is none: leave it out", saved_by, workflow("volumes", **common))


def test_real_volumes_are_read_whole(workflow: Workflow, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted(real_data("radiology/hippocampus/images").glob("*.nii.gz"))[:6]:
        (folder / path.name).symlink_to(path)
    network = {**WHOLE["network_def"], "channel_mult": [1, 1, 1], "attention_resolutions": [4]}
    settings = {"crop_size": [32, 32, 32], "batch_size": 1, "network_def": network, "preview_timesteps": [250]}
    plan = run(workflow, tmp_path, "volumes", dataset_dir=str(folder), **settings)
    assert len(plan["ledger"]["images"]) == 5
    log = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(log["ssim_t250"].iloc[-1])


def test_the_order_of_frames_is_learnt(workflow: Workflow, tmp_path: Path) -> None:
    for number in range(5):
        values = np.random.default_rng(number).integers(0, 900, (20, 18, 3, 4)).astype(np.int16)
        write_nifti(tmp_path / "set" / f"{number}.nii.gz", values, np.eye(4))
    settings = {"dataset_dir": str(tmp_path / "set"), "channels": 3, "percentiles": [1, 99], "slice_axis": "time"}
    plan = run(workflow, tmp_path, "slice_order", **settings)
    assert (plan["slice_axis"], plan["context_slices"], plan["channels"]) == ("time", 1, 3)
    hashes = {volume_hash(read_volume(path)) for path in (tmp_path / "set").iterdir()}
    assert set(plan["ledger"]["images"]) < hashes
    log = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(log["SliceOrder" if "SliceOrder" in log else "loss"].iloc[-1])
