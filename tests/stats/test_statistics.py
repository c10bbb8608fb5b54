from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, ttest_1samp

from medmdm import stats
from medmdm.errors import UserError
from medmdm.stats.statistics import BCA_FROM, ENOUGH_PATIENTS, SMALL

NAN, INF = math.nan, math.inf


def bca_by_hand(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Efron's interval of the mean, written down from Efron and Tibshirani (1993), chapter 14.3."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.sort(rng.choice(values, (resamples, n)).mean(1))
    bias = norm.ppf(((means < values.mean()).sum() + (means <= values.mean()).sum()) / (2 * resamples))
    left_out = (values.sum() - values) / (n - 1)
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    bounds = []
    for level in (0.025, 0.975):
        z = bias + norm.ppf(level)
        share = norm.cdf(bias + z / (1 - acceleration * z))
        bounds.append(means[min(int(share * resamples), resamples - 1)])
    return bounds[0], bounds[1]


def test_t_interval_is_scipys(rng: np.random.Generator) -> None:
    values = rng.beta(9, 1, (3, 12))
    low, high = stats.t_interval(values, 0.9)
    for row, bounds in zip(values, zip(low, high, strict=True), strict=True):
        assert bounds == pytest.approx(tuple(ttest_1samp(row, 0).confidence_interval(0.9)))


def test_bca_interval(rng: np.random.Generator) -> None:
    values = rng.beta(9, 1, 25)
    values[:2] = 0.1
    low, high = stats.bca_interval(values)
    expected = bca_by_hand(values, 40_000, seed=1)
    assert (low, high) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))
    # Skewed to the left: the interval reaches further down, which Student's does not know.
    assert values.mean() - low > 1.2 * (high - values.mean())


def test_bca_interval_is_the_same_every_time_and_by_rows(rng: np.random.Generator) -> None:
    values = rng.random((2, 9))
    assert stats.bca_interval(values[0]) == stats.bca_interval(values[0])
    both = stats.bca_interval(values)
    assert [bounds[0] for bounds in both] == pytest.approx(list(stats.bca_interval(values[0])), abs=0.01)
    assert stats.bca_interval(values[0], seed=1) != stats.bca_interval(values[0])


def test_intervals_of_little() -> None:
    for interval in (stats.t_interval, stats.bca_interval):
        assert np.isnan(interval([])).all()
        assert np.isnan(interval([0.5])).all()
        assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
        with pytest.raises(ValueError, match="finite"):
            interval([0.5, NAN])
        with pytest.raises(UserError, match="confidence must lie between 0 and 1, got 95"):
            interval([0.5, 0.6], confidence=95)
    mixed = stats.bca_interval([[0.5, 0.5, 0.5], [0.1, 0.5, 0.9]])
    assert mixed[0][0] == mixed[1][0] == 0.5
    assert mixed[0][1] < 0.5 < mixed[1][1]


def test_over_images_without_patients(rng: np.random.Generator) -> None:
    values = rng.random(30)
    summary = stats.summarise(values)
    assert (summary.unit, summary.n, summary.n_cases, summary.n_patients) == ("images", 30, 30, None)
    assert summary.mean == summary.case_mean == pytest.approx(values.mean())
    assert summary.median == np.median(values)
    assert summary.sd == pytest.approx(np.std(values, ddof=1))
    assert summary.intervals.t_interval == tuple(stats.t_interval(values))
    assert summary.intervals.bca_interval == tuple(stats.bca_interval(values))
    assert summary.warnings == ()
    assert stats.summarise(values, [None] * 30) == summary


def test_over_patients_where_there_are_enough() -> None:
    # Eight patients; one has thirteen images of 0.2 and counts like the others.
    values = [0.2] * 13 + [0.8] * 7
    patients = ["p0"] * 13 + [f"p{i}" for i in range(1, 8)]
    summary = stats.summarise(values, patients)
    assert (summary.unit, summary.n, summary.n_cases, summary.n_patients) == ("patients", 8, 20, 8)
    units = [0.2] + [0.8] * 7
    assert summary.mean == pytest.approx(np.mean(units))
    assert summary.case_mean == pytest.approx(np.mean(values))
    assert summary.sd == pytest.approx(np.std(units, ddof=1))
    assert summary.intervals.t_interval == pytest.approx(tuple(stats.t_interval(units)))
    assert "Only 8 patients" in summary.warnings[0]


def test_patients_of_any_type_and_order(rng: np.random.Generator) -> None:
    values = rng.random(40)
    numbers = np.arange(40) % 10
    order = rng.permutation(40)
    expected = stats.summarise(values, numbers)
    assert stats.summarise(values, numbers.astype(str)) == expected
    shuffled = stats.summarise(values[order], numbers[order])
    assert shuffled.mean == pytest.approx(expected.mean)
    assert shuffled.intervals.bca_interval == pytest.approx(expected.intervals.bca_interval)


def test_over_images_with_a_warning_where_patients_are_few_or_unknown() -> None:
    values = np.linspace(0, 1, 30)
    few = stats.summarise(values, np.arange(30) % (ENOUGH_PATIENTS - 1))
    assert (few.unit, few.n, few.n_patients) == ("images", 30, ENOUGH_PATIENTS - 1)
    assert any("Only 7 patients: their 30 images" in warning for warning in few.warnings)
    unknown = stats.summarise(values, [*range(28), None, NAN])
    assert (unknown.unit, unknown.n, unknown.n_patients) == ("images", 30, 28)
    assert any("2 of 30 images have no patient" in warning for warning in unknown.warnings)
    # One image each: images are patients, nothing to warn of.
    alone = stats.summarise(values[:5], range(5))
    assert alone.unit == "images"
    assert not any("too narrow" in warning for warning in alone.warnings)


@pytest.mark.parametrize("patients", [None, range(24)], ids=["images", "patients"])
def test_what_has_no_value_is_left_out_and_counted(patients) -> None:
    values = np.linspace(0.5, 0.9, 24)
    values[[3, 4]], values[5] = NAN, INF
    summary = stats.summarise(values, patients)
    rest = values[np.isfinite(values)]
    assert (summary.n, summary.n_cases, summary.undefined, summary.infinite) == (21, 21, 2, 1)
    assert summary.mean == pytest.approx(rest.mean())
    text = " ".join(summary.warnings)
    assert "2 of 24 cases have no value" in text
    assert "1 of 24 cases are infinitely far off" in text


def test_small_n_is_warned_of() -> None:
    assert stats.summarise(np.linspace(0, 1, SMALL)).warnings == ()
    assert "Only 19 images" in stats.summarise(np.linspace(0, 1, SMALL - 1)).warnings[0]
    one = stats.summarise([0.7])
    assert (one.mean, one.median, one.n) == (0.7, 0.7, 1)
    assert math.isnan(one.sd)
    assert np.isnan(one.intervals.t_interval).all()
    none = stats.summarise([NAN, NAN])
    assert (none.n, none.undefined) == (0, 2)
    assert math.isnan(none.mean)
    assert none.warnings[0] == "No case has a value."


def test_interval_to_print() -> None:
    few, many = (stats.summarise(np.linspace(0, 1, n) ** 3) for n in (BCA_FROM - 1, BCA_FROM))
    assert (few.interval, few.interval_name) == (few.intervals.t_interval, "t")
    assert (many.interval, many.interval_name) == (many.intervals.bca_interval, "BCa")


def test_summary_as_json() -> None:
    for values in ([NAN], [0.5], [0.1, 0.9, INF]):
        entry = stats.summarise(values).as_dict()
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["interval_name"] == "t"
    assert stats.summarise([0.5]).as_dict()["t_interval"] == [None, None]


def test_json_ready() -> None:
    content = {1: (np.float32(0.5), np.int64(3), np.bool_(True)), "x": np.array([1.0, NAN]), "y": -INF, "z": None}
    assert stats.json_ready(content) == {"1": [0.5, 3, True], "x": [1.0, None], "y": None, "z": None}


def test_summaries_need_lists_of_one_length() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        stats.summarise(np.ones((2, 2)))
    with pytest.raises(ValueError, match="3 values and patients for 2"):
        stats.summarise([1, 2, 3], ["a", "b"])


def test_subgroups() -> None:
    cases = pd.DataFrame(
        {
            "dice": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "grade": ["benign", "malignant", None, "benign", "malignant", "benign"],
            "scanner": [10, 2, 2, 10, NAN, 2],
            "who": list("aabbcc"),
        },
        index=[7, 7, 3, 1, 0, 9],
    )
    grades = stats.subgroups(cases, "grade", "dice", patient="who")
    assert list(grades) == ["(none)", "benign", "malignant"]
    assert grades["benign"] == stats.summarise([0.1, 0.4, 0.6], ["a", "b", "c"])
    assert grades["benign"].n_patients == 3
    assert grades["(none)"].n == 1
    scanners = stats.subgroups(cases, "scanner", "dice")
    assert [(key, summary.n) for key, summary in scanners.items()] == [("2.0", 3), ("10.0", 2), ("(none)", 1)]
    assert sum(summary.n for summary in grades.values()) == len(cases)
    with pytest.raises(UserError, match="no column 'grades' \\(did you mean 'grade'\\?\\)"):
        stats.subgroups(cases, "grades", "dice")


def test_count_empty() -> None:
    assert stats.count_empty([0, 0, 5, 5, 0], [0, 3, 0, 3, 2]) == {"both": 1, "pred": 2, "true": 1}
