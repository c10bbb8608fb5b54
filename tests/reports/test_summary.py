from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from medmdm.errors import UserError
from medmdm.reports.rendering import counted, interval_text, number_text, render
from medmdm.reports.scoring import Scores, score_cases
from medmdm.reports.summary import Pseudonyms, headline_keys, make_summary, summary_schema
from medmdm.runs.record import Evaluation
from tests.reports.runs import change, change_case, picture_run, study, volume_run


def markdown(summary: dict[str, Any]) -> str:
    return render("summary.md.j2", summary=summary, headlines=headline_keys(summary["scores"]))


def summarise(run: Path) -> tuple[dict[str, Any], Scores]:
    evaluation = Evaluation.load(run)
    scores = score_cases(evaluation)
    hide = Pseudonyms([case.patient for case in evaluation.cases])
    return make_summary(evaluation, scores, hide), scores


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Scores]:
    run = picture_run(tmp_path_factory.mktemp("pictures"))
    (run / "masks" / "case_8.png").unlink()
    study(run / "study.csv", ["case_0", "case_1"])
    change(run, study="study.csv")
    return summarise(run)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Scores]:
    return summarise(volume_run(tmp_path_factory.mktemp("volumes")))


def test_the_schema_is_one_and_holds(pictures: Any, volumes: Any) -> None:
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for summary, _ in (pictures, volumes):
        validator.validate(json.loads(json.dumps(summary, allow_nan=False)))
    broken = {**pictures[0], "stamp": {**pictures[0]["stamp"], "kind": "fine"}}
    assert not validator.is_valid(broken)
    assert not validator.is_valid({**pictures[0], "more": 1})


def test_means_are_over_cases(pictures: Any) -> None:
    summary, scores = pictures
    dices = [case.scores["dice"] for case in scores.cases]
    entry = summary["scores"]["dice"]
    assert entry["mean"] == pytest.approx(np.mean(dices))
    assert entry["median"] == pytest.approx(np.median(dices))
    assert entry["sd"] == pytest.approx(np.std(dices, ddof=1))
    assert (entry["n"], entry["unit"], entry["n_patients"]) == (8, "images", 4)
    assert summary["cases"] == {"listed": 9, "scored": 8, "excluded": 1, "patients": 4}
    assert any("Only 4 patients" in note for note in summary["notes"])


def test_nnunet_keys(volumes: Any) -> None:
    summary, scores = volumes
    assert [case["case"] for case in summary["metric_per_case"]] == ["vol_0", "vol_1", "vol_2"]
    for entry, case in zip(summary["metric_per_case"], scores.cases, strict=True):
        assert entry["metrics"]["2"]["Dice"] == case.scores["dice_2"]
        assert entry["metrics"]["2"]["n_ref"] == case.scores["tp_2"] + case.scores["fn_2"]
        assert entry["prediction_file"] == f"{case.name}.nii.gz"
    means = [np.mean([case.scores[f"dice_{k}"] for case in scores.cases]) for k in (1, 2)]
    assert [summary["mean"][k]["Dice"] for k in ("1", "2")] == pytest.approx(means)
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(means))


def test_pooled_scores_are_those_of_all_pixels_and_objects_together(pictures: Any, volumes: Any) -> None:
    summary, scores = pictures
    total = {key: sum(case.scores[key] for case in scores.cases) for key in scores.cases[0].scores}
    dice = 2 * total["tp_1"] / (2 * total["tp_1"] + total["fp_1"] + total["fn_1"])
    assert summary["scores"]["dice"]["pooled"] == pytest.approx(dice)
    assert summary["scores"]["aji"]["pooled"] == pytest.approx(total["aji_intersection"] / total["aji_union"])
    objects = total["objects_true"] + total["objects_pred"]
    assert summary["scores"]["object_f1"]["pooled"] == pytest.approx(2 * total["object_tp"] / objects)
    pooled = {key: summary["scores"][key]["pooled"] for key in ("pq", "dq", "sq")}
    assert pooled["pq"] == pytest.approx(pooled["dq"] * pooled["sq"])
    assert summary["scores"]["object_dice"]["pooled"] is None
    by_class = [volumes[0]["class_scores"][k]["scores"]["dice"]["pooled"] for k in ("1", "2")]
    assert volumes[0]["scores"]["dice"]["pooled"] == pytest.approx(np.mean(by_class))


def test_the_papers_conventions_are_apart_and_binary_only(pictures: Any, volumes: Any) -> None:
    block = pictures[0]["paper_conventions"]
    d = pictures[0]["scores"]["dice"]["case_mean"]
    assert block["dice"]["mean"] == pytest.approx(d)
    assert block["iou"]["mean"] == pytest.approx(d / (2 - d))
    assert block["aji"]["mean"] == pytest.approx(pictures[0]["scores"]["iou"]["case_mean"])
    assert volumes[0]["paper_conventions"] is None


def test_subgroups_of_columns_with_a_few_values(pictures: Any) -> None:
    summary, scores = pictures
    assert set(summary["subgroups"]) == {"grade", "slide"}  # eight slides are still a table
    groups = summary["subgroups"]["grade"]
    benign = [case.scores["dice"] for case in scores.cases if case.columns["grade"] == "benign"]
    assert (groups["benign"]["cases"], groups["malignant"]["cases"]) == (4, 4)
    assert groups["benign"]["scores"]["dice"]["mean"] == pytest.approx(np.mean(benign))


def test_columns_with_one_value_or_many_make_no_subgroups(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    for k in range(3):
        change_case(run, k, columns={"site": "one", "scanner": "a" if k else "b"} | ({"rare": "x"} if k else {}))
    assert set(summarise(run)[0]["subgroups"]) == {"scanner"}


def test_risk_falls_where_uncertainty_knows(pictures: Any, volumes: Any) -> None:
    summary, scores = pictures
    curve = summary["risk_coverage"]
    errors = sorted((case.scores["uncertainty"], 1 - case.scores["dice"]) for case in scores.cases)
    assert curve["risk"][0] == pytest.approx(errors[0][1])
    assert curve["risk"][-1] == pytest.approx(np.mean([error for _, error in errors]))
    assert curve["aurc"] < curve["chance"]
    assert volumes[0]["risk_coverage"] is None


def test_empty_cases_are_counted_not_averaged(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=4)
    evaluation = Evaluation.load(run)
    scores = score_cases(evaluation)
    nothing = {"tp_1": 0, "fp_1": 0, "fn_1": 0, "tn_1": 10, "n_true_1": 0, "n_pred_1": 0}
    scores.cases[0].scores |= {**nothing, "dice": math.nan, "iou": math.nan, "hausdorff95": math.nan}
    scores.cases[1].scores |= {**nothing, "fn_1": 4, "n_true_1": 4, "dice": 0.0, "hausdorff95": math.inf}
    summary = make_summary(evaluation, scores, Pseudonyms([case.patient for case in scores.cases]))
    assert summary["class_scores"]["1"]["empty"] == {"both": 1, "pred": 1, "true": 0}
    assert (summary["scores"]["dice"]["n"], summary["scores"]["dice"]["undefined"]) == (3, 1)
    assert (summary["scores"]["hausdorff95"]["n"], summary["scores"]["hausdorff95"]["infinite"]) == (2, 1)
    assert summary["metric_per_case"][0]["metrics"]["1"]["Dice"] is None
    assert summary["mean"]["1"]["Dice"] == pytest.approx(np.mean([case.scores["dice"] for case in scores.cases[1:]]))
    assert "| Dice | " in markdown(summary)


def test_no_patient_id_is_left(pictures: Any) -> None:
    summary, _ = pictures
    text = json.dumps(summary)
    assert "SECRET" not in text
    assert summary["stamp"]["sentence"] == "One patient of P1 was seen."
    assert summary["protocol"]["training_patients"] == ["(hidden)", "P2"]


def test_text_begins_with_the_counts_and_keeps_its_tables_whole(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    (run / "masks" / "case_0.png").unlink()
    change(run, dataset="a|b <i>")
    change_case(run, 1, columns={"grade": "x|y"})
    change_case(run, 2, columns={"grade": "<script>"})
    summary, _ = summarise(run)
    text = markdown(summary)
    assert text.splitlines()[0] == "# a\\|b &lt;i>, test: 2 cases of 2 patients scored, 1 excluded"
    assert "<script>" not in text
    for line in text.splitlines():
        if line.startswith("| x\\|y"):
            assert line.replace("\\|", "").count("|") == 2 + 1 + 2 * 4
            break
    else:
        pytest.fail("the subgroup is missing")
    assert "- case_0 has a truth, but its predicted mask case_0.png is missing" in text


def test_nothing_scored_is_an_error(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=2)
    for k in range(2):
        (run / "masks" / f"case_{k}.png").unlink()
    with pytest.raises(UserError, match=r"no case can be scored \(first: case_0 has a truth"):
        summarise(run)


def test_wording() -> None:
    assert number_text(0.5) == "0.5000"
    assert number_text(-0.12348, signed=True) == "\N{MINUS SIGN}0.1235"
    assert number_text(0.1, signed=True) == "+0.1000"
    assert number_text(-1e-9, signed=True) == "0.0000"
    assert number_text(12.3456, distance=True) == "12.35"
    assert number_text(None) == "\N{EN DASH}"
    assert interval_text((-0.1, 1.2)) == "0.0000 to 1.0000"
    assert interval_text((-3.0, 7.0), distance=True) == "0.00 to 7.00"
    assert interval_text((None, 1.0)) == "\N{EN DASH}"
    assert [counted(n, "case", "is", "are") for n in (0, 1, 2)] == ["0 cases are", "1 case is", "2 cases are"]
    assert counted(1, "case") == "1 case"
