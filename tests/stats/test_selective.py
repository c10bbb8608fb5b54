from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmdm import stats


def test_curve_by_hand() -> None:
    found = stats.risk_coverage([0.4, 0.0, 1.0, 0.2], [0.3, 0.1, 0.2, 0.9])
    assert found.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert found.risk == pytest.approx([0, 0.5, 1.4 / 3, 0.4])
    assert found.aurc == pytest.approx((0 + 0.5 + 1.4 / 3 + 0.4) / 4)
    assert found.best == pytest.approx((0 + 0.1 + 0.2 + 0.4) / 4)
    assert found.chance == pytest.approx(0.4)
    assert found.undefined == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_ties_are_the_mean_over_all_orders(pairs: list[tuple[int, int]]) -> None:
    errors, doubts = (np.array(column, float) for column in zip(*pairs, strict=True))
    found = stats.risk_coverage(errors, doubts)
    # Random tiny differences decide ties: many of them, averaged.
    rng = np.random.default_rng(0)
    keys = doubts + rng.uniform(0, 0.5, (3000, len(errors)))
    curves = np.cumsum(errors[np.argsort(keys, axis=1)], axis=1) / np.arange(1, len(errors) + 1)
    assert found.aurc == pytest.approx(curves.mean(), abs=0.1)
    assert found.best <= found.aurc + 1e-12
    backwards = stats.risk_coverage(errors[::-1], doubts[::-1])
    assert backwards.risk == pytest.approx(found.risk)


def test_certainty_about_everything_is_chance(rng: np.random.Generator) -> None:
    errors = rng.random((5, 7))
    flat = stats.risk_coverage(errors, np.zeros((5, 7)))
    assert (flat.aurc, flat.chance) == pytest.approx((errors.mean(), errors.mean()))
    perfect = stats.risk_coverage(errors, errors)
    assert perfect.aurc == pytest.approx(perfect.best)
    assert perfect.aurc < flat.aurc < stats.risk_coverage(errors, -errors).aurc


def test_what_has_no_value_is_counted() -> None:
    found = stats.risk_coverage([0.5, math.nan, math.inf, 1.0, 0.0], [0.1, 0.2, 0.3, math.nan, math.inf])
    assert found.undefined == 3
    assert found.risk == pytest.approx([0.5, 0.25])
    empty = stats.risk_coverage([], [])
    assert math.isnan(empty.aurc)
    assert json.dumps(empty.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="one shape"):
        stats.risk_coverage([1, 2], [1])
