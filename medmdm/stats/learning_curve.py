"""How a score grows with the number of labelled images, and what more of them may be expected to give."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medmdm.errors import UserError

FEWEST_POINTS = 4  # of a curve of three parameters
FURTHEST = 4  # times the largest number that was measured
_EXPONENTS = np.geomspace(0.05, 3.0, 120)


@dataclass(frozen=True)
class Expected:
    """What a number of labelled images is expected to give.

    Args:
        images: the number.
        score: expected mean over cases.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
    """

    images: int
    score: float
    low: float
    high: float


def power_law(counts: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Fit ``a - b k^-c`` by least squares, with a at most 1, b at least 0 and c between 0.05 and 3.

    Args:
        counts: k, ``[n]``, above 0.
        scores: ``[..., n]``, shares of 1; a curve each.

    Returns:
        a, b and c, each ``[...]``. For each c of a grid a and b are a linear problem: there is no local optimum.
    """
    k, y = np.asarray(counts, float), np.asarray(scores, float)
    best = [np.full(y.shape[:-1], np.inf), *np.zeros((3, *y.shape[:-1]))]
    for c in _EXPONENTS:
        z = k**-c
        centred = z - z.mean()
        b = np.clip(-(y * centred).sum(-1) / (centred**2).sum(), 0, None)
        a = y.mean(-1) + b * z.mean()
        b = np.where(a > 1, np.clip(((1 - y) * z).sum(-1) / (z**2).sum(), 0, None), b)
        a = np.minimum(a, 1.0)
        error = ((y - a[..., None] + b[..., None] * z) ** 2).sum(-1)
        better = error < best[0]
        best = [np.where(better, new, old) for new, old in zip((error, a, b, np.full_like(a, c)), best, strict=True)]
    return best[1], best[2], best[3]


def extrapolate(
    counts: Sequence[int],
    scores: ArrayLike,
    at: Sequence[int],
    groups: Sequence[Hashable] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Expected]:
    """Continue a learning curve to more labelled images by a power law (:func:`power_law`), with intervals.

    The interval is over replicates that draw the draws of labelled images and the groups of scored cases anew. It knows
    nothing of whether the curve goes on as a power law, and of images unlike those that are labelled.

    Args:
        counts: numbers of labelled images, ``[K]``, rising.
        scores: ``[draws, K, cases]``; NaN where a case was not scored.
        at: numbers of images to say it for.
        groups: of the cases, such as their patients, ``[cases]``; None: each stands alone.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the curve has fewer points than :data:`FEWEST_POINTS`, or a number is more than :data:`FURTHEST`
            times the largest measured one.
    """
    values = np.asarray(scores, float)
    if len(counts) < FEWEST_POINTS:
        measured = f"a curve of {len(counts)} points ({', '.join(map(str, counts))} labelled images)"
        need = f"that needs {FEWEST_POINTS} or more, as 8 labelled images of as many patients give"
        raise UserError(f"{measured} cannot be continued: {need}.")
    for number in at:
        if not 1 <= number <= FURTHEST * counts[-1]:
            limit = f"with {counts[-1]} as the most that was measured, only up to {FURTHEST * counts[-1]}"
            raise UserError(f"{number} labelled images are too far: {limit} can be said.")
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    names = list(range(values.shape[2])) if groups is None else list(groups)
    _, group = np.unique(np.array([str(name) for name in names]), return_inverse=True)
    rng = np.random.default_rng([seed, 11])
    curves = [curve_means(filled, known, np.ones(len(values)), np.ones(len(names)))]
    for _ in range(replicates):
        draws = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
        drawn = np.bincount(rng.integers(group.max() + 1, size=group.max() + 1), minlength=group.max() + 1)
        curves.append(curve_means(filled, known, draws, drawn[group]))
    if np.isnan(curves[0]).any():
        raise UserError("a learning curve needs a score for each number of labelled images.")
    every = np.stack(curves)
    a, b, c = power_law(counts, every[~np.isnan(every).any(1)])
    found = []
    for number in at:
        expected = np.clip(a - b * float(number) ** -c, 0, 1)
        low, high = np.percentile(expected[1:], [2.5, 97.5]) if len(expected) > 1 else (np.nan, np.nan)
        found.append(Expected(int(number), float(expected[0]), float(low), float(high)))
    return found


def curve_means(filled: NDArray, known: NDArray, draws: NDArray, cases: NDArray) -> NDArray:
    """Return the mean over draws of their means over cases, ``[K]``; both have weights; NaN where none is known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = (filled * cases).sum(2) / (known * cases).sum(2)
        weights = draws[:, None] * ~np.isnan(each)
        return np.asarray((np.nan_to_num(each) * weights).sum(0) / weights.sum(0))
