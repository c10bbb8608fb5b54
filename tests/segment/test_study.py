"""Grids of backbones, heads and numbers of labels, on a made data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.bundle_runs import HEAD, UNET, Run, write_backbone
from tests.segment.conftest import on_one_grid


def study_settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    model = str(tmp_path / "model.pt")
    return {
        "run_dir": str(tmp_path / "study"),
        "backbones": {"MDM": {"path": model}, "raw": {"path": model, "initialise": "raw"}},
        "heads": {"ridge": {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}, "mlp": HEAD},
        "shots": [2, 4], "draws": 2, "reference": ["MDM", "ridge"], **changes,
    }  # fmt: skip


def test_a_killed_study_computes_no_finished_cell_again(run: Run, tmp_path: Path) -> None:
    table = run("mdm_study", **study_settings(tmp_path))
    cells = sorted((tmp_path / "study" / "cells").glob("*.json"))
    assert len(cells) == 2 * 2 * (2 + 1)  # backbones, heads, draws of two images and the one of all four
    assert len(table) == len(cells) * 2
    assert set(table.columns) == {"backbone", "head", "shots", "draw", "seed", "case", "dice", "iou"}
    kept = {path: path.stat().st_mtime_ns for path in cells[1:]}
    cells[0].unlink()  # as if the run had been killed before it
    pd.testing.assert_frame_equal(table, run("mdm_study", **study_settings(tmp_path)))
    assert cells[0].is_file()
    assert {path: path.stat().st_mtime_ns for path in cells[1:]} == kept
    assert "MDM" in (tmp_path / "study" / "study.md").read_text()


def test_masks_that_cost_nothing_are_scored_on_the_same_cases(run: Run, tmp_path: Path, pictures: Path) -> None:
    labels = on_one_grid(pictures)
    settings = study_settings(tmp_path, backbones={"raw": {"path": str(tmp_path / "model.pt"), "initialise": "raw"}})
    settings |= {"heads": {"ridge": settings["heads"]["ridge"]}, "reference": ["raw", "ridge"]}
    run("mdm_study", **settings)
    every, two, four = json.loads((tmp_path / "study" / "study.json").read_text())["table"]["baselines"]
    dices = [2 * label.sum() / (label.size + label.sum()) for label in labels[4:]]
    assert (every["head"], every["shots"], every["dice"]["mean"]) == (
        "all_foreground",
        0,
        pytest.approx(np.mean(dices)),
    )
    mean = sum(label.astype(int) for label in labels[:4]) > 2
    dices = [2 * (mean & (label > 0)).sum() / (mean.sum() + label.sum()) for label in labels[4:]]
    assert (four["head"], four["shots"], four["dice"]["mean"]) == ("mean_mask", 4, pytest.approx(np.mean(dices)))
    assert (two["shots"], two["dice"]["n_draws"]) == (2, 2)
    page = (tmp_path / "study" / "study.md").read_text()
    assert f"| (none) | mean mask | 4 | {np.mean(dices):.4f} |" in page


def test_unlabelled_images_are_not_said_of_the_backbone(run: Run, tmp_path: Path, pictures: Path) -> None:
    (pictures / "copy.png").write_bytes((pictures / "4.png").read_bytes())
    content = json.loads((pictures / "dataset.json").read_text())
    (pictures / "dataset.json").write_text(json.dumps({**content, "unlabeled": ["copy.png"]}))
    ridge = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}
    heads = {"ridge": ridge, "taught": {**ridge, "unlabelled": {"_target_": "medmdm.heads.SelfTraining"}}}
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1, heads=heads))
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    assert {stamp["kind"] for stamp in found["stamps"].values()} == {"inductive"}
    assert any("look at unlabelled images (taught): 1 of 2 test images were seen" in note for note in found["notes"])


def test_a_report_shows_the_learning_curve_of_a_study(run: Run, refused: Run, tmp_path: Path) -> None:
    run("mdm_study", **study_settings(tmp_path, draws=1))
    run("mdm_segment", study=str(tmp_path / "study" / "study.csv"))
    assert "Learning curve" in (tmp_path / "run" / "index.html").read_text()
    refused("nowhere.csv", "mdm_segment", run_dir=str(tmp_path / "other"), study="nowhere.csv")


def test_a_study_with_another_head_computes_its_cells_only(run: Run, tmp_path: Path) -> None:
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}
    heads = {**study_settings(tmp_path)["heads"], "mlp": {**HEAD, "max_epochs": 3, "min_epochs": 3}}
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1, heads=heads))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {name for name in after if "__mlp__" in name}


def test_features_are_announced_of_the_backbones_that_are_read_frozen(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = study_settings(tmp_path, shots=[2], draws=1, only={"ridge": ["MDM"]}, reference=None)
    training = {"_target_": "medmdm.heads.Training", "steps": 1}
    settings["backbones"]["raw"]["initialise"] = "random"
    settings["heads"]["mlp"] = {"_target_": "medmdm.heads.FineTuning", "training": training}
    with caplog.at_level("INFO", logger="medmdm"):
        run("mdm_study", **settings)
    assert [line.split(":")[0] for line in caplog.messages if "features of" in line] == ["MDM"]


def test_a_study_whose_images_are_read_otherwise_computes_all_cells(run: Run, tmp_path: Path) -> None:
    settings = study_settings(tmp_path, shots=[2], draws=1)
    run("mdm_study", **settings)
    before = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "study" / "cells").iterdir()}
    write_backbone(tmp_path / "model.pt", percentiles={"lower": 1, "upper": 99, "nonzero": False})
    run("mdm_study", **settings)
    after = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "study" / "cells").iterdir()}
    assert before.keys() == after.keys()
    assert not [name for name in after if after[name] == before[name]]


def test_backbones_that_read_images_differently_are_not_compared(refused: Run, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other.pt", percentiles={"lower": 1, "upper": 99, "nonzero": False})
    backbones = {"MDM": {"path": str(tmp_path / "model.pt")}, "MAE": {"path": str(other)}}
    refused("backbones#MAE was trained with percentiles", "mdm_study", **study_settings(tmp_path, backbones=backbones))


def test_another_split_of_the_same_images_is_noticed(run: Run, refused: Run, tmp_path: Path) -> None:
    settings = study_settings(tmp_path, shots=[2], draws=1)
    run("mdm_study", **settings)
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    train, test = content["training"], content["test"]
    other = {**content, "training": [*test, *train[2:]], "test": train[:2]}
    refused("their split", "mdm_study", **settings, data_list=other)


def test_without_a_test_section_nothing_is_fitted(refused: Run, pictures: Path, tmp_path: Path) -> None:
    content = json.loads((pictures / "dataset.json").read_text())
    del content["test"]
    refused("has no test section, on which a study", "mdm_study", **study_settings(tmp_path), data_list=content)
    assert not [*(tmp_path / "run").rglob("cells/*")]


def test_context_is_a_setting_of_a_backbone(run: Run, tmp_path: Path) -> None:
    model = str(tmp_path / "model.pt")
    backbones = {"MDM": {"path": model}, "around": {"path": model, "context": [8]}}
    heads = {"ridge": {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}}
    table = run("mdm_study", **study_settings(tmp_path, backbones=backbones, heads=heads, shots=[2], draws=1))
    dice = {name: rows["dice"].tolist() for name, rows in table.groupby("backbone")}
    assert dice["MDM"] != dice["around"]


def test_each_cell_is_computed_once(run: Run, tmp_path: Path) -> None:
    overlay = {"path": None, "preprocessing": {"crop_size": [16, 16], "channels": 3}}
    settings = study_settings(
        tmp_path, backbones={"reading": overlay}, heads={"unet": UNET}, shots=[4, 2, 4], draws=2, seeds=[0, 0],
        reference=["none", "unet"],
    )  # fmt: skip
    assert set(run("mdm_study", **settings)["backbone"]) == {"none"}
    assert len(list((tmp_path / "study" / "cells").iterdir())) == 1 + 2


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"shots": [9]}, "shots asks for 9, but to train on there are 4 images"),
    ({"reference": ["MDM", "forest"]}, "reference"),
    ({"shots": [2.5]}, "shots#0 must be a whole number of 1 or more"),
    ({"shots": 2}, "shots must be a list of whole numbers"),
    ({"seeds": [-1]}, "seeds#0 must be a whole number of 0 or more, got -1"),
    ({"subset_rule": "paper", "draws": 2}, "set draws to 1, or subset_rule to 'seeded'"),
    ({"window": [16]}, "window must be two whole numbers"),
    ({"heads": {"a b": HEAD, "a-b": HEAD}}, "would have one file"),
    ({"backbones": {"none": {"path": "model.pt"}}}, "backbones#none"),
    ({"only": {"mpl": ["MDM"]}}, "did you mean 'mlp'"),
    ({"backbones": {"MDM": {"path": "nowhere.pt"}}}, "nowhere.pt"),
    ({"backbones": {"MDM": {"path": "model.pt", "context": [0]}}}, "backbones#MDM: context must be a list of windows"),
    ({"backbones": {"MDM": {"path": "x", "block": [1]}}}, "backbones#MDM"),
    ({"backbones": {"MDM": {"path": "model.pt", "normalize": "global_l2"}}, "whole_images": True}, "of one size"),
])  # fmt: skip
def test_a_wrong_study_is_refused(refused, tmp_path, monkeypatch, changes, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    refused(sentence, "mdm_study", **study_settings(tmp_path, **changes))


def test_a_study_can_score_the_training_images_that_a_fit_did_not_see(run: Run, tmp_path: Path) -> None:
    settings = study_settings(tmp_path, heads={"ridge": study_settings(tmp_path)["heads"]["ridge"]})
    plain = run("mdm_study", **settings)
    table = run("mdm_study", **settings | {"run_dir": str(tmp_path / "both"), "left_out": True})
    tested, left_out = (table[table["section"] == section] for section in ("test", "training"))
    pd.testing.assert_frame_equal(tested.drop(columns="section").reset_index(drop=True), plain)
    assert set(left_out["shots"]) == {2}  # nothing is left of all four
    for cell in (tmp_path / "both" / "cells").glob("*k2__*.json"):
        content = json.loads(cell.read_text())
        cases = [row["case"] for row in content["rows"]]
        assert len(cases) == 4
        assert not {*content["support"]} & {*cases}
    summary = json.loads((tmp_path / "both" / "study.json").read_text())["table"]
    mdm = left_out[left_out["backbone"] == "MDM"].groupby("case")["dice"].mean().mean()
    assert summary["left_out"]["rows"][0]["dice"]["mean"] == pytest.approx(mdm)
    assert "that the fit did not see" in (tmp_path / "both" / "study.md").read_text()
    run("mdm_segment", study=str(tmp_path / "both" / "study.csv"))  # the curve of the test images
    curve = json.loads((tmp_path / "run" / "summary.json").read_text())["learning_curve"]
    assert curve == json.loads((tmp_path / "study" / "study.json").read_text())["table"]["rows"]
