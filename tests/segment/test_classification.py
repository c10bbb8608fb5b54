"""The command ``classify`` on a small data set whose grade is its brightness."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmdm.cli import main
from medmdm.metrics.classification import classification_scores
from tests.bundle_runs import Run
from tests.written import picture


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    """Thirty pictures of two grades and two shapes; no masks."""
    folder, rng = tmp_path / "graded", np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number in range(30):
        grade = "dark" if number % 2 else "bright"
        image = rng.integers(-30, 30, (24 + 8 * (number % 3), 40, 3)) + (70 if grade == "dark" else 170)
        picture(folder / f"{number}.png", image)
        section = "test" if number >= 12 else "training"
        own = {"patient_id": f"SECRET{number // 2}", "grade": grade}
        sections[section].append({"image": f"{number}.png", **own})
    (folder / "dataset.json").write_text(json.dumps({"name": "graded", **sections}))
    return folder


@pytest.fixture
def model(run: Run, tmp_path: Path) -> str:
    return str(tmp_path / "model.pt")


def test_the_table_is_that_of_the_rows(model: str, graded: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = ["classify", "--backbone", model, "--dataset_dir", str(graded), "--label", "grade", "--out", str(out)]
    assert main([*words, "--shots", "6", "0", "--draws", "3", "--initialise", "raw"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("classification.md")
    table = pd.read_csv(out / "classification.csv", dtype={"case": str})
    summary = json.loads((out / "classification.json").read_text())
    assert [(row["method"], row["shots"], row["draws"]) for row in summary["rows"]] == [
        ("linear", 6, 3), ("knn", 6, 3), ("linear", 12, 1), ("knn", 12, 1),
    ]  # fmt: skip
    assert len(table) == 18 * (3 + 3 + 1 + 1)
    for row in summary["rows"]:
        own = table[(table["method"] == row["method"]) & (table["shots"] == row["shots"])]
        by_draw = []
        for _, one in own.groupby("draw"):
            truth = [["bright", "dark"].index(name) for name in one["true"]]
            scores = one[["score_bright", "score_dark"]].fillna(-np.inf).to_numpy()
            by_draw.append({key: float(value) for key, value in classification_scores(scores, truth).items()})
        for key in ("accuracy", "balanced_accuracy", "auc"):
            assert row[key]["mean"] == pytest.approx(np.mean([one[key] for one in by_draw]))
            low, high = row[key]["interval"]
            assert low <= row[key]["mean"] <= high
    whole = next(row for row in summary["rows"] if (row["method"], row["shots"]) == ("linear", 12))
    assert whole["accuracy"]["mean"] == whole["auc"]["mean"] == 1  # brightness is the grade
    assert summary["unit"] == "patients"
    assert summary["stamp"]["kind"] == "inductive"
    assert summary["most_frequent"] == {"class": "bright", "accuracy": 0.5, "balanced_accuracy": 0.5, "auc": 0.5}
    for file in out.iterdir():
        assert "SECRET" not in file.read_text()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main([*words, "--shots", "6", "0", "--draws", "3", "--initialise", "raw"]) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_draw_of_one_class_is_said(model: str, graded: Path, tmp_path: Path) -> None:
    words = ["--backbone", model, "--dataset_dir", str(graded), "--label", "grade", "--out", str(tmp_path / "out")]
    assert main(["classify", *words, "--shots", "1", "--draws", "2"]) == 0
    summary = json.loads((tmp_path / "out" / "classification.json").read_text())
    assert len(summary["notes"]) == 2
    assert "it is never said there" in summary["notes"][0]
    assert all(row["balanced_accuracy"]["mean"] == 0.5 for row in summary["rows"])
    assert "never said" in (tmp_path / "out" / "classification.md").read_text()


def test_a_class_that_no_test_image_has(model: str, graded: Path, tmp_path: Path) -> None:
    content = json.loads((graded / "dataset.json").read_text())
    content["test"] = [{**entry, "grade": "grey"} for entry in content["test"]]
    content["test"][0]["grade"] = "dark"
    (graded / "dataset.json").write_text(json.dumps(content))
    words = ["--backbone", model, "--dataset_dir", str(graded), "--label", "grade", "--out", str(tmp_path / "out")]
    assert main(["classify", *words, "--shots", "0", "--initialise", "raw"]) == 0
    summary = json.loads((tmp_path / "out" / "classification.json").read_text())
    most = summary["most_frequent"]
    assert (most["class"], most["balanced_accuracy"], most["auc"]) == ("grey", 0.5, 0.5)  # of the two that are there
    assert most["accuracy"] == 1 - 1 / summary["tested"]
    assert "No test image has the grade 'bright': its recall and its AUC are not known." in summary["notes"]
    page = (tmp_path / "out" / "classification.md").read_text()
    assert "mean over 2 classes (dark, grey)" in page
    assert "a balanced accuracy of 0.5000 and an AUC of 0.5000" in page


def test_what_is_refused(model: str, graded: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["classify", "--backbone", model, "--dataset_dir", str(graded), "--out", str(tmp_path / "out")]

    def refused(sentence: str, *more: str) -> None:
        assert main([*words, *more]) == 1
        assert sentence in capsys.readouterr().err

    refused("has no 'grad' (did you mean 'grade'?)", "--label", "grad")
    refused("the method 'svm' is unknown", "--label", "grade", "--method", "svm")
    refused("section is 'training', which is learnt from", "--label", "grade", "--section", "training")
    refused("shots asks for 40", "--label", "grade", "--shots", "40")
    refused("The paper's rule gives one draw", "--label", "grade", "--subset_rule", "paper", "--draws", "2")
    content = json.loads((graded / "dataset.json").read_text())
    for entry in [*content["training"], *content["test"]]:
        entry["grade"] = "dark"
    (graded / "dataset.json").write_text(json.dumps(content))
    refused("nothing to tell apart", "--label", "grade")
    del content["test"]
    (graded / "dataset.json").write_text(json.dumps(content))
    refused("has no test image", "--label", "grade")
    assert not (tmp_path / "out").exists()
