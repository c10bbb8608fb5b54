import numpy as np
import pytest
from scipy.optimize import curve_fit

from medmdm.stats.learning_curve import extrapolate, power_law
from tests.made import refused

COUNTS = [1, 2, 4, 8, 16]


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 0.4, 0.5), (0.7, 0.3, 1.2), (0.85, 0.05, 0.2), (0.6, 0.0, 1.0)])
def test_a_made_curve_is_recovered(a: float, b: float, c: float) -> None:
    made = a - b * np.array(COUNTS, float) ** -c
    found = power_law(COUNTS, made)
    assert found[0] - found[1] * 64.0 ** -found[2] == pytest.approx(a - b * 64.0**-c, abs=0.004)
    rng = np.random.default_rng(0)
    scores = made[None, :, None] + 0.02 * rng.standard_normal((30, 1, 1)) + 0.05 * rng.standard_normal((30, 5, 20))
    rows = extrapolate(COUNTS, scores, [32, 64])
    for row in rows:
        assert row.low <= row.score <= row.high
        assert row.low - 0.02 <= a - b * float(row.images) ** -c <= row.high + 0.02
    assert rows == extrapolate(COUNTS, scores, [32, 64])


def test_agrees_with_scipy_where_no_bound_holds() -> None:
    rng = np.random.default_rng(1)
    noisy = 0.8 - 0.4 * np.array(COUNTS, float) ** -0.7 + 0.005 * rng.standard_normal((3, 5))
    found = power_law(COUNTS, noisy)
    for i, y in enumerate(noisy):
        oracle = curve_fit(lambda k, a, b, c: a - b * k**-c, COUNTS, y, p0=(0.8, 0.4, 0.7))[0]
        mine = [float(part[i]) for part in found]
        assert mine[0] - mine[1] * 64 ** -mine[2] == pytest.approx(oracle[0] - oracle[1] * 64 ** -oracle[2], abs=0.003)


def test_bounds_hold_and_a_falling_curve_is_flat() -> None:
    a, b, _ = power_law(COUNTS, [[0.2, 0.5, 0.8, 1.0, 1.2], [0.8, 0.7, 0.6, 0.5, 0.4]])
    assert a[0] == 1.0
    assert b[1] == 0.0
    assert a[1] == pytest.approx(0.6)


def test_what_is_not_scored_counts_nothing_and_patients_are_drawn_whole() -> None:
    scores = np.tile(0.8 - 0.4 / np.array(COUNTS, float), (6, 1))[:, :, None] + np.zeros((1, 1, 8))
    holes = scores.copy()
    holes[0, :, 3:] = holes[1, 2, :7] = np.nan
    assert extrapolate(COUNTS, holes, [32])[0].score == pytest.approx(extrapolate(COUNTS, scores, [32])[0].score)
    spread = scores + np.repeat([-0.2, 0.2, -0.1, 0.1], 2)
    alone = extrapolate(COUNTS, spread, [32])[0]
    whole = extrapolate(COUNTS, spread, [32], groups=["a", "a", "b", "b", "c", "c", "d", "d"])[0]
    assert whole.high - whole.low > alone.high - alone.low


def test_too_few_points_and_too_far_are_refused() -> None:
    scores = np.full((4, 3, 5), 0.5)
    refused("a curve of 3 points", extrapolate, [1, 2, 4], scores, [8])
    refused("65 labelled images are too far.*up to 64", extrapolate, COUNTS, np.full((4, 5, 5), 0.5), [65])
    refused("0 labelled images", extrapolate, COUNTS, np.full((4, 5, 5), 0.5), [0])
    unscored = np.full((4, 5, 5), 0.5)
    unscored[:, 2] = np.nan
    refused("a score for each number", extrapolate, COUNTS, unscored, [8])
