"""The outlines of labelled regions as polygons along the edges of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon


def outlines(labels: np.ndarray) -> dict[int, Polygon | MultiPolygon]:
    """Return what each label covers.

    Pixel (row r, column c) is the square from (c, r) to (c + 1, r + 1): x goes right and y goes down, and (0, 0) is the
    image's corner, as in QuPath. Every geometry is valid and covers exactly the pixels of its label; pixels that touch
    at a corner only are parts of one MultiPolygon, so that rasterising gives the labels back.

    Args:
        labels: ``[H, W]`` whole numbers, 0 is left out.

    Returns:
        By rising label; holes are interior rings. Only corners are vertices.
    """
    import shapely

    labels = np.asarray(labels)
    segments = _edges(labels)
    if not len(segments) or not labels.any():
        return {}
    # The edges between pixels of different labels divide the plane into faces of one label each.
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(segments)))
    points, face = shapely.get_coordinates(shapely.get_exterior_ring(faces), return_index=True)
    # The leftmost corner of a face's highest edge is the upper left one of a pixel in it.
    order = np.lexsort((points[:, 0], points[:, 1], face))
    first = points[order[np.unique(face[order], return_index=True)[1]]].astype(int)
    numbers = labels[first[:, 1], first[:, 0]]
    found: dict[int, Any] = {}
    for number in np.unique(numbers[numbers != 0]):
        parts = [shapely.geometry.polygon.orient(part) for part in faces[numbers == number]]
        found[int(number)] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return found


def _edges(labels: np.ndarray) -> np.ndarray:
    """Return the straight lines between different labels, cut where lines meet: ``[N, 2, 2]``, two points (x, y)."""
    values = np.pad(labels, 1)  # outside is background
    across = values[1:, 1:-1] != values[:-1, 1:-1]  # [H + 1, W]: the edge from (x, y) to (x + 1, y)
    down = values[1:-1, 1:] != values[1:-1, :-1]  # [H, W + 1]: the edge from (x, y) to (x, y + 1)
    met_by_down = np.pad(down, ((1, 0), (0, 0))) | np.pad(down, ((0, 1), (0, 0)))  # [H + 1, W + 1] points
    met_by_across = np.pad(across, ((0, 0), (1, 0))) | np.pad(across, ((0, 0), (0, 1)))
    y, start, end = _runs(across, met_by_down)
    x, top, bottom = _runs(down.T, met_by_across.T)
    horizontal = np.stack([np.stack([start, y], axis=1), np.stack([end, y], axis=1)], axis=1)
    vertical = np.stack([np.stack([x, top], axis=1), np.stack([x, bottom], axis=1)], axis=1)
    return np.concatenate([horizontal, vertical])


def _runs(edges: np.ndarray, met: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return line number, start and end of runs of unit edges ``[lines, n]``, cut at points ``[lines, n + 1]``."""
    wide = np.pad(edges, ((0, 0), (1, 1)))
    line, start = np.nonzero(edges & (~wide[:, :-2] | met[:, :-1]))
    _, last = np.nonzero(edges & (~wide[:, 2:] | met[:, 1:]))
    return line, start, last + 1
