from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medmdm.errors import UserError
from medmdm.runs.record import Evaluation
from tests.reports.runs import change, change_case, picture_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return picture_run(tmp_path, cases=2)


def test_everything_is_read(run: Path, tmp_path: Path) -> None:
    evaluation = Evaluation.load(run)
    assert evaluation.class_names == ("background", "gland")
    assert evaluation.instance_labels
    assert evaluation.provenance.overlapping == ("case_1",)
    assert evaluation.record == {"medmdm": "0.1.0", "seed": 7, "data": {"hash": "ab12"}, "sessions": []}
    case = evaluation.cases[1]
    assert case.image == tmp_path / "data" / "case_1.png"
    assert case.prediction == run / "masks" / "case_1.png"
    assert (case.patient, case.spacing, set(case.maps)) == ("SECRET-0", (0.0005, 0.0005), {"uncertainty"})
    assert "SECRET" not in repr(evaluation.cases)


def test_what_is_saved_is_what_was_read(run: Path) -> None:
    change(run, study="cells/study.csv")
    change_case(run, 0, region={"rows": [0, 9]}, series_uid="1.2", image=["case_0.png", "/elsewhere/case_0.png"])
    before = json.loads((run / "evaluation.json").read_text())
    evaluation = Evaluation.load(run)
    evaluation.save()
    after = json.loads((run / "evaluation.json").read_text())
    assert after == {**before, "cases": [{"disagreement": None, **case} for case in before["cases"]]}
    assert Evaluation.load(run) == evaluation


def test_what_may_be_missing(run: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    for key in ("data_list", "stamp", "protocol", "record", "study", "section", "class_names", "ignore"):
        del content[key]
    for key in ("label", "columns", "spacing", "patient_id", "uncertainty"):
        del content["cases"][0][key]
    (run / "evaluation.json").write_text(json.dumps(content))
    (run / "run.json").unlink()
    evaluation = Evaluation.load(run)
    assert (evaluation.provenance.kind, evaluation.record, evaluation.ignore) == ("unknown", None, 255)
    assert evaluation.class_names == ("background", "class 1")
    assert evaluation.cases[0].label is None


def test_relative_data_folder_counts_from_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)  # where ../data is no folder
    change(run, dataset_dir="../data")
    assert Evaluation.load(run).cases[0].image.exists()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": "2"}, "num_classes"),
        ({"class_names": ["a"]}, "1 names for 2 classes"),
        ({"cases": []}, "'cases' is empty"),
        ({"cases": [3]}, "cases[0] is a int"),
        ({"data_list": {"label_type": "instance"}}, "'instance'"),
        ({"stamp": {"kind": "inductiv"}}, "did you mean 'inductive'"),
    ],
)
def test_wrong_content_is_named(run: Path, content: dict[str, Any], said: str) -> None:
    change(run, **content)
    with pytest.raises(UserError) as caught:
        Evaluation.load(run)
    assert said in str(caught.value)
    assert "evaluation.json" in str(caught.value)


def test_cases_need_names_of_their_own(run: Path) -> None:
    change_case(run, 1, case="case_0")
    with pytest.raises(UserError, match="'case_0' twice"):
        Evaluation.load(run)
    change_case(run, 1, case="case_1", image="")
    with pytest.raises(UserError, match=r"cases\[1\] has no 'image'"):
        Evaluation.load(run)


@pytest.mark.parametrize(("content", "said"), [("", "not JSON"), ("[]", "holds a list"), (None, "does not exist")])
def test_a_file_that_is_none(run: Path, content: str | None, said: str) -> None:
    path = run / "evaluation.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        Evaluation.load(run)
