"""The object Hausdorff distance, exact and without distance transforms of whole images.

Two small instances are compared by distance transforms of the box around both. Where that box is large, few of its
pixels can matter: the pixel of A that is furthest from B lies in B's bounding box or is the first or last of A on its
row or column (going on outwards leads away from all of B); and the pixel of B nearest to it lies on B's border.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from scipy.spatial import KDTree
from skimage.util import map_array

from medmdm.metrics.overlap import Integers, Overlaps
from medmdm.metrics.pixels import check_pair

SMALL_BOX = 16384  # pixels of a box of two instances up to which a distance transform is the faster way


def hausdorff_of_objects(pred: ArrayLike, true: ArrayLike, table: Overlaps) -> float:
    """Compute the distance of :func:`medmdm.metrics.object_hausdorff` from two maps and the table of their overlaps."""
    empty = (not len(table.pred_areas)) + (not len(table.true_areas))
    if empty:
        return math.nan if empty == 2 else math.inf
    pred, true = check_pair(pred, true)
    trues, preds = _Objects(true, table.true_labels), _Objects(pred, table.pred_labels)

    @cache  # most pairs are each other's best: their distance is needed twice
    def between(true_number: int, pred_number: int) -> float:
        return _distance(trues, true_number, preds, pred_number)

    total = 0.0
    for side, ours, theirs in ((table, trues, preds), (table.swapped(), preds, trues)):
        distances = np.full(len(side.true_areas), np.nan)
        for pair in side.best_pairs(side.pixels, side.dice):
            i, j = int(side.true_index[pair]), int(side.pred_index[pair])
            distances[i] = between(i, j) if ours is trues else between(j, i)
        for i in np.flatnonzero(np.isnan(distances)).tolist():
            distances[i] = _nearest(ours, i, theirs)
        total += float((side.true_areas * distances).sum() / side.true_areas.sum())
    return total / 2


class _Objects:
    """The instances of one label map, ``names`` in their order, with bounding boxes and what has been computed."""

    def __init__(self, labels: NDArray[np.integer], names: Integers) -> None:
        self.numbers = map_array(labels, names.astype(labels.dtype), np.arange(1, len(names) + 1, dtype=np.int32))
        boxes = find_objects(self.numbers)
        self.low: Integers = np.array([[axis.start for axis in box] for box in boxes], np.int64)
        self.high: Integers = np.array([[axis.stop for axis in box] for box in boxes], np.int64)
        self._trees: dict[int, KDTree] = {}
        self._extremes: dict[int, Integers] = {}

    def mask(self, number: int, low: Integers, high: Integers) -> NDArray[np.bool_]:
        """Return where an instance lies inside a box."""
        window = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        return self.numbers[window] == number + 1

    def border(self, number: int) -> KDTree:
        """Return a search tree of the instance's pixels that touch one outside with a side."""
        if number not in self._trees:
            mask = self.mask(number, self.low[number], self.high[number])
            self._trees[number] = KDTree(np.argwhere(mask & ~binary_erosion(mask)) + self.low[number])
        return self._trees[number]

    def extremes(self, number: int) -> Integers:
        """Return the instance's first and last pixel on every line along each axis, ``[pixels, axes]``."""
        if number not in self._extremes:
            mask = self.mask(number, self.low[number], self.high[number])
            found = []
            for axis, length in enumerate(mask.shape):
                lines = mask.any(axis)
                for ends in (mask.argmax(axis), length - 1 - np.flip(mask, axis).argmax(axis)):
                    found.append(np.insert(np.argwhere(lines), axis, ends[lines], axis=1))
            self._extremes[number] = np.unique(np.concatenate(found), axis=0) + self.low[number]
        return self._extremes[number]


def _distance(ours: _Objects, i: int, theirs: _Objects, j: int) -> float:
    """Return the Hausdorff distance between the pixels of two instances."""
    low, high = np.minimum(ours.low[i], theirs.low[j]), np.maximum(ours.high[i], theirs.high[j])
    if np.prod(high - low) > SMALL_BOX:
        return max(_directed(ours, i, theirs, j), _directed(theirs, j, ours, i))
    # All pixels of both lie in the box, so the nearest pixel of one to a pixel of the other does, too.
    a, b = ours.mask(i, low, high), theirs.mask(j, low, high)
    distance = 0.0
    for one, other in ((a, b), (b, a)):
        outside = one & ~other
        if outside.any():
            distance = max(distance, float(distance_transform_edt(~other)[outside].max()))
    return distance


def _directed(ours: _Objects, i: int, theirs: _Objects, j: int) -> float:
    """Return the largest distance of a pixel of ours to the nearest pixel of theirs."""
    points = ours.extremes(i)
    points = points[theirs.numbers[tuple(points.T)] != j + 1]
    low, high = np.maximum(ours.low[i], theirs.low[j]), np.minimum(ours.high[i], theirs.high[j])
    if (low < high).all():
        inside = np.argwhere(ours.mask(i, low, high) & ~theirs.mask(j, low, high)) + low
        points = np.concatenate([points, inside])
    return float(theirs.border(j).query(points)[0].max()) if len(points) else 0.0


def _nearest(ours: _Objects, i: int, theirs: _Objects) -> float:
    """Return the smallest Hausdorff distance of an instance to any of the other map.

    The sides of two bounding boxes cannot be further apart than the Hausdorff distance, so that the search goes
    through the instances by the largest difference of their sides and ends when that exceeds the best.
    """
    bound = np.maximum(abs(theirs.low - ours.low[i]), abs(theirs.high - ours.high[i])).max(1)
    best = math.inf
    for j in np.argsort(bound, kind="stable"):
        if bound[j] >= best:
            break
        best = min(best, _distance(ours, i, theirs, int(j)))
    return best
