"""Is one run better than another on the same cases, or is it chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medmdm.errors import UserError
from medmdm.stats.intervals import CONFIDENCE, RESAMPLES, Intervals, Result, intervals
from medmdm.stats.statistics import independent_units

EXACT_UP_TO = 16  # pairs whose 65 536 combinations of signs are all tried


@dataclass(frozen=True)
class SignFlips(Result):
    """The outcome of a two-sided sign-flip permutation test."""

    p_value: float  # NaN without units
    exact: bool  # whether all combinations of signs were tried
    smallest_p: float  # that so many units can give


@dataclass(frozen=True)
class Comparison(Result):
    """Two runs on the same cases; differences are A - B.

    Args:
        unit: what was counted, ``"patients"`` or ``"images"``.
        n: number of units with a difference.
        difference: mean difference over units.
        intervals: of the mean difference.
        test: whether it may be chance.
        wins: units where A is better.
        ties: units where they are equal.
        losses: units where B is better.
        undefined: cases where a run has no finite value, left out of everything above; ``warnings`` says of which run.
        n_patients: patients with a difference; ``None`` where they are not known.
        warnings: sentences to print with the numbers.
    """

    unit: str
    n: int
    difference: float
    intervals: Intervals
    test: SignFlips
    wins: int
    ties: int
    losses: int
    undefined: int
    n_patients: int | None
    warnings: tuple[str, ...]


def paired(
    a: ArrayLike,
    b: ArrayLike,
    groups: Iterable[Any] | None = None,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Compare two runs on the same cases.

    Args:
        a: the metric of run A for each case, ``[cases]``.
        b: of run B for the same cases in the same order.
        groups: the patient of each case, ``None`` where not known; where there are enough patients the differences of
            each one's images are averaged first.
        higher_is_better: what counts as a win; false for distances.
        confidence: nominal coverage of the intervals.
        seed: of the permutations and the bootstrap.

    Raises:
        ValueError: the lists differ in length.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"two lists of the same cases are needed, got shapes {first.shape} and {second.shape}")
    defined = np.isfinite(first) & np.isfinite(second)
    differences = np.full(len(first), np.nan)
    differences[defined] = first[defined] - second[defined]
    units = independent_units(differences, groups)
    values, n, undefined = units.values, len(units.values), int((~defined).sum())
    p_value, exact = sign_flip_test(values, seed=seed)
    smallest_p = 2.0 ** (1 - n) if exact else 2 / (RESAMPLES + 1)
    warnings = list(units.warnings)
    if undefined:
        only_a, only_b = (int((~defined & np.isfinite(other)).sum()) for other in (second, first))
        counts = f"{only_a} have no finite value in A only, {only_b} in B only, {undefined - only_a - only_b} in both"
        warnings.append(f"{undefined} of {len(first)} cases are left out: {counts}.")
    if n and smallest_p > 1 - confidence:
        warnings.append(f"With {n} {units.name} no difference, however large, could give p below {smallest_p:.2g}.")
    # Equal up to rounding: means of a patient's images can differ in their last digit.
    better, tie = values if higher_is_better else -values, abs(values) <= 1e-12
    wins, losses = (int((~tie & side).sum()) for side in (better > 0, better < 0))
    return Comparison(
        unit=units.name,
        n=n,
        difference=float(values.mean()) if n else math.nan,
        intervals=intervals(values, confidence, seed),
        test=SignFlips(float(p_value), exact, min(smallest_p, 1.0)),
        wins=wins,
        ties=int(tie.sum()),
        losses=losses,
        undefined=undefined,
        n_patients=units.n_patients,
        warnings=tuple(warnings),
    )


def sign_flip_test(
    differences: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[NDArray[np.float64] | np.float64, bool]:
    """Test whether paired differences are symmetric about 0 (Fisher's permutation test), by SciPy.

    If two runs are equally good, each difference could as well have had the other sign. The p-value is the share of
    such lists of signs with a mean at least as far from 0, twice the smaller tail; where a sample of them is drawn the
    observed list is counted in, so that p is never 0.

    Args:
        differences: finite, one for each independent unit, ``[..., n]``.
        resamples: lists of signs to draw where there are too many to try all.
        seed: of these draws.

    Returns:
        The p-values, ``[...]`` (NaN without differences), and whether all lists were tried.
    """
    values = np.asarray(differences, np.float64)
    exact = (n := values.shape[-1]) <= EXACT_UP_TO
    if n < 2:  # of two lists of signs each is as far out as the other
        return np.full(values.shape[:-1], 1.0 if n else np.nan)[()], exact
    sizes = abs(values).mean(-1, keepdims=True)
    result = stats.permutation_test(
        (values / np.where(sizes > 0, sizes, 1.0),),
        # Without the last digits: sums of the same numbers in another order must count as equal.
        lambda signed, axis: np.round(signed.mean(axis=axis), 12),
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=2**n if exact else resamples,
        batch=max(1, (1 << 20) // values.size),
        rng=np.random.default_rng(seed),
    )
    return result.pvalue, exact


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values for their number (Holm 1979): at a level of 5 % the chance of any false finding is at most 5 %.

    Args:
        p_values: of all comparisons that were made; NaN for one that could not be, which does not count.

    Returns:
        The adjusted p-values in the same order.

    Raises:
        UserError: a value lies outside [0, 1].
    """
    values = np.asarray(p_values, np.float64)
    if ((values < 0) | (values > 1)).any():
        raise UserError(f"p-values lie between 0 and 1, got {values.tolist()}.")
    adjusted = np.full(values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(values))
    order = made[np.argsort(values[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


def with_holm(outcomes: Iterable[Mapping[str, Any]], key: str = "p_value") -> list[dict[str, Any]]:
    """Return outcomes of one table with ``p_holm`` added, the p-value corrected for the number of tests in it.

    Args:
        outcomes: each with a p-value, ``None`` where there was no test.
        key: of that p-value.
    """
    rows = [*outcomes]
    adjusted = holm([math.nan if row[key] is None else row[key] for row in rows]).tolist()
    return [{**row, "p_holm": None if math.isnan(p) else p} for row, p in zip(rows, adjusted, strict=True)]
