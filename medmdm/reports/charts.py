"""Where the parts of charts lie; ``templates/charts.html.j2`` draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmdm.errors import counted


@dataclass(frozen=True)
class Axis:
    """Values along one side of a chart; called with a value it says where that lies in the picture."""

    marks: Sequence[float]  # values with a line or a number, rising
    start: float  # where the first one lies
    end: float  # where the last one lies
    title: str = ""
    steps: bool = False  # marks stand at equal distances, whatever their values; no other values are drawn

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        if self.steps:
            return self.start + (self.end - self.start) / len(self.marks) * (self.marks.index(value) + 0.5)
        low, high = self.marks[0], self.marks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True)
class Chart:
    """A chart to be drawn by the macro that has the name of the function that returned it."""

    title: str  # for those who cannot see it, as the description of what it shows
    description: str
    width: float  # of the picture, in its own units
    height: float
    x: Axis  # from left to right; where items stand beside each other, their numbers
    y: Axis  # from bottom to top of values, from top to bottom of items below each other
    items: Sequence[Any]


@dataclass(frozen=True)
class Strip:
    """The values of one quantity over cases, drawn as points above a box."""

    name: str  # at its left
    values: Sequence[float]  # one per case
    cases: Sequence[int]  # the number of the case each belongs to, by which it is opened
    labels: Sequence[str]  # what a point says when pointed at
    mean: float  # drawn as a diamond, with its interval
    interval: tuple[float, float] | None = None

    @property
    def radius(self) -> float:
        """Of its points."""
        return 3.2 if len(self.values) <= 150 else 2.0

    @property
    def quartiles(self) -> list[float]:
        """Smallest value, quartiles with the median, largest value."""
        return [float(value) for value in np.percentile(self.values, [0, 25, 50, 75, 100])]

    def heaped(self, axis: Axis, room: float = 27.0) -> list[tuple[float, float, int]]:
        """Return x, height above the line, and position in ``values`` of every point.

        Points that would lie on each other go up in a heap; the same values give the same picture.
        """
        radius = self.radius
        placed: list[tuple[float, float, int]] = []
        for i in sorted(range(len(self.values)), key=lambda i: self.values[i]):
            x, rise = axis(self.values[i]), 0.0
            near = [(a, b) for a, b, _ in placed[-60:] if abs(a - x) < 2 * radius]
            while any((a - x) ** 2 + (b - rise) ** 2 < (2 * radius) ** 2 for a, b in near) and rise < room:
                rise += radius / 2
            placed.append((x, min(rise, room), i))
        return placed


@dataclass(frozen=True)
class Curve:
    """One line of a chart, with its name in the legend."""

    name: str
    x: Sequence[float]  # rising
    y: Sequence[float]  # of the same length
    low: Sequence[float] | None = None  # lower ends of whiskers
    high: Sequence[float] | None = None  # upper ends

    def points(self, chart: Chart, number: int) -> list[tuple[float, float]]:
        """Return where its points lie; those of several curves at one step stand a little beside each other."""
        shift = (number - (len(chart.items) - 1) / 2) * 5 if chart.x.steps else 0.0
        return [(chart.x(x) + shift, chart.y(y)) for x, y in zip(self.x, self.y, strict=True)]


@dataclass(frozen=True)
class Band:
    """A row of a chart of intervals."""

    name: str  # at its left
    value: float  # the dot
    low: float | None  # left end of the interval; None if there is none
    high: float | None  # right end
    note: str = ""  # at its right


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers, about ``count`` steps, from one at or below ``low`` to one at or above ``high``."""
    if not high - low > 1e-9 * max(1.0, abs(low), abs(high)):  # one value, up to rounding
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def strips(rows: Sequence[Strip], axis: str) -> Chart:
    """Lay one strip below another on a common axis, whose title is ``axis``."""
    values = [value for row in rows for value in row.values]
    # Scores get an axis that ends at 1 and starts where they do; other quantities one that starts at 0.
    share = max(values) <= 1
    marks = ticks(min(*values, 0.9), 1.0) if share else ticks(0.0, max(values))
    x = Axis([mark for mark in marks if not share or mark <= 1.0 + 1e-9], 168.0, 916.0, axis)
    y = Axis((0, len(rows)), 6.0, 6.0 + 74.0 * len(rows))
    description = "; ".join(f"{row.name}: mean {row.mean:.3f}, {len(row.values)} values" for row in rows)
    return Chart("Distribution over cases", description, 940.0, y.end + 42, x, y, rows)


def curves(
    lines: Sequence[Curve], x_axis: str, y_axis: str, title: str, x_marks: Sequence[float] | None = None
) -> Chart:
    """Lay out lines with a legend below; up to eight can be told apart without colour.

    ``x_marks`` are the numbers that x takes, drawn at equal distances; ``None`` for a continuous axis.
    """
    values = [value for line in lines for group in (line.y, line.low or (), line.high or ()) for value in group]
    y = Axis(ticks(min(values), max(values)), 292.0, 12.0, y_axis)
    known = [value for line in lines for value in line.x]
    marks = ticks(min(known), max(known)) if x_marks is None else list(x_marks)
    x = Axis(marks, 64.0, 700.0, x_axis, steps=x_marks is not None)
    description = "; ".join(f"{line.name}: from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
    return Chart(title, description, 720.0, y.start + 60 + 18 * math.ceil(len(lines) / 2), x, y, lines)


def intervals(rows: Sequence[Band], axis: str, title: str) -> Chart:
    """Lay values with their intervals below each other, with room for zero: differences, for example."""
    values = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    x = Axis(ticks(min(*values, 0.0), max(*values, 0.0)), 210.0, 670.0, axis)
    y = Axis((0, len(rows)), 6.0, 6.0 + 30.0 * len(rows))
    description = "; ".join(f"{row.name}: {row.value:+.3f}" for row in rows)
    return Chart(title, description, 820.0, y.end + 42, x, y, rows)


def differences(values: Sequence[float], labels: Sequence[str], axis: str, title: str) -> Chart:
    """Lay a bar per case beside each other, from the largest gain to the largest loss."""
    x = Axis((0, len(values)), 64.0, 800.0)
    y = Axis(ticks(min(0.0, *values), max(0.0, *values)), 210.0, 10.0, axis)
    gains = counted(sum(value > 0 for value in values), "case", "gains", "gain")
    losses = sum(value < 0 for value in values)
    bars = sorted(zip(labels, values, strict=True), key=lambda bar: -bar[1])
    return Chart(title, f"{gains}, {losses} {'loses' if losses == 1 else 'lose'}", 820.0, 224.0, x, y, bars)
