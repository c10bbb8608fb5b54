from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from medmdm.errors import UserError
from medmdm.reports.scoring import Excluded, score_cases
from medmdm.reports.summary import read_per_case, write_per_case
from medmdm.runs.record import Evaluation
from tests.reports.runs import change_case, columns, picture_run, volume_run


@pytest.mark.parametrize("make", [picture_run, volume_run])
def test_scores_come_back_with_all_their_digits(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    evaluation = Evaluation.load(make(tmp_path, cases=3))
    scores = score_cases(evaluation)
    scores.cases[0].scores["dice"] = math.nan
    scores.cases[0].scores["hausdorff95"] = math.inf
    scores.cases[1].scores["dice"] = 1 / 3
    write_per_case(scores, tmp_path / "per_case.csv")
    back = read_per_case(tmp_path / "per_case.csv", evaluation)
    assert back.ruler == scores.ruler
    for one, other in zip(back.cases, scores.cases, strict=True):
        assert (one.name, one.number, one.patient, one.columns, one.seen, one.files) == (
            (other.name, other.number, other.patient, other.columns, other.seen, other.files)
        )
        assert {key: repr(value) for key, value in one.scores.items()} == (
            {key: repr(value) for key, value in other.scores.items()}
        )


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
