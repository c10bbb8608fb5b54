"""Which instances of a prediction and of the truth share pixels: one sparse table for all instance metrics.

Both label maps are cut into runs, stretches of neighbouring pixels with one true and one predicted label. There are
far fewer runs than pixels, so that areas and overlaps are sums over a short list, and no step loops over instances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medmdm.metrics.pixels import check_pair

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Overlaps:
    """Areas of all instances and the pixels that pairs of them share.

    Instances are numbered 0, 1, ... by the position of their first pixel (row by row), not by their labels: whatever
    breaks a tie by this number does not depend on the labels.

    Args:
        true_labels: label of each true instance, ``[T]``.
        true_areas: its pixels.
        pred_labels: label of each predicted instance, ``[P]``.
        pred_areas: its pixels.
        true_index: number of the true instance of each pair with common pixels, ``[pairs]``.
        pred_index: number of the predicted one.
        pixels: how many pixels the pair shares, at least 1, ``[pairs]``.
    """

    true_labels: Integers
    true_areas: Integers
    pred_labels: Integers
    pred_areas: Integers
    true_index: Integers
    pred_index: Integers
    pixels: Integers

    @property
    def unions(self) -> Integers:
        """Pixels in either instance of each pair, ``[pairs]``."""
        return self.true_areas[self.true_index] + self.pred_areas[self.pred_index] - self.pixels

    @property
    def iou(self) -> Floats:
        """Intersection over union of each pair, ``[pairs]``."""
        return self.pixels / self.unions

    @property
    def dice(self) -> Floats:
        """Dice of each pair, ``[pairs]``."""
        return 2 * self.pixels / (self.true_areas[self.true_index] + self.pred_areas[self.pred_index])

    def swapped(self) -> Overlaps:
        """Return the table with prediction and truth in each other's place."""
        mine, other = (self.true_labels, self.true_areas), (self.pred_labels, self.pred_areas)
        return Overlaps(*other, *mine, self.pred_index, self.true_index, self.pixels)

    def best_pairs(self, *keys: NDArray[np.number]) -> Integers:
        """Return the position of the pair where the first key is largest, for each true instance with an overlap.

        A tie in one key, ``[pairs]``, is decided by the next, in the end by the predicted instance that comes first.
        """
        order = np.lexsort((self.pred_index, *(-key for key in reversed(keys)), self.true_index))
        return order[np.unique(self.true_index[order], return_index=True)[1]]


def overlaps(pred: ArrayLike, true: ArrayLike) -> Overlaps:
    """Build the table of a pair of label maps.

    Args:
        pred: predicted instances, integers of any spatial shape, 0 is background; labels may have gaps.
        true: true instances, of the same shape.

    Raises:
        ValueError: see :func:`check_pair`.
    """
    pred, true = check_pair(pred, true)
    pred, true = pred.ravel(), true.ravel()
    if not pred.size:
        return Overlaps(*[np.zeros(0, np.int64)] * 7)
    starts = np.append(0, np.flatnonzero((pred[1:] != pred[:-1]) | (true[1:] != true[:-1])) + 1)
    lengths = np.diff(starts, append=pred.size)
    true_labels, true_areas, true_index = _instances(true[starts], lengths)
    pred_labels, pred_areas, pred_index = _instances(pred[starts], lengths)
    both = (true_index >= 0) & (pred_index >= 0)
    many = max(len(pred_labels), 1)
    pairs, which = np.unique(true_index[both] * many + pred_index[both], return_inverse=True)
    pixels = np.bincount(which, lengths[both], len(pairs)).astype(np.int64)
    return Overlaps(true_labels, true_areas, pred_labels, pred_areas, *np.divmod(pairs, many), pixels)


def _instances(labels: NDArray[np.integer], lengths: Integers) -> tuple[Integers, Integers, Integers]:
    """Return labels and areas of the instances of a list of runs by first appearance, and each run's instance.

    Background is label 0 and instance -1; ``lengths`` are pixels of each run.
    """
    values, first, which = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, len(labels), first))
    number = np.empty(len(values), np.int64)
    number[order] = np.arange(len(values))
    areas = np.bincount(number[which], lengths, len(values)).astype(np.int64)
    foreground = int((values != 0).sum())
    index = np.where(labels == 0, -1, number[which])
    return values[order][:foreground].astype(np.int64), areas[:foreground], index
