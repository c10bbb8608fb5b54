"""Which instances of a prediction and of the truth share pixels: one sparse table for all instance metrics.

Both label maps are cut into runs, stretches of neighbouring pixels with one true and one predicted label. There are
far fewer runs than pixels, so that areas and overlaps are sums over a short list, and no step loops over instances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Overlaps:
    """Areas of all instances and the pixels that pairs of them share.

    Instances are numbered 0, 1, ... by the position of their first pixel (row by row), not by their labels: whatever
    breaks a tie by this number does not depend on the labels.

    Args:
        true_labels: label of each true instance, ``[T]``; areas in pixels in ``true_areas``.
        true_areas: see above.
        pred_labels: label of each predicted instance, ``[P]``; areas in pixels in ``pred_areas``.
        pred_areas: see above.
        true_index: number of the true instance of each pair with common pixels, ``[pairs]``.
        pred_index: number of the predicted instance of each pair, ``[pairs]``.
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
        return Overlaps(
            true_labels=self.pred_labels,
            true_areas=self.pred_areas,
            pred_labels=self.true_labels,
            pred_areas=self.true_areas,
            true_index=self.pred_index,
            pred_index=self.true_index,
            pixels=self.pixels,
        )

    def best_pairs(self, *keys: NDArray[np.number]) -> Integers:
        """Return, for each true instance with an overlap, the pair where the first key is largest.

        Args:
            keys: ``[pairs]`` each; a tie in one is decided by the next, in the end by the predicted instance whose
                first pixel comes first.

        Returns:
            Positions in the list of pairs, ordered by true instance.
        """
        order = np.lexsort((self.pred_index, *(-key for key in reversed(keys)), self.true_index))
        _, first = np.unique(self.true_index[order], return_index=True)
        return order[first]


def check_pair(pred: ArrayLike, true: ArrayLike) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return both label maps as integer arrays in the machine's byte order.

    Raises:
        ValueError: they differ in shape, are not integers (or booleans), or hold negative numbers.
    """
    arrays = []
    for name, labels in (("pred", pred), ("true", true)):
        array = np.asarray(labels)
        if array.dtype == bool:
            array = array.astype(np.uint8)
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be a map of integers, got {array.dtype}")
        if array.size and array.min() < 0:
            raise ValueError(f"{name} must not hold negative labels, got {array.min()}")
        # Files may hold the other byte order (NIfTI, TIFF), which compiled code refuses.
        arrays.append(array.astype(array.dtype.newbyteorder("="), copy=False))
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"pred and true must have one shape, got {arrays[0].shape} and {arrays[1].shape}")
    return arrays[0], arrays[1]


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
        nothing = np.zeros(0, np.int64)
        return Overlaps(*[nothing] * 7)
    starts = np.flatnonzero((pred[1:] != pred[:-1]) | (true[1:] != true[:-1])) + 1
    starts = np.concatenate([[0], starts])
    lengths = np.diff(starts, append=pred.size)
    true_labels, true_areas, true_index = _instances(true[starts], lengths)
    pred_labels, pred_areas, pred_index = _instances(pred[starts], lengths)
    both = (true_index >= 0) & (pred_index >= 0)
    code = true_index[both] * max(len(pred_labels), 1) + pred_index[both]
    pairs, which = np.unique(code, return_inverse=True)
    pixels = np.bincount(which, lengths[both], len(pairs)).astype(np.int64)
    index = np.divmod(pairs, max(len(pred_labels), 1))
    return Overlaps(true_labels, true_areas, pred_labels, pred_areas, index[0], index[1], pixels)


def _instances(labels: NDArray[np.integer], lengths: Integers) -> tuple[Integers, Integers, Integers]:
    """Number the instances of a list of runs.

    Args:
        labels: label of each run, 0 is background.
        lengths: pixels of each run.

    Returns:
        Labels and areas of the instances by first appearance, and each run's instance (-1 for background).
    """
    values, first, which = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, len(labels), first))
    number = np.empty(len(values), np.int64)
    number[order] = np.arange(len(values))
    areas = np.bincount(number[which], lengths, len(values)).astype(np.int64)
    foreground = int((values != 0).sum())
    index = np.where(labels == 0, -1, number[which])
    return values[order][:foreground].astype(np.int64), areas[:foreground], index
