"""The table of a study against numbers worked out with SciPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medmdm.reports.study import study_table
from medmdm.runs.record import Provenance

SEEN = {"MDM": Provenance("inductive", (), "Nothing is shared.")}
DICE = {  # of (head, draw), a number for each of four test images
    ("ridge", 0): [0.99, 0.70, 0.98, 0.90],
    ("ridge", 1): [0.97, 0.60, 1.00, 0.80],
    ("classifier", 0): [0.80, 0.75, 0.90, 0.85],
    ("classifier", 1): [0.70, 0.65, 0.80, 0.85],
}


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        {"backbone": "MDM", "head": head, "shots": 2, "draw": draw, "seed": 0, "case": str(n), "dice": d, "iou": d / 2}
        for (head, draw), values in DICE.items()
        for n, d in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_means_and_intervals_are_over_test_images(table: pd.DataFrame) -> None:
    summary, page = study_table(table, {}, SEEN)
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


def test_differences_are_paired_by_image(table: pd.DataFrame) -> None:
    comparisons = study_table(table, {}, SEEN, ("MDM", "classifier"))[0]["comparisons"]
    assert [row["head"] for row in comparisons] == ["ridge"]
    differences = np.mean([DICE["ridge", 0], DICE["ridge", 1]], axis=0) - np.mean(
        [DICE["classifier", 0], DICE["classifier", 1]], axis=0
    )
    assert comparisons[0]["difference"] == pytest.approx(differences.mean())
    expected = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    np.testing.assert_allclose(comparisons[0]["interval"], expected)
    assert [comparisons[0][name] for name in ("wins", "ties", "losses")] == [2, 1, 1]
