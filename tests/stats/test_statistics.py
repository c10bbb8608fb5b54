from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp

from medmdm import metrics, stats
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
    z = bias + norm.ppf([0.025, 0.975])
    shares = norm.cdf(bias + z / (1 - acceleration * z))
    low, high = means[np.minimum((shares * resamples).astype(int), resamples - 1)]
    return low, high


def test_t_interval_is_scipys(rng: np.random.Generator) -> None:
    values = rng.beta(9, 1, (3, 12))
    expected = ttest_1samp(values, 0, axis=1).confidence_interval(0.9)
    assert np.stack(stats.t_interval(values, 0.9)) == pytest.approx(np.stack(expected))


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
        assert np.isnan([interval([]), interval([0.5])]).all()
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
    assert (summary.median, summary.sd) == (np.median(values), pytest.approx(np.std(values, ddof=1)))
    assert summary.intervals.t_interval == tuple(stats.t_interval(values))
    assert summary.intervals.bca_interval == tuple(stats.bca_interval(values))
    assert summary.warnings == ()
    assert stats.summarise(values, [None] * 30) == summary


def test_over_patients_where_there_are_enough() -> None:
    # Eight patients; one has thirteen images of 0.2 and counts like the others.
    values, units = [0.2] * 13 + [0.8] * 7, [0.2] + [0.8] * 7
    summary = stats.summarise(values, ["p0"] * 13 + [f"p{i}" for i in range(1, 8)])
    assert (summary.unit, summary.n, summary.n_cases, summary.n_patients) == ("patients", 8, 20, 8)
    expected = (np.mean(units), np.std(units, ddof=1), np.mean(values))
    assert (summary.mean, summary.sd, summary.case_mean) == pytest.approx(expected)
    assert summary.intervals.t_interval == pytest.approx(tuple(stats.t_interval(units)))
    assert "Only 8 patients" in summary.warnings[0]


def test_patients_of_any_type_and_order(rng: np.random.Generator) -> None:
    values, numbers = rng.random(40), np.arange(40) % 10
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
    assert "too narrow" not in " ".join(alone.warnings)


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
    assert np.isnan([one.sd, *one.intervals.t_interval]).all()
    none = stats.summarise([NAN, NAN])
    assert (none.n, none.undefined, none.warnings[0]) == (0, 2, "No case has a value.")
    assert math.isnan(none.mean)


def test_interval_to_print_and_summaries_as_json() -> None:
    few, many = (stats.summarise(np.linspace(0, 1, n) ** 3) for n in (BCA_FROM - 1, BCA_FROM))
    assert (few.interval, few.interval_name) == (few.intervals.t_interval, "t")
    assert (many.interval, many.interval_name) == (many.intervals.bca_interval, "BCa")
    for values in ([NAN], [0.5], [0.1, 0.9, INF]):
        entry = stats.summarise(values).as_dict()
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["interval_name"] == "t"
    assert stats.summarise([0.5]).as_dict()["t_interval"] == [None, None]
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
    assert (grades["benign"].n_patients, grades["(none)"].n) == (3, 1)
    scanners = stats.subgroups(cases, "scanner", "dice")
    assert [(key, summary.n) for key, summary in scanners.items()] == [("2.0", 3), ("10.0", 2), ("(none)", 1)]
    assert sum(summary.n for summary in grades.values()) == len(cases)
    with pytest.raises(UserError, match="no column 'grades' \\(did you mean 'grade'\\?\\)"):
        stats.subgroups(cases, "grades", "dice")
    blank = stats.subgroups(pd.DataFrame({"dice": [0.1, 0.2, 0.3], "grade": ["", None, "a"]}), "grade", "dice")
    assert [(key, summary.n) for key, summary in blank.items()] == [("(none)", 2), ("a", 1)]


def test_count_empty() -> None:
    assert stats.count_empty([0, 0, 5, 5, 0], [0, 3, 0, 3, 2]) == {"both": 1, "pred": 2, "true": 1}


def test_one_classifier() -> None:
    block = stats.paper_block([1.0, 0.5, NAN])
    assert (block["dice"]["mean"], block["dice"]["sd"]) == (0.75, None)
    assert block["iou"]["mean"] == pytest.approx(0.75 / 1.25)  # of the mean, not the mean IoU
    assert block["aji"]["mean"] == pytest.approx((1 + 0.5 / 1.5) / 2)  # the mean IoU
    assert (block["classifiers"], block["images"], block["undefined"]) == (1, 2, 1)
    assert all("paper" in block[name]["label"] for name in ("dice", "iou", "aji"))


def test_several_classifiers() -> None:
    dices = np.array([[0.9, 0.7], [0.5, 0.3], [0.8, NAN]])
    block = stats.paper_block(dices)
    assert (block["classifiers"], block["images"], block["undefined"]) == (3, 1, 1)
    block = stats.paper_block(dices[:2])
    ious = [0.8 / 1.2, 0.4 / 1.6]
    assert (block["dice"]["mean"], block["dice"]["sd"]) == pytest.approx((0.6, np.std([0.8, 0.4], ddof=1)))
    assert (block["iou"]["mean"], block["iou"]["sd"]) == pytest.approx((np.mean(ious), np.std(ious, ddof=1)))


@pytest.mark.parametrize(("dice", "sd", "iou"), [(0.9195, 0.0125, 0.8513), (0.9160, 0.0069, 0.8451)])
def test_published_iou_follows_from_published_dice(dice: float, sd: float, iou: float) -> None:
    # The paper's table has GlaS 91.95 ± 1.25 with 85.13, and 91.60 ± 0.69 with 84.51, over ten classifiers.
    members = np.linspace(-1, 1, 10)
    members = dice + sd * members / members.std(ddof=1)
    assert stats.paper_block(members[:, None])["iou"]["mean"] == pytest.approx(iou, abs=1e-4)


def test_binary_aji_is_measured_by_aji(rng: np.random.Generator) -> None:
    pairs = list(zip(*(rng.random((2, 4, 9, 8)) < 0.5), strict=True))
    block = stats.paper_block([metrics.dice(*pair) for pair in pairs])
    assert block["aji"]["mean"] == pytest.approx(np.mean([metrics.aji(*pair) for pair in pairs]))


def test_nothing_to_report() -> None:
    block = stats.paper_block([NAN])
    assert block["iou"]["mean"] is None
    assert json.dumps(block, allow_nan=False)
    with pytest.raises(ValueError, match="shape"):
        stats.paper_block([])


def test_curve_by_hand() -> None:
    found = stats.risk_coverage([0.4, 0.0, 1.0, 0.2], [0.3, 0.1, 0.2, 0.9])
    assert found.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert found.risk == pytest.approx([0, 0.5, 1.4 / 3, 0.4])
    assert found.aurc == pytest.approx((0 + 0.5 + 1.4 / 3 + 0.4) / 4)
    assert found.best == pytest.approx((0 + 0.1 + 0.2 + 0.4) / 4)
    assert (found.chance, found.undefined) == (pytest.approx(0.4), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_ties_are_the_mean_over_all_orders(pairs: list[tuple[int, int]]) -> None:
    errors, doubts = (np.array(column, float) for column in zip(*pairs, strict=True))
    found = stats.risk_coverage(errors, doubts)
    # Random tiny differences decide ties: many of them, averaged.
    keys = doubts + np.random.default_rng(0).uniform(0, 0.5, (3000, len(errors)))
    curves = np.cumsum(errors[np.argsort(keys, axis=1)], axis=1) / np.arange(1, len(errors) + 1)
    assert found.aurc == pytest.approx(curves.mean(), abs=0.1)
    assert found.best <= found.aurc + 1e-12
    assert stats.risk_coverage(errors[::-1], doubts[::-1]).risk == pytest.approx(found.risk)


def test_certainty_about_everything_is_chance(rng: np.random.Generator) -> None:
    errors = rng.random((5, 7))
    flat = stats.risk_coverage(errors, np.zeros((5, 7)))
    assert (flat.aurc, flat.chance) == pytest.approx((errors.mean(), errors.mean()))
    perfect = stats.risk_coverage(errors, errors)
    assert perfect.aurc == pytest.approx(perfect.best)
    assert perfect.aurc < flat.aurc < stats.risk_coverage(errors, -errors).aurc


def test_what_has_no_value_is_counted() -> None:
    found = stats.risk_coverage([0.5, NAN, INF, 1.0, 0.0], [0.1, 0.2, 0.3, NAN, INF])
    assert found.undefined == 3
    assert found.risk == pytest.approx([0.5, 0.25])
    empty = stats.risk_coverage([], [])
    assert math.isnan(empty.aurc)
    assert json.dumps(empty.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="one shape"):
        stats.risk_coverage([1, 2], [1])


def test_crossed_interval(rng: np.random.Generator) -> None:
    values = rng.normal(0.1, 0.2, (5, 8))
    low, high = stats.crossed_interval(values)
    means = []
    for _ in range(4000):
        rows, columns = rng.integers(5, size=5), rng.integers(8, size=8)
        means.append(values[rows][:, columns].mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.015)
    assert stats.crossed_interval(values) == (low, high)
    # One draw: only the cases vary. A case that a draw lacks counts with the others.
    assert stats.crossed_interval([[0.5, 0.5]]) == (0.5, 0.5)
    assert stats.crossed_interval([[0.2, np.nan, 0.2], [np.nan, 0.2, 0.2]]) == pytest.approx((0.2, 0.2))
    assert all(np.isnan(bound) for bound in stats.crossed_interval([[0.5], [0.6]]))
    assert all(np.isnan(bound) for bound in stats.crossed_interval([[np.nan, np.nan]]))
    with pytest.raises(UserError, match="confidence"):
        stats.crossed_interval(values, confidence=95)
