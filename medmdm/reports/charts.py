"""Charts as inline SVG: distributions, curves and intervals, readable in print, in grey and without a mouse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmdm.reports.markup import Markup, join, raw, tag

__all__ = ["HATCH", "Band", "Line", "Strip", "curves", "differences", "interval_bar", "intervals", "strips", "ticks"]

# Lines are told apart by dashes and markers first and by colour second, so that grey copies stay readable.
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 4", "12 4", "6 2 2 2 2 2")
_MARKERS = ("circle", "square", "triangle", "diamond")
_STYLES = 8


@dataclass(frozen=True)
class Strip:
    """The values of one quantity over cases, drawn as points above a box.

    Args:
        name: at its left.
        values: one a case.
        cases: the number of the case each belongs to, by which it is opened.
        labels: what a point says when pointed at.
        mean: drawn as a diamond, with its interval.
        interval: low and high, ``None`` without one.
    """

    name: str
    values: Sequence[float]
    cases: Sequence[int]
    labels: Sequence[str]
    mean: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend.
        x: rising.
        y: of the same length.
        low: lower ends of whiskers, ``None`` without.
        high: upper ends.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Band:
    """A row of a chart of intervals.

    Args:
        name: at its left.
        value: the dot.
        low: left end of the interval; ``None`` if there is none.
        high: right end.
        note: at its right.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from the first at or below ``low`` to the first at or above ``high``.

    Args:
        low: smallest value to show.
        high: largest one.
        count: about as many steps.
    """
    if not high - low > 1e-9 * max(1.0, abs(low), abs(high)):  # one value, up to rounding
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def strips(rows: Sequence[Strip], axis: str) -> Markup:
    """Draw one strip below another on a common axis: points, box of quartiles, median line, mean with interval."""
    left, right, height, top = 168.0, 24.0, 74.0, 6.0
    width = 940.0
    marks = _unit_ticks([value for row in rows for value in row.values])
    scale = _Scale(marks[0], marks[-1], left, width - right)
    bottom = top + height * len(rows)
    parts = [_grid(scale, marks, top, bottom, axis)]
    for number, row in enumerate(rows):
        middle = top + height * (number + 0.5)
        parts.append(_text(left - 14, middle + 4, row.name, "end", "name"))
        parts.append(_points(row, scale, middle))
        parts.append(_box(row, scale, middle + 20))
    description = "; ".join(f"{row.name}: mean {row.mean:.3f}, {len(row.values)} values" for row in rows)
    return _svg(width, bottom + 42, "Distribution over cases", description, join(*parts))


def curves(
    lines: Sequence[Line], x_axis: str, y_axis: str, title: str, x_marks: Sequence[float] | None = None
) -> Markup:
    """Draw lines with a legend below; each has its own dashes and markers.

    Args:
        lines: up to eight can be told apart without colour.
        x_axis: what x is.
        y_axis: what y is.
        title: for those who cannot see the picture.
        x_marks: numbers that x takes, drawn at equal distances; ``None`` for a continuous axis.
    """
    left, right, top, plot = 64.0, 20.0, 12.0, 280.0
    width = 720.0
    y_values = [v for line in lines for group in (line.y, line.low or (), line.high or ()) for v in group]
    y_ticks = ticks(min(y_values), max(y_values))
    y_scale = _Scale(y_ticks[0], y_ticks[-1], top + plot, top)
    if x_marks is None:
        x_values = [x for line in lines for x in line.x]
        marks = ticks(min(x_values), max(x_values))
        x_scale = _Scale(marks[0], marks[-1], left, width - right)
        position = {x: x_scale(x) for x in {*x_values, *marks}}
    else:
        marks = list(x_marks)
        step = (width - right - left) / max(len(marks), 1)
        position = {x: left + step * (i + 0.5) for i, x in enumerate(marks)}
    parts: list[Markup] = []
    for value in y_ticks:
        y = y_scale(value)
        parts.append(tag("line", x1=left, x2=width - right, y1=_n(y), y2=_n(y), class_="grid"))
        parts.append(_text(left - 8, y + 4, _number(value), "end", "tick"))
    for value in marks:
        parts.append(_text(position[value], top + plot + 18, _number(value), "middle", "tick"))
    parts.append(_text((left + width - right) / 2, top + plot + 38, x_axis, "middle", "axis"))
    parts.append(tag("text", y_axis, transform=f"translate(14 {_n(top + plot / 2)}) rotate(-90)", class_="axis middle"))
    legend_top = top + plot + 60
    for number, line in enumerate(lines):
        shift = (number - (len(lines) - 1) / 2) * 5 if x_marks is not None else 0.0
        points = [(position[x] + shift, y_scale(y)) for x, y in zip(line.x, line.y, strict=True)]
        for i, (x, _) in enumerate(points):
            if line.low is not None and line.high is not None:
                ends = {"y1": _n(y_scale(line.low[i])), "y2": _n(y_scale(line.high[i]))}
                parts.append(tag("line", x1=_n(x), x2=_n(x), **ends, class_=f"whisker {_style(number)}"))
        parts.append(_polyline(points, number))
        if len(points) <= 24:
            parts += [_marker(x, y, number) for x, y in points]
        row, column = divmod(number, 2)
        x, y = left + column * 310, legend_top + row * 18
        parts.append(_polyline([(x, y - 4), (x + 32, y - 4)], number))
        if len(points) <= 24:
            parts.append(_marker(x + 16, y - 4, number))
        parts.append(_text(x + 40, y, _shortened(line.name, 40), "start", "tick"))
    height = legend_top + 18 * math.ceil(len(lines) / 2)
    description = "; ".join(f"{line.name}: from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
    return _svg(width, height, title, description, join(*parts))


def interval_bar(value: float, low: float | None, high: float | None) -> Markup:
    """Draw a mean and its interval on a line from 0 to 1, small enough for a cell of a table."""
    width, height = 120.0, 16.0
    scale = _Scale(0.0, 1.0, 4.0, width - 4)
    parts = [tag("line", x1=4, x2=width - 4, y1=8, y2=8, class_="grid")]
    parts += [tag("line", x1=_n(scale(t)), x2=_n(scale(t)), y1=5, y2=11, class_="grid") for t in (0.0, 0.5, 1.0)]
    if low is not None and high is not None:
        left, right = scale(max(low, 0.0)), scale(min(high, 1.0))
        parts.append(tag("line", x1=_n(left), x2=_n(right), y1=8, y2=8, class_="interval"))
    parts.append(tag("circle", cx=_n(scale(min(max(value, 0.0), 1.0))), cy=8, r=3.6, class_="dot"))
    size = {"width": int(width), "height": int(height)}
    return tag("svg", *parts, viewBox=f"0 0 {int(width)} {int(height)}", class_="bar", aria_hidden="true", **size)


def intervals(rows: Sequence[Band], axis: str, title: str) -> Markup:
    """Draw values with their intervals below each other, with a line at zero: differences, for example."""
    left, right, height, top = 210.0, 150.0, 30.0, 6.0
    width = 820.0
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    marks = ticks(min(*values, 0.0), max(*values, 0.0))
    scale = _Scale(marks[0], marks[-1], left, width - right)
    bottom = top + height * len(rows)
    parts = [_grid(scale, marks, top, bottom, axis)]
    parts.append(tag("line", x1=_n(scale(0)), x2=_n(scale(0)), y1=top, y2=bottom, class_="zero"))
    for number, row in enumerate(rows):
        y = top + height * (number + 0.5)
        parts.append(_text(left - 14, y + 4, _shortened(row.name, 30), "end", "name"))
        if row.low is not None and row.high is not None:
            parts.append(tag("line", x1=_n(scale(row.low)), x2=_n(scale(row.high)), y1=y, y2=y, class_="interval"))
        parts.append(tag("circle", cx=_n(scale(row.value)), cy=y, r=4.5, class_="dot"))
        parts.append(_text(width - right + 12, y + 4, row.note, "start", "tick"))
    description = "; ".join(f"{row.name}: {row.value:+.3f}" for row in rows)
    return _svg(width, bottom + 42, title, description, join(*parts))


def differences(values: Sequence[float], labels: Sequence[str], axis: str, title: str) -> Markup:
    """Draw a bar a case, from the largest gain to the largest loss; losses are hatched."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    left, right, top, plot = 64.0, 20.0, 10.0, 200.0
    width = 820.0
    marks = ticks(min(0.0, *values), max(0.0, *values))
    scale = _Scale(marks[0], marks[-1], top + plot, top)
    step = (width - left - right) / max(len(values), 1)
    parts: list[Markup] = []
    for value in marks:
        y = _n(scale(value))
        parts.append(tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="zero" if value == 0 else "grid"))
        parts.append(_text(left - 8, scale(value) + 4, _number(value, signed=True), "end", "tick"))
    for place, i in enumerate(order):
        above, below = scale(max(values[i], 0.0)), scale(min(values[i], 0.0))
        box = {"x": _n(left + step * place + 0.1 * step), "width": _n(0.8 * step), "y": _n(above)}
        title_ = tag("title", f"{labels[i]}: {values[i]:+.4f}")
        kind = "gain" if values[i] >= 0 else "loss"
        parts.append(tag("rect", title_, **box, height=_n(max(below - above, 0.5)), class_=kind))
    centre = _n(top + plot / 2)
    parts.append(tag("text", axis, transform=f"translate(14 {centre}) rotate(-90)", class_="axis middle"))
    gains = sum(value > 0 for value in values)
    losses = sum(value < 0 for value in values)
    description = f"{gains} cases gain, {losses} lose"
    return _svg(width, top + plot + 14, title, description, join(*parts))


# The pattern of losses, to stand once in a page that draws differences.
HATCH = raw(
    '<svg class="store" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" class="hatch-ground"/><line x1="0" y1="0" x2="0" y2="5" class="hatch-line"/>'
    "</pattern></defs></svg>"
)


@dataclass(frozen=True)
class _Scale:
    """A linear map of values to the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _unit_ticks(values: Sequence[float]) -> list[float]:
    """Scores get an axis that ends at 1 and starts where they do; other quantities one that starts at 0."""
    if max(values) > 1:
        return ticks(0.0, max(values))
    marks = ticks(min(min(values), 0.9), 1.0)
    return [mark for mark in marks if mark <= 1.0 + 1e-9]


def _grid(scale: _Scale, marks: Sequence[float], top: float, bottom: float, axis: str) -> Markup:
    parts = []
    for mark in marks:
        x = _n(scale(mark))
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(_text(scale(mark), bottom + 16, _number(mark), "middle", "tick"))
    parts.append(_text((scale.start + scale.end) / 2, bottom + 36, axis, "middle", "axis"))
    return join(*parts)


def _points(row: Strip, scale: _Scale, middle: float) -> Markup:
    """Points that would lie on each other go up in a heap; the same values give the same picture."""
    radius = 3.2 if len(row.values) <= 150 else 2.0
    room = 27.0
    taken: list[tuple[float, float]] = []
    placed: list[tuple[float, float, int]] = []
    for i in sorted(range(len(row.values)), key=lambda i: row.values[i]):
        x, rise = scale(row.values[i]), 0.0
        near = [(a, b) for a, b in taken[-60:] if abs(a - x) < 2 * radius]
        while any((a - x) ** 2 + (b - rise) ** 2 < (2 * radius) ** 2 for a, b in near) and rise < room:
            rise += radius / 2
        taken.append((x, min(rise, room)))
        placed.append((x, min(rise, room), i))
    points = [
        tag("circle", tag("title", row.labels[i]), cx=_n(x), cy=_n(middle + 6 - rise), r=radius, data_case=row.cases[i])
        for x, rise, i in placed
    ]
    return tag("g", *points, class_="points")


def _box(row: Strip, scale: _Scale, y: float) -> Markup:
    low, first, median, third, high = (scale(float(q)) for q in np.percentile(row.values, [0, 25, 50, 75, 100]))
    parts = [
        tag("line", x1=_n(low), x2=_n(high), y1=y, y2=y, class_="whisker"),
        tag("rect", x=_n(first), width=_n(max(third - first, 1)), y=y - 5, height=10, class_="box"),
        tag("line", x1=_n(median), x2=_n(median), y1=y - 5, y2=y + 5, class_="median"),
    ]
    if row.interval is not None:
        ends = (max(row.interval[0], scale.low), min(row.interval[1], scale.high))
        parts.append(tag("line", x1=_n(scale(ends[0])), x2=_n(scale(ends[1])), y1=y, y2=y, class_="interval"))
    x = scale(row.mean)
    parts.append(tag("path", d=f"M{_n(x)} {y - 6}l5 6-5 6-5-6z", class_="mean"))
    return join(*parts)


def _polyline(points: Sequence[tuple[float, float]], number: int) -> Markup:
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    dashes = _DASHES[number % len(_DASHES)]
    return tag("polyline", points=path, stroke_dasharray=dashes or None, class_=f"line {_style(number)}")


def _marker(x: float, y: float, number: int) -> Markup:
    shape, class_ = _MARKERS[number % len(_MARKERS)], f"marker {_style(number)}"
    if shape == "circle":
        return tag("circle", cx=_n(x), cy=_n(y), r=4, class_=class_)
    paths = {"square": "m-4-4h8v8h-8z", "triangle": "m0-5l5 9h-10z", "diamond": "m0-5l5 5-5 5-5-5z"}
    return tag("path", d=f"M{_n(x)} {_n(y)}{paths[shape]}", class_=class_)


def _style(number: int) -> str:
    return f"style-{number % _STYLES}"


def _svg(width: float, height: float, title: str, description: str, content: Markup) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        content,
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        role="img",
        aria_label=f"{title}. {description}",
        class_="chart",
        style=f"max-width:{_n(width)}px",
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return tag("text", text, x=_n(x), y=_n(y), class_=f"{kind} {anchor}")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _number(value: float, signed: bool = False) -> str:
    text = f"{value:+g}" if signed and value else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
