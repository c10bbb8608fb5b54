"""Outlines of named things on a slide, whoever drew them, and the pixels that they cover."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: A closed line, ``[n, 2]`` floats, x and y; the last vertex is not the first one again.
Ring = np.ndarray
_MOST_CROSSINGS = 1 << 20  # at once


@dataclass(frozen=True)
class Outline:
    """One annotation.

    Args:
        name: of its class, empty where it has none.
        title: how messages name it.
        polygons: each an outer ring and the holes in it, in pixels of the slide's level 0; (0, 0) is the corner of the
            first pixel, not its centre.
    """

    name: str
    title: str
    polygons: tuple[tuple[Ring, ...], ...]

    @functools.cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """Least x, least y, largest x and largest y."""
        points = np.concatenate([outer for outer, *_ in self.polygons])
        low, high = points.min(axis=0), points.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @functools.cached_property
    def area(self) -> float:
        """Square pixels of level 0 that the outer rings enclose."""
        return sum(_area(outer) for outer, *_ in self.polygons)

    def fill(
        self, shape: Sequence[int], origin: Sequence[float] = (0, 0), scale: Sequence[float] = (1, 1)
    ) -> np.ndarray:
        """Return which pixels of a part of the slide it covers.

        A pixel is covered when its centre is inside an outer ring (by the even-odd rule) and in none of that ring's
        holes. A centre that lies on a line belongs to what is right of it, or below: outlines that share a line share
        no pixel, and leave none out.

        Args:
            shape: rows and columns of the part.
            origin: (row, column) of its upper left corner, in its own pixels.
            scale: pixels of level 0 in a pixel of the part, down and across.

        Returns:
            ``[rows, columns]`` bool.
        """
        covered = np.zeros(shape, bool)
        for rings in self.polygons:
            outer, *holes = (ring / (scale[1], scale[0]) - (origin[1], origin[0]) for ring in rings)
            inside = fill_ring(outer, shape)
            for hole in holes:
                inside &= ~fill_ring(hole, shape)
            covered |= inside
        return covered


def fill_ring(ring: Ring, shape: Sequence[int]) -> np.ndarray:
    """Return the pixels ``[rows, columns]`` whose centres a ring encloses, by the even-odd rule.

    scikit-image's ``polygon`` asks each pixel about each vertex (2048² pixels and an outline of 5000 vertices take it
    33 s on one core, of 20 000 192 s; this takes 0.03 s), and gives centres on a line to both sides.
    """
    rows, columns = shape
    ends = np.roll(ring, -1, axis=0)
    # From above to below, so that a line gives the same crossings whichever way it is drawn.
    down = (ring[:, 1] <= ends[:, 1])[:, None]
    upper, lower = np.where(down, ring, ends), np.where(down, ends, ring)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, rows).astype(np.int64)
    count = np.maximum(np.clip(np.ceil(lower[:, 1] - 0.5), 0, rows).astype(np.int64) - first, 0)
    crossings = np.zeros((rows, columns + 1), np.int32)
    total = np.cumsum(count)
    start = 0
    while start < len(ring):  # a part of the edges at once: a zigzag of many crosses each row as often
        stop = max(start + 1, int(np.searchsorted(total, total[start] - count[start] + _MOST_CROSSINGS, "right")))
        number = count[start:stop]
        edge = np.repeat(np.arange(start, min(stop, len(ring))), number)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number) + first[edge]
        (x, y), (dx, dy) = upper[edge].T, (lower - upper)[edge].T
        crossing = x + (row + 0.5 - y) * dx / dy  # dy is above 0 where an edge crosses a row of centres
        column = np.clip(np.ceil(crossing - 0.5), 0, columns).astype(np.int64)
        np.add.at(crossings, (row, column), 1)
        start = stop
    inside: np.ndarray = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return inside


def open_ring(vertices: np.ndarray) -> Ring:
    """Return vertices without a last one that is the first again."""
    return vertices[:-1] if len(vertices) > 1 and (vertices[0] == vertices[-1]).all() else vertices


def _area(ring: Ring) -> float:
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
