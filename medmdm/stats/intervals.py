"""95 % intervals of a mean: how far it may be from the mean over all cases like these."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medmdm.errors import UserError


class Result:
    """A frozen dataclass of numbers, which may hold others."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON, inner results flat: ``None`` for what is not a finite number."""
        content: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            content |= value.as_dict() if isinstance(value, Result) else {field.name: json_ready(value)}
        return content


def json_ready(content: Any) -> Any:
    """Return ``content`` with plain numbers and lists, and ``None`` for NaN and infinities, which JSON lacks."""
    if isinstance(content, dict):
        return {str(key): json_ready(entry) for key, entry in content.items()}
    if isinstance(content, (list, tuple, np.ndarray)):
        return [json_ready(entry) for entry in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


CONFIDENCE = 0.95
RESAMPLES = 9999

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Intervals(Result):
    """Two intervals of one mean.

    Args:
        t_interval: lower and upper bound of Student's.
        bca_interval: of the bootstrap's.
        confidence: nominal coverage of both.
    """

    t_interval: tuple[float, float]
    bca_interval: tuple[float, float]
    confidence: float


def intervals(values: NDArray[np.float64], confidence: float = CONFIDENCE, seed: int = 0) -> Intervals:
    """Return both intervals of the mean of ``values``, ``[n]``; see :func:`t_interval` and :func:`bca_interval`."""
    (low, high), bca = t_interval(values, confidence), bca_interval(values, confidence, seed=seed)
    return Intervals((float(low), float(high)), (float(bca[0]), float(bca[1])), confidence)


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Bounds:
    """Return Student's interval of the mean.

    Args:
        values: finite and independent, ``[..., n]``.
        confidence: nominal coverage, in (0, 1).

    Returns:
        Lower and upper bounds, ``[...]`` each; NaN where n is below 2.

    Raises:
        ValueError: a value is not finite.
        UserError: ``confidence`` does not lie between 0 and 1.
    """
    samples = _samples(values, confidence)
    if (n := samples.shape[-1]) < 2:
        return np.full(samples.shape[:-1], np.nan), np.full(samples.shape[:-1], np.nan)
    middle = samples.mean(-1)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * samples.std(-1, ddof=1) / np.sqrt(n)
    return middle - half, middle + half


def bca_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Bounds:
    """Return the bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), by SciPy.

    It stays within the range of the values and follows their skew. Values that are all equal give an interval
    without width. Values, confidence, return value and errors as for :func:`t_interval`.

    Args:
        values: finite and independent, ``[..., n]``.
        confidence: nominal coverage.
        resamples: how often to draw n values with replacement.
        seed: of these draws.
    """
    samples = _samples(values, confidence)
    if samples.shape[-1] < 2:
        return np.full(samples.shape[:-1], np.nan), np.full(samples.shape[:-1], np.nan)
    low, high = np.array(samples.mean(-1)), np.array(samples.mean(-1))
    varied = np.ptp(samples, -1) > 0
    if varied.any():
        result = stats.bootstrap(
            (samples[varied],),
            np.mean,
            axis=-1,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, (1 << 21) // samples[varied].size),
            method="BCa",
            rng=np.random.default_rng(seed),
        )
        low[varied], high[varied] = result.confidence_interval
    return low[()], high[()]


def jackknife_interval(value: float, without: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Student's interval of a number that is of a whole set and no mean, by the jackknife (Tukey 1958).

    Args:
        value: the number of all units.
        without: of all but one unit, or but one of equally large parts, each in turn, ``[n]``.
        confidence: nominal coverage, in (0, 1).

    Returns:
        Lower and upper bound around ``value``, of a mean those of :func:`t_interval`; NaN where n is below 2 or a
        number is not finite.

    Raises:
        UserError: ``confidence`` does not lie between 0 and 1.
    """
    _samples([], confidence)  # checks the confidence
    numbers = np.asarray(without, np.float64)
    if len(numbers) < 2 or not np.isfinite([value, *numbers]).all():
        return math.nan, math.nan
    low, high = t_interval((len(numbers) - 1) * (numbers.mean() - numbers), confidence)
    return value + float(low), value + float(high)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: ArrayLike,
    confidence: float = CONFIDENCE,
    resamples: int = 1999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a number that is no mean, whole groups being drawn.

    Args:
        statistic: of cases, given by their places, which may come several times; NaN where it is undefined.
        groups: numbers of the groups of all cases from 0 on, such as their patients, ``[n]``.
        confidence: nominal coverage, in (0, 1).
        resamples: how often to draw as many groups with replacement; those without a value are left out.
        seed: of these draws.

    Returns:
        Lower and upper bound; NaN where there are fewer than two groups, or no resample has a value.

    Raises:
        UserError: ``confidence`` does not lie between 0 and 1.
    """
    _samples([], confidence)  # checks the confidence
    numbers = np.asarray(groups, np.int64)
    members = [np.flatnonzero(numbers == group) for group in np.unique(numbers)]
    if len(members) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    values = np.array([statistic(np.concatenate([members[group] for group in one])) for one in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def crossed_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over two crossed factors, both drawn anew (Owen 2007).

    The mean is that of the columns' means. A difference of two methods needs it where other labelled images as well as
    other test cases could have been drawn.

    Args:
        values: ``[draws, cases]``; NaN where a draw has no value of a case.
        confidence: nominal coverage, in (0, 1).
        resamples: how often to draw as many draws and as many cases with replacement.
        seed: of these draws.

    Returns:
        Lower and upper bound; NaN where there are fewer than two cases, or none has a value. With one draw only the
        cases are drawn.

    Raises:
        UserError: ``confidence`` does not lie between 0 and 1.
    """
    samples = np.asarray(values, np.float64)
    _samples([], confidence)  # checks the confidence
    if samples.shape[1] < 2:
        return math.nan, math.nan
    rng, (draws, cases) = np.random.default_rng(seed), samples.shape
    times_drawn = rng.multinomial(draws, np.full(draws, 1 / draws), resamples)
    counts, sums = times_drawn @ np.isfinite(samples), times_drawn @ np.nan_to_num(samples)
    weights = rng.multinomial(cases, np.full(cases, 1 / cases), resamples) * (counts > 0)
    has_any = weights.any(1)
    if not has_any.any():
        return math.nan, math.nan
    means = (weights * sums / np.maximum(counts, 1)).sum(1)[has_any] / weights.sum(1)[has_any]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _samples(values: ArrayLike, confidence: float) -> NDArray[np.float64]:
    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, got {confidence}.")
    samples = np.asarray(values, np.float64)
    if not np.isfinite(samples).all():
        raise ValueError("an interval needs finite values; leave undefined ones out and count them")
    return samples


@dataclass(frozen=True)
class RiskCoverage(Result):
    """The mean error of the most certain part, for every size of that part.

    Args:
        coverage: share that is kept, 1/n, 2/n, ..., 1.
        risk: mean error of what is kept.
        aurc: area under the curve, the mean of ``risk``: lower is better.
        best: the area if the errors themselves were the uncertainty; ``aurc`` cannot be lower.
        chance: the area expected of an uncertainty that knows nothing, the mean error.
        undefined: values left out for want of an error or an uncertainty.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float
    best: float
    chance: float
    undefined: int


def risk_coverage(errors: ArrayLike, uncertainty: ArrayLike) -> RiskCoverage:
    """Compute the risk-coverage curve and the area under it (Geifman and El-Yaniv 2017).

    Args:
        errors: the loss of each case or pixel, such as 1 - Dice or wrong/right as 1/0; of any shape.
        uncertainty: of the same; only its order matters. Equal ones are kept or left together: inside such a group
            the expectation over its orders is taken, so that the result does not depend on the order of the input.

    Raises:
        ValueError: the shapes differ.
    """
    losses, doubts = np.asarray(errors, np.float64), np.asarray(uncertainty, np.float64)
    if losses.shape != doubts.shape:
        raise ValueError(f"errors and uncertainty must have one shape, got {losses.shape} and {doubts.shape}")
    defined = np.isfinite(losses) & ~np.isnan(doubts)
    losses, doubts = losses[defined], doubts[defined]
    undefined = int(defined.size - defined.sum())
    if not losses.size:
        nothing = np.zeros(0)
        return RiskCoverage(nothing, nothing, math.nan, math.nan, math.nan, undefined)
    count = np.arange(1, len(losses) + 1)
    group = np.unique(doubts, return_inverse=True)[1]
    level = (np.bincount(group, losses) / np.bincount(group))[np.sort(group)]
    risk, best = np.cumsum(level) / count, np.cumsum(np.sort(losses)) / count
    aurc, least, chance = (float(curve.mean()) for curve in (risk, best, losses))
    return RiskCoverage(count / len(losses), risk, aurc, least, chance, undefined)
