from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medmdm.errors import UserError
from medmdm.reports.study import read_study, study_table, summarise_study
from medmdm.runs.record import Provenance
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
        assert row["dice"]["mean"] == pytest.approx(cell.dice.mean())
        assert row["dice"]["draws"] == pytest.approx([cell[cell.draw == draw].dice.mean() for draw in range(3)])
        by_case = cell.groupby("case").dice.mean()
        assert row["dice"]["case_sd"] == pytest.approx(by_case.std())
        low, high = row["dice"]["interval"]
        assert (low + high) / 2 == pytest.approx(by_case.mean())
        assert (row["dice"]["unit"], row["dice"]["n_draws"], row["dice"]["n_seeds"]) == ("images", 3, [2, 2])


def test_patients_are_what_is_counted_where_there_are_enough(path: Path) -> None:
    patients = {f"case_{i}": f"p{i % 10}" for i in range(12)}
    row = summarise_study(read_study(path), patients)[0]
    assert row["dice"]["unit"] == "patients"


def test_one_draw_and_one_seed_have_no_spread(path: Path) -> None:
    table = read_study(path)
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
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "empty.csv")


SEEN = {"MDM": Provenance("inductive", (), "Nothing is shared.")}
DICE = {  # of (head, draw), a number for each of four test images
    ("ridge", 0): [0.99, 0.70, 0.98, 0.90],
    ("ridge", 1): [0.97, 0.60, 1.00, 0.80],
    ("classifier", 0): [0.80, 0.75, 0.90, 0.85],
    ("classifier", 1): [0.70, 0.65, 0.80, 0.85],
}


@pytest.fixture
def dices() -> pd.DataFrame:
    rows = [
        {"backbone": "MDM", "head": head, "shots": 2, "draw": draw, "seed": 0, "case": str(n), "dice": d, "iou": d / 2}
        for (head, draw), values in DICE.items()
        for n, d in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_means_and_intervals_are_over_test_images(dices: pd.DataFrame) -> None:
    summary, page = study_table(dices, {}, SEEN)
    by_image = {head: np.mean([DICE[head, 0], DICE[head, 1]], axis=0) for head in ("ridge", "classifier")}
    for row in summary["rows"]:
        values = by_image[row["head"]]
        expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
        np.testing.assert_allclose(row["dice"]["interval"], expected)
        assert row["dice"]["mean"] == pytest.approx(values.mean())
        draws = [np.mean(DICE[row["head"], draw]) for draw in (0, 1)]
        assert row["dice"]["draw_sd"] == pytest.approx(np.std(draws, ddof=1))
    ridge = next(row for row in summary["rows"] if row["head"] == "ridge")["dice"]
    assert ridge["interval"][1] > 1
    assert f"| {ridge['mean']:.4f} | {ridge['interval'][0]:.4f} to 1.0000 |" in page  # no score is above 1
    assert "inductive. Nothing is shared." in page


def test_differences_are_paired_by_image(dices: pd.DataFrame) -> None:
    comparisons = study_table(dices, {}, SEEN, ("MDM", "classifier"))[0]["comparisons"]
    assert [row["head"] for row in comparisons] == ["ridge"]
    differences = np.mean([DICE["ridge", 0], DICE["ridge", 1]], axis=0) - np.mean(
        [DICE["classifier", 0], DICE["classifier", 1]], axis=0
    )
    assert comparisons[0]["difference"] == pytest.approx(differences.mean())
    expected = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    np.testing.assert_allclose(comparisons[0]["interval"], expected)
    assert [comparisons[0][name] for name in ("wins", "ties", "losses")] == [2, 1, 1]
