from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medmdm.errors import UserError
from medmdm.reports.study import read_study, study_table, summarise_study
from medmdm.runs.record import Provenance
from medmdm.stats import crossed_interval
from tests.reports.runs import study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return study(tmp_path / "study.csv", [f"case_{i}" for i in range(12)])


def test_a_row_for_each_point_of_the_curve(path: Path) -> None:
    rows = summarise_study(read_study(path))
    assert [(row["backbone"], row["shots"]) for row in rows] == [
        (backbone, shots) for backbone in ("mdm", "random") for shots in (1, 4, 16)
    ]
    table = pd.read_csv(path)
    for row in rows:
        cell = table[(table.backbone == row["backbone"]) & (table.shots == row["shots"])]
        by_case, dice = cell.groupby("case").dice.mean(), row["dice"]
        assert (dice["mean"], dice["case_sd"]) == pytest.approx((cell.dice.mean(), by_case.std()))
        assert dice["draws"] == pytest.approx([cell[cell.draw == draw].dice.mean() for draw in range(3)])
        assert sum(dice["interval"]) / 2 == pytest.approx(by_case.mean())
        assert (dice["unit"], dice["n_draws"], dice["n_seeds"]) == ("images", 3, [2, 2])


def test_patients_are_counted_where_there_are_enough_and_one_draw_and_seed_have_no_spread(path: Path) -> None:
    table = read_study(path)
    patients = {f"case_{i}": f"p{i % 10}" for i in range(12)}
    assert summarise_study(table, patients)[0]["dice"]["unit"] == "patients"
    row = summarise_study(table[(table["draw"] == 0) & (table["seed"] == 0)])[0]
    assert (row["dice"]["draw_sd"], row["dice"]["seed_sd"]) == (None, None)
    assert np.isfinite(row["dice"]["case_sd"])


def test_wrong_tables_are_named(path: Path, tmp_path: Path) -> None:
    table = pd.read_csv(path)
    for broken, said in (
        (table.rename(columns={"shots": "shot"}), r"no column 'shots' \(did you mean 'shot'"),
        (table.assign(shots="few"), "'shots' must be the number"),
        (table.iloc[:0], "'shots' must be the number"),
    ):
        broken.to_csv(path, index=False)
        with pytest.raises(UserError, match=said):
            read_study(path)
    (tmp_path / "empty.csv").write_text("")
    for name in ("none.csv", "empty.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            read_study(tmp_path / name)


SEEN = {"MDM": Provenance("inductive", (), "Nothing is shared.")}
DICE = {  # of (head, draw), a number for each of four test images
    ("ridge", 0): [0.99, 0.70, 0.98, 0.90],
    ("ridge", 1): [0.97, 0.60, 1.00, 0.80],
    ("classifier", 0): [0.80, 0.75, 0.90, 0.85],
    ("classifier", 1): [0.70, 0.65, 0.80, 0.85],
}


BY_IMAGE = {head: np.mean([DICE[head, 0], DICE[head, 1]], axis=0) for head in ("ridge", "classifier")}
TABLE = pd.DataFrame(
    {"backbone": "MDM", "head": head, "shots": 2, "draw": draw, "seed": 0, "case": str(n), "dice": d, "iou": d / 2}
    for (head, draw), values in DICE.items()
    for n, d in enumerate(values)
)


def test_means_and_intervals_are_over_test_images() -> None:
    summary, page = study_table(TABLE, {}, SEEN)
    for row in summary["rows"]:
        values = BY_IMAGE[row["head"]]
        expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
        np.testing.assert_allclose(row["dice"]["interval"], expected)
        assert row["dice"]["mean"] == pytest.approx(values.mean())
        draws = [np.mean(DICE[row["head"], draw]) for draw in (0, 1)]
        assert row["dice"]["draw_sd"] == pytest.approx(np.std(draws, ddof=1))
    ridge = next(row for row in summary["rows"] if row["head"] == "ridge")["dice"]
    assert ridge["interval"][1] > 1
    assert f"| {ridge['mean']:.4f} | {ridge['interval'][0]:.4f} to 1.0000 |" in page  # no score is above 1
    assert "inductive. Nothing is shared." in page


def test_differences_are_paired_by_image() -> None:
    (row,) = study_table(TABLE, {}, SEEN, ("MDM", "classifier"))[0]["comparisons"]
    assert row["head"] == "ridge"
    differences = BY_IMAGE["ridge"] - BY_IMAGE["classifier"]
    assert row["difference"] == pytest.approx(differences.mean())
    by_draw = [np.subtract(DICE["ridge", draw], DICE["classifier", draw]) for draw in (0, 1)]
    assert row["interval"] == list(crossed_interval(by_draw))
    assert [row[name] for name in ("wins", "ties", "losses")] == [2, 1, 1]


def test_masks_that_cost_nothing_have_rows_and_what_is_not_better_is_said() -> None:
    every, of_two, of_nine = [0.6, 0.5, 0.7, 0.6], [0.75, 0.70, 0.80, 0.90], [1.0] * 4
    rows = [("all_foreground", 0, 0, every), ("mean_mask", 2, 0, of_two), ("mean_mask", 9, 0, of_nine)]
    baselines = pd.DataFrame(
        {
            "backbone": "(none)",
            "head": head,
            "shots": shots,
            "draw": draw,
            "seed": 0,
            "case": str(n),
            "dice": d,
            "iou": d,
        }
        for head, shots, draw, values in rows
        for n, d in enumerate(values)
    )
    summary, page = study_table(TABLE, {}, SEEN, baselines=baselines)
    assert [(row["head"], row["shots"], row["dice"]["mean"]) for row in summary["baselines"]] == [
        ("all_foreground", 0, pytest.approx(0.6)), ("mean_mask", 2, pytest.approx(0.7875)), ("mean_mask", 9, 1.0)
    ]  # fmt: skip
    assert "| (none) | all foreground | 0 | 0.6000 |" in page
    for gain in summary["gains"]:  # over what was made of as many labels
        values = BY_IMAGE[gain["head"]] - of_two
        assert (gain["baseline"], gain["difference"]) == ("mean_mask", pytest.approx(values.mean()))
        np.testing.assert_allclose(gain["interval"], stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))
        assert gain["better"] == (gain["interval"][0] > 0)
        assert (f"MDM / {gain['head']} with 2 (mean mask; difference" in page) == (not gain["better"])
    assert {gain["better"] for gain in summary["gains"]} == {False}
    below = baselines[baselines["head"] == "all_foreground"]
    summary, page = study_table(TABLE, {}, SEEN, baselines=below)
    assert [(gain["baseline"], gain["better"]) for gain in summary["gains"]] == [("all_foreground", True)] * 2
    assert "Not shown to be better" not in page
    assert "cost" not in study_table(TABLE, {}, SEEN)[1]
