"""Masks that cost nothing, which predicted ones have to beat: everything is foreground; the mean of the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medmdm.metrics.pixels import class_means, pool


def all_foreground(scores: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """Score the marking of every known pixel, as each class in turn, without looking at pixels again.

    Args:
        scores: of any mask of the case, from :func:`medmdm.metrics.pixel_scores`: their counts say how many pixels are
            known, and how many are of each class.

    Returns:
        The overlap metrics and counts of each class, as :func:`medmdm.metrics.pool`; Dice is 0 where the truth holds
        nothing of it.
    """
    return pool([{k: {"tp": r["n_true"], "fp": r["fp"] + r["tn"], "tn": 0, "fn": 0} for k, r in scores.items()}])


def all_foreground_means(scores: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return ``dice`` and ``iou`` of :func:`all_foreground`, the mean over those classes that the truth holds.

    Where it holds none they are those of a mask that is wrong everywhere: 0.

    Args:
        scores: as for :func:`all_foreground`.
    """
    rows = all_foreground(scores)
    return class_means({number: row for number, row in rows.items() if row["n_true"]} or rows, ("dice", "iou"))


def all_foreground_by(
    metrics: Callable[..., Mapping[str, float]], truth: np.ndarray, num_classes: int, ignore: int | None
) -> dict[str, float]:
    """Return what :func:`all_foreground_means` does, by metrics of any kind: each class against all others.

    Args:
        metrics: called as :func:`medmdm.metrics.mean_scores`.
        truth: class numbers, ``[*spatial]``.
        num_classes: how many classes there are, the background included.
        ignore: truth that is left out.
    """
    numbers = [number for number in range(1, num_classes) if (truth == number).any()] or [*range(1, num_classes)]
    known = np.True_ if ignore is None else truth != ignore
    every = np.ones(truth.shape, np.uint8)
    rows = {k: metrics(every, np.where(known, truth == k, ignore or 0), 2, ignore) for k in numbers}
    return class_means(rows, ("dice", "iou"))


def mean_mask(labels: Sequence[np.ndarray], num_classes: int, ignore: int | None) -> NDArray[np.uint8]:
    """Return the mean of labelled masks, thresholded at 1/2 for each class.

    Args:
        labels: class numbers, each ``[*spatial]`` on the same grid; at least one.
        num_classes: how many classes there are, the background included; at most 256.
        ignore: value of unknown pixels.

    Returns:
        ``[*spatial]``: the class that more than half of the labels have at a pixel, of those that are known there;
        0 where there is none.
    """
    shape = labels[0].shape
    known = _count((label != ignore for label in labels), shape)
    mask = np.zeros(shape, np.uint8)
    for number in range(1, num_classes):
        mask[2 * _count((label == number for label in labels), shape) > known] = number
    return mask


def _count(masks: Iterable[np.ndarray], shape: tuple[int, ...]) -> NDArray[np.int32]:
    total = np.zeros(shape, np.int32)
    for mask in masks:
        total += mask
    return total
