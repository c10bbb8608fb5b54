"""Average precision of boxes as COCO defines it, through MONAI's implementation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

#: Of an image, by class: what :func:`monai.apps.detection.metrics.matching.matching_batch` returns.
Matches = Mapping[int, Mapping[str, NDArray[np.float64]]]

IOUS = (0.5, 0.75)  # with a number of their own, besides the mean over 0.5, 0.55, ..., 0.95
_RANGE = (0.5, 0.95, 0.05)
_ALL = 1 << 31  # detections of an image: COCO's 100 are too few for an image of nuclei


def objects(instances: ArrayLike) -> Iterator[tuple[int, tuple[slice, ...], NDArray[np.bool_]]]:
    """Yield the label of each object, the box around it, and which pixels of the box are its own; by rising label.

    Args:
        instances: label map, 0 is background; labels may have gaps.
    """
    array = np.asarray(instances)
    labels, numbers = np.arange(min(int(array.max(initial=0)), array.size) + 1), array
    if array.dtype.kind not in "iu" or array.max(initial=0) >= len(labels):
        # Numbered anew, for the time of `find_objects` grows with the largest number; sorting takes memory.
        labels, numbers = np.unique(array, return_inverse=True)
        shift = int(labels[:1].any())  # 1 where there is no background
        labels, numbers = np.append(np.zeros(shift, labels.dtype), labels), numbers.reshape(array.shape) + shift
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is not None:
            yield int(labels[number]), place, numbers[place] == number


def object_boxes(instances: ArrayLike) -> NDArray[np.int64]:
    """Return the boxes of instances ``[n, 2 * axes]`` by rising label: first indices, then ends, which are excluded.

    Args:
        instances: label map of two or three axes, see :func:`objects`.
    """
    rows = [[*(axis.start for axis in place), *(axis.stop for axis in place)] for _, place, _ in objects(instances)]
    return np.array(rows, np.int64).reshape(len(rows), 2 * np.ndim(instances))


def box_iou(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Return the IoU of boxes ``[n, 2 * axes]`` and ``[m, 2 * axes]``, ``[n, m]``.

    MONAI's function of the name computes in single precision, by which an IoU of 13/20 would be below 0.65.
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    axes = a.shape[1] // 2
    sides = np.minimum(a[:, None, axes:], b[None, :, axes:]) - np.maximum(a[:, None, :axes], b[None, :, :axes])
    common = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(boxes[:, axes:] - boxes[:, :axes], axis=1) for boxes in (a, b)]
    unions = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, unions, out=np.zeros_like(common), where=unions > 0)


def match_boxes(
    pred: ArrayLike,
    scores: ArrayLike,
    true: ArrayLike,
    pred_classes: ArrayLike | None = None,
    true_classes: ArrayLike | None = None,
) -> Matches:
    """Match the detections of an image, the surest first, each with the free true box of highest IoU.

    Args:
        pred: boxes ``[n, 2 * axes]``, see :func:`object_boxes`.
        scores: how sure each is, ``[n]``; of equal ones the first comes first.
        true: boxes ``[m, 2 * axes]``.
        pred_classes: ``[n]`` whole numbers; None: all are of class 1.
        true_classes: ``[m]``.

    Returns:
        By class, what :func:`average_precision` is made of.

    Raises:
        ValueError: the lengths differ, or a score is not finite.
    """
    boxes, found = np.asarray(true, np.float64), np.asarray(pred, np.float64)
    sure = np.asarray(scores, np.float64)
    of_found = np.ones(len(found), np.int64) if pred_classes is None else np.asarray(pred_classes)
    of_boxes = np.ones(len(boxes), np.int64) if true_classes is None else np.asarray(true_classes)
    if not len(found) == len(sure) == len(of_found) or len(boxes) != len(of_boxes):
        raise ValueError("there must be one score and one class for each box")
    if not np.isfinite(sure).all():
        raise ValueError("the scores must be finite")
    classes = [int(number) for number in np.union1d(of_found, of_boxes)]
    return {c: _matched(found[of_found == c], sure[of_found == c], boxes[of_boxes == c]) for c in classes}


def average_precision(images: Sequence[Matches]) -> dict[str, float]:
    """Return COCO's average precision of all images together.

    Args:
        images: from :func:`match_boxes`.

    Returns:
        ``ap``: the mean over the IoU 0.5, 0.55, ..., 0.95; ``ap50`` and ``ap75``: at 0.5 and 0.75. Each is the mean
        over the classes that have a true box; NaN without any.

    Source:
        https://cocodataset.org/#detection-eval; :class:`monai.apps.detection.metrics.coco.COCOMetric`.
    """
    from monai.apps.detection.metrics.coco import COCOMetric  # slow to import

    # MONAI counts a class without a true box as -1 in its mean; as in COCO's own program it is left out.
    true = {c for image in images for c, of_class in image.items() if of_class["gtIgnore"].size}
    names = {f"class {c}": c for c in sorted(true)}
    if not names:
        return {"ap": math.nan, "ap50": math.nan, "ap75": math.nan}
    metric = COCOMetric(list(names), IOUS, _RANGE, max_detection=(_ALL,), per_class=False, verbose=False)
    place = {c: number for number, c in enumerate(names.values())}
    found, _ = metric([{place[c]: dict(one) for c, one in image.items() if c in place} for image in images])
    low, high, step = _RANGE
    keys = {"ap": f"mAP_IoU_{low:.2f}_{high:.2f}_{step:.2f}_MaxDet_{_ALL}"}
    keys |= {f"ap{round(100 * iou)}": f"AP_IoU_{iou:.2f}_MaxDet_{_ALL}" for iou in IOUS}
    return {name: float(found[key]) for name, key in keys.items()}


def _thresholds() -> NDArray[np.float64]:
    return np.linspace(_RANGE[0], _RANGE[1], 10)


def _matched(
    pred: NDArray[np.float64], scores: NDArray[np.float64], true: NDArray[np.float64]
) -> dict[str, np.ndarray]:
    """Match the boxes of one class.

    MONAI's matching loops over all pairs of boxes; those that overlap by half fall apart into tiny groups, of which
    none says anything of another.
    """
    from monai.apps.detection.metrics.matching import matching_batch  # slow to import

    ious = _thresholds()
    order = np.argsort(-scores, kind="stable")
    pred, scores = pred[order], scores[order]
    matched = np.zeros((len(ious), len(pred)))
    taken = np.zeros((len(ious), len(true)))
    overlap = box_iou(pred, true)
    first, second = np.nonzero(overlap >= ious[0] - 1e-9)
    size = len(pred) + len(true)
    graph = coo_array((np.ones(len(first)), (first, len(pred) + second)), shape=(size, size))
    group = connected_components(graph, directed=False)[1]
    by_group = np.argsort(group, kind="stable")
    for members in np.split(by_group, np.flatnonzero(np.diff(group[by_group])) + 1):
        mine, theirs = members[members < len(pred)], members[members >= len(pred)] - len(pred)
        if not (len(mine) and len(theirs)):
            continue
        one = np.zeros(len(mine), np.int64), np.zeros(len(theirs), np.int64)
        given = [pred[mine]], [one[0]], [scores[mine]], [true[theirs]], [one[1]]
        found = matching_batch(box_iou, ious, *given, max_detections=_ALL)[0][0]
        matched[:, mine], taken[:, theirs] = found["dtMatches"], found["gtMatches"]
    return {
        "dtMatches": matched,
        "gtMatches": taken,
        "dtScores": scores,
        "gtIgnore": np.zeros(len(true)),
        "dtIgnore": np.zeros_like(matched),
    }
