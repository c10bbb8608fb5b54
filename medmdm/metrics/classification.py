"""How well labels of whole images are told: accuracy, balanced accuracy, area under the ROC curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

MEASURES = ("accuracy", "balanced_accuracy", "auc")


def classification_scores(scores: ArrayLike, true: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Score several classifiers on the same images.

    Args:
        scores: of each class, ``[..., images, classes]``; the largest is what a classifier says, of equal ones the
            first.
        true: number of the class of each image, ``[images]``.

    Returns:
        Each ``[...]``: ``accuracy``; ``balanced_accuracy``, the mean of the classes' recalls; ``auc``, the mean over
        classes of the area under the ROC curve of the class against all others (macro), ties counting half. Classes
        without an image, of the AUC those of every image, are left out; NaN where none is left.

    Raises:
        ValueError: the lengths differ.
    """
    values, classes = np.asarray(scores, np.float64), np.asarray(true)
    if values.ndim < 2 or values.shape[-2] != len(classes):
        raise ValueError(f"scores of {len(classes)} images are needed, got an array of shape {values.shape}")
    said = values.argmax(-1)
    right = said == classes
    there = [c for c in range(values.shape[-1]) if (classes == c).any()]
    recalls = [right[..., classes == c].mean(-1) for c in there]
    areas = [_area(values[..., c], classes == c) for c in there if (classes != c).any()]
    unknown = np.full(values.shape[:-2], np.nan)
    return {
        "accuracy": right.mean(-1) if len(classes) else unknown,
        "balanced_accuracy": np.mean(recalls, axis=0) if recalls else unknown,
        "auc": np.mean(areas, axis=0) if areas else unknown,
    }


def _area(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the area under the ROC curve by ranks (Mann and Whitney 1947)."""
    count, others = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(values, axis=-1)[..., positive].sum(-1)
    return (ranks - count * (count + 1) / 2) / (count * others)
