"""Average precision of all cases of an evaluation together: a number of the set, which no mean over cases gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmdm.metrics.detection import average_precision
from medmdm.reports.rendering import METRICS, interval_text, number_text
from medmdm.reports.scoring import ScoredCase
from medmdm.stats import jackknife_interval
from medmdm.stats.statistics import independent_units

_PARTS = 50  # of the units at most, each of which is left out in turn


def pooled_precision(cases: Sequence[ScoredCase]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return AP of all cases together by metric, with its interval; empty where it is not known of every case.

    The interval is the jackknife's over patients, where there are enough of them, or else over images; of more than
    50 units, over 50 parts of them.
    """
    images = [case.matches for case in cases if case.matches is not None]
    if not images or len(images) < len(cases):
        return {}
    patients = [case.patient for case in cases]
    by_patient = independent_units(np.zeros(len(cases)), patients).name == "patients"
    unit = np.unique(np.array(patients, str), return_inverse=True)[1] if by_patient else np.arange(len(cases))
    part = unit % _PARTS
    every = average_precision(images)
    parts: list[int] = np.unique(part).tolist() if part.any() else []
    without = [average_precision([m for m, p in zip(images, part, strict=True) if p != one]) for one in parts]
    return {key: (value, jackknife_interval(value, [one[key] for one in without])) for key, value in every.items()}


def precision_sentence(pooled: dict[str, tuple[float, tuple[float, float]]]) -> list[str]:
    """Say it in a sentence, which stands among the notes of a report."""
    if not pooled or not all(np.isfinite(value) for value, _ in pooled.values()):
        return []
    numbers = [
        f"{METRICS[key].title} {number_text(value)}"
        + ("" if np.isnan(interval).any() else f" (95 % interval {interval_text(interval)})")
        for key, (value, interval) in pooled.items()
    ]
    return [f"Detection, COCO's average precision of all cases together: {', '.join(numbers)}."]
