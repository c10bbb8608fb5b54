"""Does the uncertainty know where the errors are? Risk against coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medmdm.stats.intervals import Result


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
    _, group = np.unique(doubts, return_inverse=True)
    level = (np.bincount(group, losses) / np.bincount(group))[np.sort(group)]
    risk = np.cumsum(level) / count
    best = np.cumsum(np.sort(losses)) / count
    return RiskCoverage(
        coverage=count / len(losses),
        risk=risk,
        aurc=float(risk.mean()),
        best=float(best.mean()),
        chance=float(losses.mean()),
        undefined=undefined,
    )
