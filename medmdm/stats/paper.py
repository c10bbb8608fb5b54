"""The paper's way to report, to put next to its tables; everything else in this package is what its name says.

Its evaluation program makes label maps binary before object metrics run on them, so that three of its columns are
other quantities than their names suggest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medmdm.stats.results import json_ready

__all__ = ["PAPER_LABELS", "paper_block"]

PAPER_LABELS = {
    "dice": "Dice as in the paper: the mean over images of the pixel Dice",
    "iou": "IoU as in the paper (GlaS): d / (2 - d) of that mean Dice d, not a measured IoU",
    "aji": '"AJI" as in the paper (MoNuSeg): AJI of binary maps, which is the mean over images of the pixel IoU',
}


def paper_block(dices: ArrayLike) -> dict[str, Any]:
    """Report in the paper's conventions (Pan et al. 2023, arXiv 2308.05695), labelled as such.

    Args:
        dices: pixel Dice of the foreground of each image, ``[images]``, or of several classifiers on the same images,
            ``[classifiers, images]``; NaN where an image has neither truth nor prediction.

    Returns:
        ``dice``, ``iou`` and ``aji``, each with ``label``, ``mean`` (over classifiers) and ``sd`` (over classifiers,
        n - 1; ``None`` for one); ``classifiers``, ``images``, and ``undefined``: images left out because a classifier
        has no value for them. Shares, not percent.

    Raises:
        ValueError: ``dices`` has no images, or other than one or two axes.
    """
    values = np.atleast_2d(np.asarray(dices, np.float64))
    if values.ndim != 2 or not values.size:
        raise ValueError(f"pixel Dice of [classifiers, images] is needed, got shape {values.shape}")
    defined = np.isfinite(values).all(0)
    values = values[:, defined]
    # Without an image that has a value there is nothing to average: NaN, None in the result.
    mean_dice = values.mean(1) if defined.any() else np.full(len(values), np.nan)
    binary_aji = (values / (2 - values)).mean(1) if defined.any() else mean_dice
    columns = {"dice": mean_dice, "iou": mean_dice / (2 - mean_dice), "aji": binary_aji}
    block: dict[str, Any] = {
        name: {
            "label": PAPER_LABELS[name],
            "mean": column.mean(),
            "sd": column.std(ddof=1) if len(column) > 1 else None,
        }
        for name, column in columns.items()
    }
    block |= {"classifiers": len(values), "images": int(defined.sum()), "undefined": int((~defined).sum())}
    return json_ready(block)
