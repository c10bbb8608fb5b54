"""The object Hausdorff distance: exact, from distance transforms of small boxes instead of whole images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import KDTree
from skimage.util import map_array

from medmdm.metrics.overlap import Floats, Integers, Overlaps, check_pair

__all__ = ["hausdorff_of_objects"]


def hausdorff_of_objects(pred: ArrayLike, true: ArrayLike, table: Overlaps) -> float:
    """Compute the object Hausdorff distance, see :func:`medmdm.metrics.object_hausdorff`.

    Args:
        pred: predicted instances.
        true: true instances, of the same shape.
        table: their overlaps.

    Returns:
        A distance in pixels; infinite where one map is empty, NaN where both are.
    """
    empty = (not len(table.pred_areas)) + (not len(table.true_areas))
    if empty:
        return math.nan if empty == 2 else math.inf
    pred, true = check_pair(pred, true)
    trues, preds = _Objects(true, table.true_labels), _Objects(pred, table.pred_labels)
    known: dict[tuple[int, int], float] = {}
    total = 0.0
    for side, ours, theirs, swapped in ((table, trues, preds, False), (table.swapped(), preds, trues, True)):
        distances = np.full(len(side.true_areas), np.nan)
        for pair in side.best_pairs(side.pixels, side.dice):
            i, j = int(side.true_index[pair]), int(side.pred_index[pair])
            # Most pairs are each other's best: their distance is needed twice.
            key = (j, i) if swapped else (i, j)
            if key not in known:
                known[key] = _distance(ours, i, theirs, j)
            distances[i] = known[key]
        for i in np.flatnonzero(np.isnan(distances)).tolist():
            distances[i] = _nearest(ours, i, theirs)
        total += float((side.true_areas * distances).sum() / side.true_areas.sum())
    return total / 2


class _Objects:
    """The instances of one label map with their bounding boxes.

    Args:
        labels: label map.
        names: label of instance 0, 1, ...
    """

    def __init__(self, labels: NDArray[np.integer], names: Integers) -> None:
        self.numbers = map_array(labels, names.astype(labels.dtype), np.arange(1, len(names) + 1, dtype=np.int32))
        boxes = find_objects(self.numbers)
        self.low: Integers = np.array([[axis.start for axis in box] for box in boxes], np.int64)
        self.high: Integers = np.array([[axis.stop for axis in box] for box in boxes], np.int64)

    def mask(self, number: int, low: Integers, high: Integers) -> NDArray[np.bool_]:
        """Return where an instance lies inside a box."""
        window = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        return self.numbers[window] == number + 1

    def points(self, number: int) -> Floats:
        """Return the coordinates of an instance's pixels, ``[pixels, axes]``."""
        low = self.low[number]
        return np.argwhere(self.mask(number, low, self.high[number])).astype(np.float64) + low


def _distance(ours: _Objects, i: int, theirs: _Objects, j: int) -> float:
    """Return the Hausdorff distance between the pixels of two instances."""
    low, high = np.minimum(ours.low[i], theirs.low[j]), np.maximum(ours.high[i], theirs.high[j])
    own_boxes = np.prod(ours.high[i] - ours.low[i]) + np.prod(theirs.high[j] - theirs.low[j])
    if np.prod(high - low) > 4 * own_boxes:
        # Small and far apart: the box of both would be nearly empty.
        our_points, their_points = ours.points(i), theirs.points(j)
        there, back = KDTree(their_points).query(our_points)[0], KDTree(our_points).query(their_points)[0]
        return float(max(there.max(), back.max()))
    # All pixels of both lie in the box, so the nearest pixel of one to a pixel of the other does, too.
    a, b = ours.mask(i, low, high), theirs.mask(j, low, high)
    distance = 0.0
    for one, other in ((a, b), (b, a)):
        outside = one & ~other
        if outside.any():
            distance = max(distance, float(distance_transform_edt(~other)[outside].max()))
    return distance


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
