"""How well instances (glands, nuclei) are found and outlined: metrics of the GlaS and MoNuSeg challenges and others.

All take label maps: integers, 0 is background, every other number one instance; gaps in the numbering and the
numbers themselves do not matter. Where both maps are empty every metric is undefined, NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medmdm.metrics.hausdorff import hausdorff_of_objects
from medmdm.metrics.overlap import Integers, Overlaps, overlaps


def aji(pred: ArrayLike, true: ArrayLike) -> float:
    """Aggregated Jaccard index (Kumar et al. 2017, the MoNuSeg challenge).

    Each true instance is paired with the prediction of highest IoU, which may serve several true instances. The
    intersections of the pairs are summed; so are their unions, to which unpaired instances of both sides are added.

    Args:
        pred: predicted instances, integers, 0 is background.
        true: true instances, of the same shape.

    Returns:
        A number in [0, 1]; NaN where both are empty.

    Raises:
        ValueError: the maps differ in shape, are not integers, or hold negative numbers.
    """
    table = overlaps(pred, true)
    return _ratio(*_aggregate(table, table.best_pairs(table.iou)))


def aji_plus(pred: ArrayLike, true: ArrayLike) -> float:
    """AJI with one-to-one pairs, those of the largest sum of IoU (Graham et al. 2019).

    Args, return value and errors as for :func:`aji`.
    """
    table = overlaps(pred, true)
    return _ratio(*_aggregate(table, _one_to_one(table)))


def object_dice(pred: ArrayLike, true: ArrayLike) -> float:
    """Object Dice of the GlaS challenge (Sirinukunwattana et al. 2017).

    Each instance is compared with the one of the other map that covers most of it; the Dice values are averaged with
    the instances' areas as weights, from both sides.

    Args, return value and errors as for :func:`aji`.
    """
    return _object_dice(overlaps(pred, true))


def object_f1(pred: ArrayLike, true: ArrayLike) -> float:
    """Detection F1 of the GlaS challenge (Sirinukunwattana et al. 2017).

    A prediction is a true positive if it covers more than half of the true instance that it overlaps most.

    Args, return value and errors as for :func:`aji`.
    """
    tp, n_pred, n_true = _object_counts(overlaps(pred, true))
    return _ratio(2 * tp, n_pred + n_true)


def object_hausdorff(pred: ArrayLike, true: ArrayLike) -> float:
    """Object Hausdorff distance of the GlaS challenge (Sirinukunwattana et al. 2017), in pixels.

    As :func:`object_dice`, with the Hausdorff distance between the instances' pixels; an instance without overlap is
    compared with the one of the other map at the smallest Hausdorff distance.

    Args and errors as for :func:`aji`.

    Returns:
        A distance of at least 0; infinite where one map is empty, NaN where both are.
    """
    return hausdorff_of_objects(pred, true, overlaps(pred, true))


def panoptic_quality(pred: ArrayLike, true: ArrayLike) -> float:
    """Panoptic quality (Kirillov et al. 2019): pairs with an IoU above 1/2 are matches.

    It is the product of detection quality (F1 of the matches) and segmentation quality (their mean IoU), which
    :func:`instance_scores` gives as ``dq`` and ``sq``.

    Args, return value and errors as for :func:`aji`.
    """
    return _panoptic(overlaps(pred, true))["pq"]


def instance_scores(pred: ArrayLike, true: ArrayLike, hausdorff: bool = True) -> dict[str, float]:
    """All instance metrics of a case from one table of overlaps.

    Args:
        pred: predicted instances, integers, 0 is background.
        true: true instances, of the same shape.
        hausdorff: also the object Hausdorff distance, the only one that takes time.

    Returns:
        ``aji``, ``aji_plus``, ``object_dice``, ``object_f1`` with its ``object_precision`` and ``object_recall``,
        ``object_hausdorff`` (pixels), ``pq`` with its parts ``dq`` and ``sq``; and counts: instances ``n_true`` and
        ``n_pred``, true positives of the object F1 ``object_tp``, matches of the panoptic quality ``pq_tp`` and their
        summed IoU ``pq_iou``, numerators and denominators ``aji_intersection`` and ``aji_union`` in pixels. Undefined
        values are NaN: everything where both maps are empty, ``object_precision`` without prediction,
        ``object_recall`` without truth, ``sq`` without a match.

    Raises:
        ValueError: the maps differ in shape, are not integers, or hold negative numbers.
    """
    table = overlaps(pred, true)
    intersection, union = _aggregate(table, table.best_pairs(table.iou))
    tp, n_pred, n_true = _object_counts(table)
    scores = {
        "aji": _ratio(intersection, union),
        "aji_plus": _ratio(*_aggregate(table, _one_to_one(table))),
        "object_dice": _object_dice(table),
        "object_f1": _ratio(2 * tp, n_pred + n_true),
        "object_precision": _ratio(tp, n_pred),
        "object_recall": _ratio(tp, n_true),
        **_panoptic(table),
        **{"n_true": n_true, "n_pred": n_pred, "object_tp": tp},
        **{"aji_intersection": intersection, "aji_union": union},
    }
    if hausdorff:
        scores["object_hausdorff"] = hausdorff_of_objects(pred, true, table)
    return scores


def connected_objects(mask: ArrayLike, corners: bool = True) -> NDArray[np.int32]:
    """Return what counts as objects where no map of them was made: the connected parts, numbered from 1.

    Args:
        mask: class numbers of any spatial shape, 0 is background.
        corners: whether parts are connected across corners too.
    """
    array = np.asarray(mask) > 0
    structure = ndimage.generate_binary_structure(array.ndim, array.ndim if corners else 1)
    labels: NDArray[np.int32] = ndimage.label(array, structure)[0]
    return labels


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else math.nan


def _aggregate(table: Overlaps, pairs: Integers) -> tuple[int, int]:
    """Sum intersections and unions of pairs, and add the areas of instances in none of them to the unions."""
    alone_true = np.delete(table.true_areas, table.true_index[pairs])
    alone_pred = np.delete(table.pred_areas, table.pred_index[pairs])
    return int(table.pixels[pairs].sum()), int(table.unions[pairs].sum() + alone_true.sum() + alone_pred.sum())


def _one_to_one(table: Overlaps) -> Integers:
    """Return the pairs of the one-to-one assignment with the largest sum of IoU.

    The assignment falls apart into groups of instances that are connected by overlaps; almost all are tiny, so the
    cubic cost of an assignment over all instances never arises.
    """
    n_true, n_pred = len(table.true_areas), len(table.pred_areas)
    iou = table.iou
    graph = coo_array((iou, (table.true_index, n_true + table.pred_index)), shape=(n_true + n_pred,) * 2)
    _, group = connected_components(graph, directed=False)
    group = group[table.true_index]
    order = np.argsort(group, kind="stable")
    chosen: list[int] = []
    for pairs in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(pairs) <= 1:
            chosen.extend(pairs.tolist())
            continue
        rows, row = np.unique(table.true_index[pairs], return_inverse=True)
        columns, column = np.unique(table.pred_index[pairs], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = iou[pairs]
        assigned = linear_sum_assignment(gain, maximize=True)
        # An assigned pair may have no pixel in common; those of the list are its true members.
        chosen.extend(pairs[np.isin(row * len(columns) + column, assigned[0] * len(columns) + assigned[1])].tolist())
    return np.array(chosen, np.int64)


def _object_dice(table: Overlaps) -> float:
    if not len(table.true_areas) and not len(table.pred_areas):
        return math.nan
    total = 0.0
    for side in (table, table.swapped()):
        pairs = side.best_pairs(side.pixels, side.dice)
        weights = side.true_areas[side.true_index[pairs]]
        total += float((weights * side.dice[pairs]).sum() / max(side.true_areas.sum(), 1))
    return total / 2


def _object_counts(table: Overlaps) -> tuple[int, int, int]:
    """Return true positives of the object F1, predicted and true instances."""
    by_pred = table.swapped()
    pairs = by_pred.best_pairs(by_pred.pixels, by_pred.dice)
    half = 2 * table.pixels[pairs] > table.true_areas[table.true_index[pairs]]
    return int(half.sum()), len(table.pred_areas), len(table.true_areas)


def _panoptic(table: Overlaps) -> dict[str, float]:
    """Return panoptic quality, its parts, the matches and their summed IoU."""
    matched = table.iou[2 * table.pixels > table.unions]
    tp, total = len(matched), float(matched.sum())
    instances = len(table.true_areas) + len(table.pred_areas)
    quality = {"pq": _ratio(2 * total, instances), "dq": _ratio(2 * tp, instances), "sq": _ratio(total, tp)}
    return {**quality, "pq_tp": tp, "pq_iou": total}
