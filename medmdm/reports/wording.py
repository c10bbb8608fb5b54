"""Numbers as a report writes them, the same in its text and its page."""

from __future__ import annotations

from collections.abc import Sequence

from medmdm.reports.definitions import METRICS

__all__ = ["counted", "interval_text", "metric_title", "number_text", "p_text"]


def counted(number: int, thing: str, one: str = "", many: str = "") -> str:
    """Return ``"1 case"``, ``"2 cases"``, followed by ``one`` or by ``many``: ``"1 case is"``, ``"2 cases are"``."""
    words = (str(number), thing if number == 1 else f"{thing}s", one if number == 1 else many)
    return " ".join(word for word in words if word)


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
