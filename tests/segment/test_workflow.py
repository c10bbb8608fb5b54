"""The bundles from a backbone to a report, on made data sets; each run takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from medmdm.corruption import PatchMasking
from medmdm.data import pixel_hash, read_image
from medmdm.errors import UserError, find_user_error
from medmdm.files import save_torch
from medmdm.networks import ADMUNet
from medmdm.segment import open_backbone

BUNDLES = Path(__file__).parents[2] / "bundles"
HEAD = {
    "_target_": "medmdm.segment.PixelClassifierHead",
    "members": 2,
    "max_epochs": 12,
    "min_epochs": 12,
    "batch_size": 4,
    "pixels": 128,
}


def write_backbone(path: Path, seed: int = 0, **plan: Any) -> Path:
    torch.manual_seed(seed)
    network = ADMUNet(
        in_channels=plan.get("channels", 3), out_channels=plan.get("channels", 3), model_channels=32,
        channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=16,
    )  # fmt: skip
    content = {
        "format": 1,
        "network": {"_target_": "medmdm.networks.ADMUNet", **network.config},
        "corruption": PatchMasking(1000, 4).to_config(),
        "num_timesteps": 1000,
        "channels": 3,
        "crop_size": [16, 16],
        "intensity_range": None,
        "ledger": {"images": [], "patients": [], "salt": ""},
        **plan,
    }
    save_torch({"model": network.state_dict(), "plan": content}, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright blobs on dark ground, images of different sizes, two test images; patients known."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number in range(6):
        shape = (28 + 2 * number, 40)
        label = np.zeros(shape, np.uint8)
        label[6:18, 8 + number : 24 + number] = 1
        image = np.where(label[..., None] > 0, 190, 60) + rng.integers(-30, 30, (*shape, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_mask.png")
        entry = {"image": f"{number}.png", "label": f"{number}_mask.png", "patient_id": f"patient {number}"}
        sections["training" if number < 4 else "test"].append(entry)
    content = {"name": "blobs", "labels": {"background": 0, "blob": 1}, **sections}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> Callable[..., Any]:
    """Run a bundle as ``monai.bundle run`` does."""
    backbone = write_backbone(tmp_path / "model.pt")

    def call(bundle: str, **overrides: Any) -> Any:
        settings: dict[str, Any] = {"dataset_dir": str(pictures), "slice_cache": str(tmp_path / "slices"), **overrides}
        if bundle == "mdm_segment":
            settings = {"run_dir": str(tmp_path / "run"), "backbone": str(backbone), "head": HEAD, **settings}
        workflow = ConfigWorkflow(
            config_file=str(BUNDLES / f"{bundle}.json"), logging_file=False, meta_file=None, **settings
        )
        workflow.initialize()
        return workflow.run()[0]

    return call


def test_segment_evaluate_and_infer(run: Callable[..., Any], tmp_path: Path, pictures: Path) -> None:
    scores = run("mdm_segment")
    assert scores["dice"] > 0.9
    folder = tmp_path / "run"
    assert {"segmenter.pt", "plan.json", "run.json", "evaluation.json", "index.html", "per_case.csv"} <= {
        path.name for path in folder.iterdir()
    }
    mask = read_image(folder / "predictions" / "4.png")[0]
    assert mask.shape == read_image(pictures / "4.png").shape[1:]
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["stamp"]["kind"] == "inductive"
    assert "patient 4" not in (folder / "index.html").read_text()

    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(folder / "segmenter.pt"))
    assert again == pytest.approx(scores)

    masks = run("mdm_infer", output_dir=str(tmp_path / "inferred"), segmenter=str(folder / "segmenter.pt"))
    by_name = {path.name: path for path in masks}
    assert len(masks) == 6
    assert np.array_equal(read_image(by_name["4.png"])[0], mask)


def test_a_second_run_extracts_and_fits_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    first = run("mdm_segment")
    model = tmp_path / "run" / "segmenter.pt"
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.pt")}
    written = model.stat().st_mtime_ns
    assert features
    assert run("mdm_segment") == pytest.approx(first)
    assert model.stat().st_mtime_ns == written
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.pt")} == features


def test_other_weights_under_the_same_name_are_noticed(run: Callable[..., Any], tmp_path: Path) -> None:
    run("mdm_segment", report=False)
    write_backbone(tmp_path / "model.pt", seed=1)
    with pytest.raises(RuntimeError) as caught:
        run("mdm_segment", report=False)
    assert "backbone_sha256" in str(find_user_error(caught.value))


def test_the_same_seed_gives_the_same_file(run: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("mdm_segment", run_dir=str(tmp_path / name), feature_cache=str(tmp_path / "cache"), report=False)
    assert (tmp_path / "a" / "segmenter.pt").read_bytes() == (tmp_path / "b" / "segmenter.pt").read_bytes()


def test_evaluating_the_labelled_images_is_called_transductive(run: Callable[..., Any], tmp_path: Path) -> None:
    run("mdm_segment", report=False)
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    other = {**content, "test": content["training"][:2], "training": content["test"]}
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "data_list": other, "report": False}
    run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), **settings)
    record = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert record["stamp"]["kind"] == "transductive"
    assert record["stamp"]["overlapping"] == ["0", "1"]


def test_patients_of_the_labelled_images_are_known_to_a_later_evaluation(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    run("mdm_segment", report=False)
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    test = [{**content["test"][0], "patient_id": "patient 1"}, content["test"][1]]
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "data_list": {**content, "test": test}}
    run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), report=False, **settings)
    record = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert (record["stamp"]["kind"], record["stamp"]["overlapping"]) == ("patients shared", ["4"])
    assert "ledger" not in record["protocol"]


def test_a_network_from_scratch_has_not_seen_what_the_backbone_saw(run: Callable[..., Any], tmp_path: Path) -> None:
    digest = pixel_hash(read_image(tmp_path / "pictures" / "4.png"))
    seen = write_backbone(tmp_path / "seen.pt", ledger={"images": [digest], "patients": [], "salt": ""})
    unet = {
        "_target_": "medmdm.segment.FromScratch",
        "network": {
            "_target_": "monai.networks.nets.UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3,
            "out_channels": 2, "channels": [8, 16], "strides": [2],
        },
        "multiple": 2, "steps": 2,
    }  # fmt: skip
    kinds = []
    for name, head in (("frozen", HEAD), ("scratch", unet)):
        run("mdm_segment", run_dir=str(tmp_path / name), backbone=str(seen), head=head, report=False)
        kinds.append(json.loads((tmp_path / name / "evaluation.json").read_text())["stamp"]["kind"])
    assert kinds == ["transductive", "inductive"]


def test_a_head_of_another_backbone_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    run("mdm_segment", include_backbone=False, report=False)
    head = str(tmp_path / "run" / "segmenter.pt")
    right = run("mdm_evaluate", run_dir=str(tmp_path / "e"), segmenter=head, backbone=str(tmp_path / "model.pt"))
    assert right["dice"] > 0.9
    other = write_backbone(tmp_path / "other.pt", seed=1)
    with pytest.raises(RuntimeError) as caught:
        run("mdm_evaluate", run_dir=str(tmp_path / "f"), segmenter=head, backbone=str(other))
    sentence = str(find_user_error(caught.value))
    assert "other.pt" in sentence
    assert sentence.count("\n") == 0


def test_from_scratch_needs_no_backbone(run: Callable[..., Any], tmp_path: Path) -> None:
    unet = {
        "_target_": "medmdm.segment.FromScratch",
        "network": {
            "_target_": "monai.networks.nets.UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3,
            "out_channels": 2, "channels": [8, 16], "strides": [2],
        },
        "multiple": 2, "steps": 120, "batch_size": 4, "learning_rate": 0.01,
    }  # fmt: skip
    # MONAI drops overrides that are None: an overlay file says it.
    overlay = tmp_path / "scratch.json"
    overlay.write_text(json.dumps({"backbone": None, "head": unet, "preprocessing": {"crop_size": [16, 16]}}))
    files = [str(BUNDLES / "mdm_segment.json"), str(overlay)]
    settings = {"dataset_dir": str(tmp_path / "pictures"), "run_dir": str(tmp_path / "run")}
    workflow = ConfigWorkflow(config_file=files, logging_file=False, meta_file=None, **settings)
    workflow.initialize()
    assert workflow.run()[0]["dice"] > 0.8
    evaluated = run("mdm_evaluate", run_dir=str(tmp_path / "e"), segmenter=str(tmp_path / "run" / "segmenter.pt"))
    assert evaluated["dice"] > 0.8


def test_percentiles_may_be_given_as_pre_training_has_them() -> None:
    plan = open_backbone(None, preprocessing={"crop_size": [16, 16], "percentiles": [1, 99]}).plan
    assert plan["percentiles"] == {"lower": 1.0, "upper": 99.0, "nonzero": False}


def study_settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    model = str(tmp_path / "model.pt")
    return {
        "run_dir": str(tmp_path / "study"),
        "backbones": {"MDM": {"path": model}, "raw": {"path": model, "initialise": "raw"}},
        "heads": {"ridge": {"_target_": "medmdm.segment.ClosedFormHead", "method": "ridge"}, "mlp": HEAD},
        "shots": [2, 4],
        "draws": 2,
        "reference": ["MDM", "ridge"],
        **changes,
    }


def test_a_killed_study_computes_no_finished_cell_again(run: Callable[..., Any], tmp_path: Path) -> None:
    table = run("mdm_study", **study_settings(tmp_path))
    cells = sorted((tmp_path / "study" / "cells").glob("*.json"))
    assert len(cells) == 2 * 2 * (2 + 1)  # backbones, heads, draws of two images and the one of all four
    assert len(table) == len(cells) * 2
    assert set(table.columns) == {"backbone", "head", "shots", "draw", "seed", "case", "dice", "iou"}
    kept = {path: path.stat().st_mtime_ns for path in cells[1:]}
    cells[0].unlink()  # as if the run had been killed before it
    again = run("mdm_study", **study_settings(tmp_path))
    pd.testing.assert_frame_equal(table, again)
    assert cells[0].is_file()
    assert {path: path.stat().st_mtime_ns for path in cells[1:]} == kept
    assert "MDM" in (tmp_path / "study" / "study.md").read_text()


def test_a_report_shows_the_learning_curve_of_a_study(run: Callable[..., Any], tmp_path: Path) -> None:
    run("mdm_study", **study_settings(tmp_path, draws=1))
    run("mdm_segment", study=str(tmp_path / "study" / "study.csv"))
    assert "Learning curve" in (tmp_path / "run" / "index.html").read_text()
    with pytest.raises(RuntimeError) as caught:
        run("mdm_segment", run_dir=str(tmp_path / "other"), study="nowhere.csv")
    assert "nowhere.csv" in str(find_user_error(caught.value))


def test_a_study_with_another_head_computes_its_cells_only(run: Callable[..., Any], tmp_path: Path) -> None:
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}
    heads = {**study_settings(tmp_path)["heads"], "mlp": {**HEAD, "max_epochs": 3, "min_epochs": 3}}
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1, heads=heads))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {name for name in after if "__mlp__" in name}


def test_a_study_whose_images_are_read_otherwise_computes_all_cells(run: Callable[..., Any], tmp_path: Path) -> None:
    settings = study_settings(tmp_path, shots=[2], draws=1)
    run("mdm_study", **settings)
    before = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "study" / "cells").iterdir()}
    write_backbone(tmp_path / "model.pt", percentiles={"lower": 1, "upper": 99, "nonzero": False})
    run("mdm_study", **settings)
    after = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "study" / "cells").iterdir()}
    assert before.keys() == after.keys()
    assert not [name for name in after if after[name] == before[name]]


def test_backbones_that_read_images_differently_are_not_compared(run: Callable[..., Any], tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other.pt", percentiles={"lower": 1, "upper": 99, "nonzero": False})
    backbones = {"MDM": {"path": str(tmp_path / "model.pt")}, "MAE": {"path": str(other)}}
    with pytest.raises((RuntimeError, UserError)) as caught:
        run("mdm_study", **study_settings(tmp_path, backbones=backbones))
    assert "backbones#MAE was trained with percentiles" in str(find_user_error(caught.value))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shots": [9]}, "shots asks for 9 images"),
        ({"reference": ["MDM", "forest"]}, "reference"),
        ({"only": {"mpl": ["MDM"]}}, "did you mean 'mlp'"),
        ({"backbones": {"MDM": {"path": "nowhere.pt"}}}, "nowhere.pt"),
        ({"backbones": {"MDM": {"path": "x", "block": [1]}}}, "backbones#MDM"),
    ],
)
def test_a_wrong_study_is_refused(run: Callable[..., Any], tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises((RuntimeError, UserError)) as caught:
        run("mdm_study", **study_settings(tmp_path, **changes))
    assert sentence in str(find_user_error(caught.value))


def test_volumes_are_segmented_slice_by_slice_and_scored_whole(tmp_path: Path) -> None:
    folder = tmp_path / "volumes"
    folder.mkdir()
    rng = np.random.default_rng(1)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    sections: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for number in range(3):
        label = np.zeros((20, 24, 7), np.uint8)
        label[5:14, 6 + number : 18, 2:5] = 1
        image = label * 500.0 + rng.normal(100, 40, label.shape)
        for name, array in ((f"{number}.nii.gz", image.astype(np.float32)), (f"{number}_label.nii.gz", label)):
            nib.save(nib.Nifti1Image(array, affine), folder / name)
        entry = {"image": f"{number}.nii.gz", "label": f"{number}_label.nii.gz"}
        sections["training" if number < 2 else "test"].append(entry)
    (folder / "dataset.json").write_text(json.dumps({"name": "boxes", "labels": {"rest": 0, "box": 1}, **sections}))
    percentiles = {"lower": 1, "upper": 99, "nonzero": False}
    plan = {"channels": 1, "percentiles": percentiles, "slice_axis": "coronal", "context_slices": 0}
    workflow = ConfigWorkflow(
        config_file=str(BUNDLES / "mdm_segment.json"), logging_file=False, meta_file=None,
        backbone=str(write_backbone(tmp_path / "model.pt", **plan)), dataset_dir=str(folder),
        run_dir=str(tmp_path / "run"), slice_cache=str(tmp_path / "slices"),
        head={"_target_": "medmdm.segment.ClosedFormHead", "method": "ridge"},
    )  # fmt: skip
    workflow.initialize()
    assert workflow.run()[0]["dice"] > 0.9
    mask = nib.load(tmp_path / "run" / "predictions" / "2.nii.gz")
    assert mask.shape == (20, 24, 7)
    assert np.allclose(mask.affine, affine)
    rows = pd.read_csv(tmp_path / "run" / "per_case.csv")
    assert len(rows) == 1  # the volume, not its slices
