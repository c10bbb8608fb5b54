"""Numbers and sentences as a report writes them, the same in its text and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.definitions import METRICS

__all__ = [
    "counted",
    "first_line",
    "interval_text",
    "metric_title",
    "number_text",
    "p_text",
    "paper_rows",
    "provenance_title",
    "unit_sentence",
]

_PROVENANCES = {
    "inductive": "Inductive: new images, no patient known to be shared",
    "patients shared": "Patients shared: new images of patients that the encoder knows",
    "transductive": "Transductive: the encoder has seen test images",
    "unknown": "Unknown: nobody can say what the encoder has seen",
}


def counted(number: int, thing: str, one: str = "", many: str = "") -> str:
    """Return ``"1 case"``, ``"2 cases"``, followed by ``one`` or by ``many``: ``"1 case is"``, ``"2 cases are"``."""
    words = (str(number), thing if number == 1 else f"{thing}s", one if number == 1 else many)
    return " ".join(word for word in words if word)


def first_line(summary: Mapping[str, Any]) -> str:
    """Return what every report begins with: how many cases the numbers are of, and how many are missing."""
    cases = summary["cases"]
    patients = "" if cases["patients"] is None else f" of {counted(cases['patients'], 'patient')}"
    return f"{counted(cases['scored'], 'case')}{patients} scored, {cases['excluded'] or 'none'} excluded"


def number_text(value: float | None, distance: bool = False, signed: bool = False) -> str:
    """Return a score with four digits, a distance with two, a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    digits = 2 if distance else 4
    value = round(value, digits) or 0.0  # no sign of a zero
    text = f"{value:{'+' if signed and value else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval_text(interval: Sequence[float | None], distance: bool = False, signed: bool = False) -> str:
    """Return ``"0.8012 to 0.8345"``; of a score what is between 0 and 1, of a distance what is above 0."""
    low, high = interval
    if low is None or high is None:
        return "\N{EN DASH}"
    if not signed:
        low, high = max(low, 0.0), high if distance else min(high, 1.0)
    return " to ".join(number_text(bound, distance, signed) for bound in (low, high))


def p_text(value: float | None) -> str:
    """Return a p-value with three digits."""
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def metric_title(key: str, unit: str) -> str:
    """Return the name of a metric, with the unit where it is a distance."""
    metric = METRICS[key]
    if not metric.distance:
        return metric.title
    return f"{metric.title} ({'pixels' if key == 'object_hausdorff' else unit})"


def unit_sentence(summary: Mapping[str, Any]) -> str:
    """Say what the mean and the interval are taken over."""
    dice = summary["scores"]["dice"]
    what = "patients (each the mean of its images)" if dice["unit"] == "patients" else "images"
    method = "Student's t" if dice["interval_name"] == "t" else "BCa bootstrap"
    classes = len(summary["classes"]) - 1
    macro = f" Each case's score is the mean over {classes} classes, those that it holds." if classes > 1 else ""
    return (
        f"Mean, median and standard deviation (SD) are over {what}, never over pixels or slices; intervals are nominal "
        f"{100 * dice['confidence']:.0f} % intervals of the mean ({method}).{macro} Pooled: as if all cases were one."
    )


def provenance_title(kind: str) -> str:
    """Return in words what the encoder has seen."""
    return _PROVENANCES[kind]


def paper_rows(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the paper's conventions: label, and percent as the paper prints them."""
    rows = []
    for name in ("dice", "iou", "aji"):
        entry = block[name]
        value = number_text(None) if entry["mean"] is None else f"{100 * entry['mean']:.2f}"
        spread = "" if entry["sd"] is None else f" ± {100 * entry['sd']:.2f}"
        rows.append((entry["label"], value + spread))
    return rows
