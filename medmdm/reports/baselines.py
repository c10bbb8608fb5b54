"""What masks that cost nothing score on the cases of a report, and whether the predicted ones are better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medmdm.reports.rendering import BASELINES, difference_text, number_text
from medmdm.reports.scoring import ScoredCase
from medmdm.stats import paired, summarise


def baseline_scores(
    cases: Sequence[ScoredCase], class_numbers: Sequence[int], patients: Sequence[str | None]
) -> dict[str, Any]:
    """Summarise each baseline on the cases that have a Dice, and the difference of the predicted masks' Dice to it.

    Args:
        cases: with the columns of baselines, those of them that could be scored.
        class_numbers: of which each baseline is summarised too, empty for one class besides the background.
        patients: of the cases.

    Returns:
        By name: ``scores`` and, by class number, ``class_scores``, each ``dice`` and ``iou`` as
        :class:`medmdm.stats.Summary` says them; ``difference`` as :func:`beyond`.
    """
    known = [name for name in BASELINES if any(f"{name}_dice" in case.scores for case in cases)]
    dice = [case.scores["dice"] for case in cases]
    return {
        name: {
            "scores": _summaries(cases, name, "", patients),
            "class_scores": {str(k): _summaries(cases, name, f"_{k}", patients) for k in class_numbers},
            "difference": beyond(dice, _on_same_cases(cases, name, "dice"), patients),
        }
        for name in known
    }


def _summaries(
    cases: Sequence[ScoredCase], name: str, suffix: str, patients: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    return {
        key: summarise(_on_same_cases(cases, name, f"{key}{suffix}"), patients).as_dict() for key in ("dice", "iou")
    }


def _on_same_cases(cases: Sequence[ScoredCase], name: str, key: str) -> list[float]:
    """Return a baseline's column, NaN for the cases in which the predicted mask has no value."""
    rows = [case.scores for case in cases]
    return [r.get(f"{name}_{key}", math.nan) if math.isfinite(r.get(key, math.nan)) else math.nan for r in rows]


def beyond(dice: Iterable[float], baseline: Iterable[float], patients: Iterable[str | None]) -> dict[str, Any]:
    """Compare with a baseline on the same cases.

    Args:
        dice: of the predicted masks.
        baseline: of the others.
        patients: of the cases.

    Returns:
        ``difference``, ``interval`` (Student's, as in comparisons), ``n`` and ``unit``, see
        :class:`medmdm.stats.Comparison`; ``better``: whether the interval lies above 0.
    """
    found = paired([*dice], [*baseline], patients)
    row, low = found.as_dict(), found.intervals.t_interval[0]
    return {
        **{key: row[key] for key in ("difference", "n", "unit")},
        "interval": row["t_interval"],
        "better": bool(low > 0),  # not where it is unknown
    }


def not_better(baselines: Mapping[str, Any]) -> list[str]:
    """Return a sentence if the predicted masks are not shown to be better than the better of the baselines.

    Args:
        baselines: from :func:`baseline_scores`.
    """
    known = {name: one for name, one in baselines.items() if one["scores"]["dice"]["mean"] is not None}
    if not known:
        return []
    name = max(known, key=lambda name: known[name]["scores"]["dice"]["mean"])
    difference = known[name]["difference"]
    if difference["better"]:
        return []
    return [
        f"The masks are not shown to be better than one that costs nothing: {BASELINES[name]} has a mean Dice of "
        f"{number_text(known[name]['scores']['dice']['mean'])} on the same cases ({difference_text(difference)})."
    ]
