from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from medmdm.errors import UserError
from medmdm.reports.rendering import counted, interval_text, number_text, render
from medmdm.reports.scoring import Excluded, Scores, score_cases
from medmdm.reports.summary import (
    Pseudonyms,
    headline_keys,
    make_summary,
    read_per_case,
    summary_schema,
    write_per_case,
)
from medmdm.runs.record import Evaluation
from tests.reports.runs import change, change_case, columns, picture_run, study, volume_run


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


def test_means_are_over_cases_and_no_patient_id_is_left(pictures: Any) -> None:
    summary, scores = pictures
    dices = np.array([case.scores["dice"] for case in scores.cases])
    entry = summary["scores"]["dice"]
    expected = (dices.mean(), np.median(dices), dices.std(ddof=1))
    assert (entry["mean"], entry["median"], entry["sd"]) == pytest.approx(expected)
    assert (entry["n"], entry["unit"], entry["n_patients"]) == (8, "images", 4)
    assert summary["cases"] == {"listed": 9, "scored": 8, "excluded": 1, "patients": 4}
    assert any("Only 4 patients" in note for note in summary["notes"])
    assert "SECRET" not in json.dumps(summary)
    assert summary["stamp"]["sentence"] == "One patient of P1 was seen."
    assert summary["protocol"]["training_patients"] == ["(hidden)", "P2"]


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
    pooled = {key: score["pooled"] for key, score in summary["scores"].items()}
    assert pooled["dice"] == pytest.approx(dice)
    assert pooled["aji"] == pytest.approx(total["aji_intersection"] / total["aji_union"])
    objects = total["objects_true"] + total["objects_pred"]
    assert pooled["object_f1"] == pytest.approx(2 * total["object_tp"] / objects)
    assert pooled["pq"] == pytest.approx(pooled["dq"] * pooled["sq"])
    assert pooled["object_dice"] is None
    by_class = [volumes[0]["class_scores"][k]["scores"]["dice"]["pooled"] for k in ("1", "2")]
    assert volumes[0]["scores"]["dice"]["pooled"] == pytest.approx(np.mean(by_class))


def test_the_papers_conventions_are_apart_and_binary_only(pictures: Any, volumes: Any) -> None:
    block = pictures[0]["paper_conventions"]
    d, iou = (pictures[0]["scores"][key]["case_mean"] for key in ("dice", "iou"))
    assert [block[key]["mean"] for key in ("dice", "iou", "aji")] == pytest.approx([d, d / (2 - d), iou])
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


def test_text_begins_with_the_counts_keeps_its_tables_whole_and_needs_a_scored_case(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    (run / "masks" / "case_0.png").unlink()
    change(run, dataset="a|b <i>")
    change_case(run, 1, columns={"grade": "x|y"})
    change_case(run, 2, columns={"grade": "<script>"})
    summary, _ = summarise(run)
    text = markdown(summary)
    assert text.splitlines()[0] == "# a\\|b &lt;i>, test: 2 cases of 2 patients scored, 1 excluded"
    assert "<script>" not in text
    row, *_ = [line for line in text.splitlines() if line.startswith("| x\\|y")]
    assert row.replace("\\|", "").count("|") == 2 + 1 + 2 * 4
    assert "- case_0 has a truth, but its predicted mask case_0.png is missing" in text
    shutil.rmtree(run / "masks")
    with pytest.raises(UserError, match=r"no case can be scored \(first: case_0 has a truth"):
        summarise(run)


def test_wording() -> None:
    assert [number_text(value) for value in (0.5, None)] == ["0.5000", "\N{EN DASH}"]
    signed = [number_text(value, signed=True) for value in (-0.12348, 0.1, -1e-9)]
    assert signed == ["\N{MINUS SIGN}0.1235", "+0.1000", "0.0000"]
    assert number_text(12.3456, distance=True) == "12.35"
    assert [interval_text(ends) for ends in ((-0.1, 1.2), (None, 1.0))] == ["0.0000 to 1.0000", "\N{EN DASH}"]
    assert interval_text((-3.0, 7.0), distance=True) == "0.00 to 7.00"
    assert [counted(n, "case", "is", "are") for n in (0, 1, 2)] == ["0 cases are", "1 case is", "2 cases are"]
    assert counted(1, "case") == "1 case"


@pytest.mark.parametrize("make", [picture_run, volume_run])
def test_scores_come_back_with_all_their_digits(tmp_path: Path, make) -> None:
    evaluation = Evaluation.load(make(tmp_path, cases=3))
    scores = score_cases(evaluation)
    scores.cases[0].scores |= {"dice": math.nan, "hausdorff95": math.inf}
    scores.cases[1].scores["dice"] = 1 / 3
    write_per_case(scores, tmp_path / "per_case.csv")
    back = read_per_case(tmp_path / "per_case.csv", evaluation)
    assert back.ruler == scores.ruler
    for one, other in zip(back.cases, scores.cases, strict=True):
        assert replace(one, scores={}) == replace(other, scores={}, picture=None)
        assert repr(sorted(one.scores.items())) == repr(sorted(other.scores.items()))


def test_excluded_cases_keep_their_place_and_their_reason(tmp_path: Path) -> None:
    evaluation = Evaluation.load(picture_run(tmp_path, cases=3))
    scores = score_cases(evaluation)
    reason = 'case_1, "odd",\nis wrong'
    scores = replace(scores, cases=[scores.cases[0], scores.cases[2]], excluded=[Excluded("case_1", 1, reason)])
    path = tmp_path / "per_case.csv"
    write_per_case(scores, path)
    assert [row["case"] for row in columns(path)] == ["case_0", "case_1", "case_2"]
    back = read_per_case(path, evaluation)
    assert back.excluded == scores.excluded
    assert [case.name for case in back.cases] == ["case_0", "case_2"]


def test_columns_of_the_data_list_do_not_take_the_name_of_a_score(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    change_case(run, 0, columns={"dice": "six-sided", "case": "wood", "dice_2": "x", "grade": "g"})
    scores = score_cases(Evaluation.load(run))
    write_per_case(scores, tmp_path / "per_case.csv")
    (row,) = columns(tmp_path / "per_case.csv")
    assert (row["list_dice"], row["list_case"], row["list_dice_2"], row["grade"]) == ("six-sided", "wood", "x", "g")
    assert float(row["dice"]) == scores.cases[0].scores["dice"]


def test_other_cases_and_words_for_numbers_are_refused(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=2)
    evaluation = Evaluation.load(run)
    path = tmp_path / "per_case.csv"
    write_per_case(score_cases(evaluation), path)
    text = path.read_text()
    path.write_text(text.replace("case_1,", "case_9,"))
    with pytest.raises(UserError, match=r"per_case\.csv has no row for case_1"):
        read_per_case(path, evaluation)
    lines = text.splitlines()
    lines[1] = lines[1].replace("malignant,s0,", "malignant,s0,high")
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="dice is 'high"):
        read_per_case(path, evaluation)


def test_pseudonyms_are_numbers_in_the_order_of_the_cases() -> None:
    names = Pseudonyms(["b", "a", None, "b"])
    assert [names.name(p) for p in ("b", "a", None)] == ["P1", "P2", None]
    assert Pseudonyms([f"patient{i}" for i in range(10)]).name("patient0") == "P01"


def test_ids_are_taken_out_of_text_as_words_only() -> None:
    names = Pseudonyms(["TCGA-18-5592", "1234", "7", "TCGA-18"])
    assert names.clean("TCGA-18-5592-01Z of TCGA-18") == "P1-01Z of P4"
    assert names.clean("image_1234.png, image_12345.png, x1234") == "image_P2.png, image_12345.png, x1234"
    assert names.clean("train_7") == "train_7"  # too short to be told from any other 7


def test_content_is_cleaned_in_keys_and_values_and_under_keys_of_patients() -> None:
    names = Pseudonyms(["7", "ANNA-1"])
    content = {"ANNA-1": ["x ANNA-1", 3, None], "training_patients": ["7", "8"], "patient_id": "9", "patients": 12}
    assert names.clean_all(content) == {
        "P2": ["x P2", 3, None],
        "training_patients": ["P1", "(hidden)"],
        "patient_id": "(hidden)",
        "patients": 12,
    }
    assert names.clean_all(names.clean_all(content)) == names.clean_all(content)


def test_ids_are_kept_on_request() -> None:
    names = Pseudonyms(["ANNA-1"], keep=True)
    assert names.name("ANNA-1") == "ANNA-1"
    assert names.clean_all({"patient_id": "ANNA-1 x"}) == {"patient_id": "ANNA-1 x"}
