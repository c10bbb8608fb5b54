"""How well the pixels of classes are found: overlap and surface metrics of a case, and pooled over cases.

Counts are whole numbers of any size; the formulas on them and the distances between surfaces are MONAI's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_confusion_matrix_metric
from monai.metrics.utils import get_mask_edges, get_surface_distance
from numpy.typing import ArrayLike, NDArray

from medmdm.errors import UserError
from medmdm.labels import IGNORE


def surface_scores(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing: Sequence[float] | float | None = None,
    tolerance: float = 1.0,
) -> dict[str, float]:
    """Compare the boundaries of two masks.

    A boundary is made of the mask's pixels that touch a pixel outside (or the edge of the image) with a side.

    Args:
        pred: predicted mask, 2-D or 3-D.
        true: true mask, of the same shape.
        spacing: size of a pixel along each axis (or one size for all), usually in mm; 1 by default: pixels.
        tolerance: distance up to which boundaries agree, in the unit of ``spacing``.

    Returns:
        ``hausdorff95``: the larger of the two 95th percentiles of the distances from one boundary to the other;
        ``surface_dice``: share of both boundaries within ``tolerance`` of the other (Nikolov et al. 2018);
        ``boundary_f``: F1 of the shares of each (Csurka et al. 2013). All NaN where both masks are empty; infinite,
        0 and 0 where one is.

    Raises:
        UserError: ``spacing`` or ``tolerance`` make no sense.
    """
    size = _spacing(spacing, pred.ndim)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"tolerance must be a distance of at least 0, got {tolerance}.")
    empty = int(not pred.any()) + int(not true.any())
    if empty:
        distance, share = (math.inf, 0.0) if empty == 1 else (math.nan, math.nan)
        return {"hausdorff95": distance, "surface_dice": share, "boundary_f": share}
    edges = get_mask_edges(torch.from_numpy(pred), torch.from_numpy(true))
    distances = [get_surface_distance(here, there, spacing=size) for here, there in (edges, edges[::-1])]
    # Compared by torch in the distances' own precision: 0.3 as a single is more than 0.3 as a double.
    near = [int((side <= tolerance).sum()) for side in distances]
    length = [len(side) for side in distances]
    precision, recall = near[0] / length[0], near[1] / length[1]
    return {
        "hausdorff95": max(float(np.percentile(side.numpy(), 95)) for side in distances),
        "surface_dice": sum(near) / sum(length),
        "boundary_f": 2 * precision * recall / (precision + recall) if any(near) else 0.0,
    }


def _spacing(spacing: Sequence[float] | float | None, axes: int) -> list[float]:
    if axes not in (2, 3):
        raise UserError(f"surfaces are measured in images and volumes, got an array of {axes} axes.")
    sizes = np.atleast_1d(np.asarray(1.0 if spacing is None else spacing, float)).tolist()
    sizes = sizes * axes if len(sizes) == 1 else sizes
    if len(sizes) != axes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"spacing must be a positive size for each of {axes} axes, got {spacing}.")
    return sizes


COUNTS = ("tp", "fp", "tn", "fn")  # the order of MONAI's confusion matrices
FORMULAS = {"dice": "f1 score", "iou": "threat score", "precision": "precision", "recall": "sensitivity"}
CHUNK = 1 << 22  # pixels counted at a time: bounds the memory of volumes


def dice(pred: ArrayLike, true: ArrayLike) -> float:
    """Dice of the foreground (everything above 0), the F1 of its pixels.

    Args:
        pred: predicted label map, classes or instances.
        true: true label map of the same shape.

    Returns:
        A number in [0, 1]; NaN where both are empty.

    Raises:
        ValueError: the maps differ in shape, are not integers, or hold negative numbers.
    """
    return _foreground(pred, true)["dice"]


def iou(pred: ArrayLike, true: ArrayLike) -> float:
    """Intersection over union of the foreground; see :func:`dice`."""
    return _foreground(pred, true)["iou"]


def _foreground(pred: ArrayLike, true: ArrayLike) -> dict[str, float]:
    pred, true = check_pair(pred, true)
    return pixel_scores(pred > 0, true > 0, 2, ignore=None, surface=False)[1]


def pixel_scores(
    pred: ArrayLike,
    true: ArrayLike,
    num_classes: int,
    spacing: Sequence[float] | float | None = None,
    ignore: int | None = IGNORE,
    surface: bool = True,
    tolerance: float = 1.0,
) -> dict[int, dict[str, float]]:
    """Score one case, an image or a whole volume.

    Args:
        pred: predicted class of each pixel, integers in [0, num_classes), 2-D or 3-D.
        true: true class of each pixel, of the same shape; may hold ``ignore`` besides.
        num_classes: how many classes there are, background 0 among them.
        spacing: size of a pixel along each axis (or one size for all), in mm; distances are in pixels without it.
        ignore: value of true pixels that are left out; ``None`` for no such value. Surfaces end where they begin.
        surface: also the metrics of surfaces, which take longer.
        tolerance: how far a surface may be off for ``surface_dice`` and ``boundary_f``, in the unit of ``spacing``.

    Returns:
        For each class from 1 on: ``dice``, ``iou``, ``precision``, ``recall``; the counts ``tp``, ``fp``, ``fn``,
        ``tn``, ``n_true`` and ``n_pred`` in pixels; with ``surface`` also ``hausdorff95``, ``surface_dice`` and
        ``boundary_f``. Where a class is in neither map all but the counts are NaN; where it is in one only,
        ``hausdorff95`` is infinite, ``precision`` or ``recall`` NaN and the others 0.

    Raises:
        ValueError: the maps differ in shape, are not integers, or hold other values than classes.
        UserError: ``ignore`` is a class, or ``spacing`` or ``tolerance`` make no sense.
    """
    pred, true = check_pair(pred, true)
    if ignore is not None and 0 <= ignore < num_classes:
        raise UserError(f"ignore {ignore} is one of the {num_classes} classes: use None or a larger number.")
    confusion = _confusion(pred, true, num_classes, ignore)
    scores = {}
    for number in range(1, num_classes):
        tp = confusion[number, number]
        fp, fn = confusion[:, number].sum() - tp, confusion[number].sum() - tp
        scores[number] = _formulas(np.array([tp, fp, confusion.sum() - tp - fp - fn, fn]))
    if surface:
        valid = np.True_ if ignore is None else true != ignore
        for number, row in scores.items():
            row |= surface_scores((pred == number) & valid, (true == number) & valid, spacing, tolerance)
    return scores


def pool(cases: Iterable[Mapping[int, Mapping[str, float]]]) -> dict[int, dict[str, float]]:
    """Add up the pixels of many cases, as if they were one (micro average).

    Args:
        cases: what :func:`pixel_scores` returned for each.

    Returns:
        The overlap metrics and counts of each class, as :func:`pixel_scores`.
    """
    sums: dict[int, NDArray[np.int64]] = {}
    for case in cases:
        for number, row in case.items():
            sums[number] = sums.get(number, 0) + np.array([int(row[name]) for name in COUNTS], np.int64)
    return {number: _formulas(counts) for number, counts in sorted(sums.items())}


def _confusion(
    pred: NDArray[np.integer], true: NDArray[np.integer], num_classes: int, ignore: int | None
) -> NDArray[np.int64]:
    """Count pixels by true and predicted class, ``[num_classes, num_classes]``."""
    pred, true = pred.ravel(), true.ravel()
    total = np.zeros(num_classes**2, np.int64)
    for start in range(0, pred.size, CHUNK):
        p, t = pred[start : start + CHUNK], true[start : start + CHUNK]
        if ignore is not None:
            valid = t != ignore
            p, t = p[valid], t[valid]
        for name, part in (("pred", p), ("true", t)):
            if part.size and part.max() >= num_classes:
                raise ValueError(f"{name} holds {part.max()}: its classes are 0 to {num_classes - 1}")
        total += np.bincount(t.astype(np.int64) * num_classes + p, minlength=num_classes**2)
    return total.reshape(num_classes, num_classes)


def _formulas(counts: NDArray[np.int64]) -> dict[str, float]:
    # In double precision: single has too few digits for the voxels of a volume.
    matrix = torch.from_numpy(counts.astype(np.float64))[None, None]
    row = {name: compute_confusion_matrix_metric(formula, matrix).item() for name, formula in FORMULAS.items()}
    tp, fp, tn, fn = (int(count) for count in counts)
    return row | {"tp": tp, "fp": fp, "fn": fn, "tn": tn, "n_true": tp + fn, "n_pred": tp + fp}


def class_means(scores: Mapping[int, Mapping[str, float]], keys: Iterable[str]) -> dict[str, float]:
    """Return the means over classes of a case's scores.

    Args:
        scores: of each class, as :func:`pixel_scores` returns them.
        keys: those wanted; one that no class has is left out.

    Returns:
        For each key the mean over those classes that have a value, NaN where none has.
    """
    values = {key: [row[key] for row in scores.values() if key in row] for key in keys}
    defined = {key: [value for value in column if not math.isnan(value)] for key, column in values.items() if column}
    return {key: statistics.fmean(column) if column else math.nan for key, column in defined.items()}


def mean_scores(mask: np.ndarray, truth: np.ndarray, num_classes: int, ignore: int | None) -> dict[str, float]:
    """Return mean ``dice`` and ``iou`` of a case over the classes that it or its prediction holds.

    Args:
        mask: predicted class numbers, ``[*spatial]``.
        truth: of the same shape.
        num_classes: how many classes there are, the background included.
        ignore: truth that is left out.
    """
    scores = pixel_scores(mask.astype(np.int64), truth.astype(np.int64), num_classes, ignore=ignore, surface=False)
    return class_means(scores, ("dice", "iou"))


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
