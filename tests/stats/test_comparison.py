from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medmdm import stats
from medmdm.errors import UserError

NAN, INF = math.nan, math.inf


def all_signs(values: np.ndarray) -> float:
    """Return the two-sided p-value over all lists of signs."""
    sums = np.array(list(itertools.product([1, -1], repeat=len(values)))) @ values
    return float((abs(sums) >= abs(values.sum()) - 1e-12).mean())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2, 0.4]), min_size=1, max_size=9))
@example([-0.1, -0.1, -0.1, 0.2, 0.2, 0.2, -0.3])  # their sum is 0 but for rounding
def test_sign_flips_are_exact_for_few(differences: list[float]) -> None:
    p_value, exact = stats.sign_flip_test(differences)
    assert exact
    assert p_value == pytest.approx(all_signs(np.array(differences)))


def test_sign_flips_are_drawn_for_many(rng: np.random.Generator) -> None:
    differences = rng.normal(0.4, 1, 18) + 0.3
    p_value, exact = stats.sign_flip_test(differences)
    expected = all_signs(differences)
    assert not exact
    assert 0.02 < expected < 0.5, expected
    assert abs(p_value - expected) < 4 * math.sqrt(2 * expected / 9999)  # twice the smaller tail of 9999 draws
    assert stats.sign_flip_test(differences) == (p_value, False)
    assert stats.sign_flip_test(np.full(30, 0.1))[0] == pytest.approx(2 / 10_000)


def test_sign_flips_by_rows(rng: np.random.Generator) -> None:
    rows = rng.normal(0.3, 1, (2, 3, 7))
    rows[1, 2] = 0
    p_values, exact = stats.sign_flip_test(rows)
    assert (exact, p_values.shape) == (True, (2, 3))
    assert p_values.ravel() == pytest.approx([all_signs(row) for row in rows.reshape(6, 7)])
    assert p_values[1, 2] == 1


def test_pairs(rng: np.random.Generator) -> None:
    a, b = rng.random((2, 25))
    b[:3] = a[:3]
    found = stats.paired(a, b)
    assert (found.unit, found.n, found.undefined) == ("images", 25, 0)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.intervals.t_interval == pytest.approx(tuple(stats.t_interval(a - b)))
    assert found.intervals.bca_interval == pytest.approx(tuple(stats.bca_interval(a - b)))
    assert (found.test.p_value, found.test.exact) == stats.sign_flip_test(a - b)
    assert (found.wins, found.ties, found.losses) == ((a > b).sum(), 3, (a < b).sum())
    assert found.warnings == ()
    swapped, lower = stats.paired(b, a), stats.paired(a, b, higher_is_better=False)
    assert (swapped.difference, lower.difference) == (-found.difference, found.difference)
    assert (swapped.wins, swapped.losses) == (found.losses, found.wins)
    assert (lower.wins, lower.ties, lower.losses) == (found.losses, 3, found.wins)
    same = stats.paired(a, a)
    assert (same.difference, same.test.p_value, same.ties) == (0, 1, 25)


def test_patients_are_averaged_first(rng: np.random.Generator) -> None:
    a, b = rng.random((2, 30))
    patients = np.arange(30) % 10
    found = stats.paired(a, b, patients)
    units = [(a - b)[patients == number].mean() for number in range(10)]
    assert (found.unit, found.n, found.n_patients) == ("patients", 10, 10)
    assert found.difference == pytest.approx(np.mean(units))
    assert found.test.p_value == pytest.approx(all_signs(np.array(units)))
    assert found.test.smallest_p == 2 / 2**10


def test_copied_images_do_not_make_a_difference_more_certain(rng: np.random.Generator) -> None:
    a, b = rng.normal(0.1, 0.3, 10), np.zeros(10)
    once = stats.paired(a, b, range(10))
    tenfold = stats.paired(np.tile(a, 10), np.tile(b, 10), list(range(10)) * 10)
    assert tenfold.test.p_value == pytest.approx(once.test.p_value)
    assert tenfold.intervals.t_interval == pytest.approx(once.intervals.t_interval)
    assert stats.paired(np.tile(a, 10), np.tile(b, 10)).test.p_value < once.test.p_value


def test_cases_without_a_value_are_left_out_and_named_by_run() -> None:
    found = stats.paired([0.5, NAN, INF, 0.7, NAN, INF], [0.4, 0.5, 0.5, NAN, NAN, INF])
    assert (found.n, found.undefined, found.difference) == (1, 5, pytest.approx(0.1))
    assert "5 of 6 cases are left out: 2 have no finite value in A only, 1 in B only, 2 in both." in found.warnings
    entry = found.as_dict()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_too_few_to_find_anything() -> None:
    found = stats.paired([0.9] * 5, [0.1] * 5)
    assert found.test.p_value == found.test.smallest_p == 2 / 2**5
    assert any("could give p below 0.062" in warning for warning in found.warnings)
    assert not any("could give" in warning for warning in stats.paired([0.9] * 6, [0.1] * 6).warnings)
    nothing = stats.paired([], [])
    assert (nothing.n, nothing.test.smallest_p, math.isnan(nothing.test.p_value)) == (0, 1, True)
    with pytest.raises(ValueError, match="same cases"):
        stats.paired([1, 2], [1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    # A hypothesis is rejected if every set of hypotheses with it is, by its smallest p-value times the set's size.
    sets = [s for k in range(len(p_values)) for s in itertools.combinations(range(len(p_values)), k + 1)]
    tests = {s: min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets}
    expected = [max(p for s, p in tests.items() if i in s) for i in range(len(p_values))]
    assert stats.holm(p_values) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert stats.holm([0.04, 0.01, NAN, 0.03]) == pytest.approx([0.06, 0.03, NAN, 0.06], nan_ok=True)
    assert stats.holm([]).size == 0
    with pytest.raises(UserError, match="between 0 and 1"):
        stats.holm([0.5, 1.5])
