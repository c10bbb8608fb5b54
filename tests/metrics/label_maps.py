"""Small random label maps, and the metrics written down as their definitions say: slowly, mask by mask."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

LABELS = (0, 1, 2, 3, 7, 300, 70_000)  # with gaps
Labels = NDArray[np.integer]


@st.composite
def pairs_of_maps(draw: st.DrawFn, axes: int = 2, largest: int = 7) -> tuple[Labels, Labels]:
    """Draw two maps of one shape, of any size from one pixel up, often without one of the labels or all."""
    shape = tuple(draw(st.integers(1, largest)) for _ in range(axes))
    maps = []
    for _ in range(2):
        used = draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=5))
        maps.append(draw(arrays(np.int32, shape, elements=st.sampled_from(used), fill=st.just(used[0]))))
    return maps[0], maps[1]


def objects(labels: Labels) -> list[NDArray[np.bool_]]:
    """Return the mask of each instance, in the order of their first pixels."""
    masks = [labels == number for number in np.unique(labels) if number]
    return sorted(masks, key=lambda mask: int(mask.ravel().argmax()))


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Fraction:
    return Fraction(int((a & b).sum()), int((a | b).sum()))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Fraction:
    return Fraction(2 * int((a & b).sum()), int(a.sum()) + int(b.sum()))


def most_covering(mask: NDArray[np.bool_], others: list[NDArray[np.bool_]]) -> int | None:
    """Return which of the others covers most of the mask; of equals the one of larger Dice, then the first."""
    keys = [(int((mask & other).sum()), dice(mask, other), -i) for i, other in enumerate(others)]
    best = max(keys, default=(0, Fraction(0), 0))
    return -best[2] if best[0] else None


def aggregate(pairs: list[tuple[int, int]], preds: list, trues: list) -> tuple[int, int]:
    """Sum intersections and unions, instances in no pair added to the unions."""
    intersection = sum(int((trues[t] & preds[p]).sum()) for t, p in pairs)
    union = sum(int((trues[t] | preds[p]).sum()) for t, p in pairs)
    union += sum(int(mask.sum()) for t, mask in enumerate(trues) if t not in {pair[0] for pair in pairs})
    union += sum(int(mask.sum()) for p, mask in enumerate(preds) if p not in {pair[1] for pair in pairs})
    return intersection, union


def aji(pred: Labels, true: Labels) -> float:
    preds, trues = objects(pred), objects(true)
    best = [max(((iou(mask, other), -p) for p, other in enumerate(preds)), default=(0, 0)) for mask in trues]
    pairs = [(t, -first) for t, (overlap, first) in enumerate(best) if overlap]
    intersection, union = aggregate(pairs, preds, trues)
    return intersection / union if union else math.nan


def aji_plus_values(pred: Labels, true: Labels) -> set[float]:
    """Return the AJI+ of every one-to-one assignment with the largest sum of IoU."""
    preds, trues = objects(pred), objects(true)
    table = [[iou(mask, other) for other in preds] for mask in trues]
    values: dict[Fraction, set[float]] = {}
    # All ways to pair each true instance with one prediction or none, none used twice.
    for choice in itertools.product([None, *range(len(preds))], repeat=len(trues)):
        pairs = [(t, p) for t, p in enumerate(choice) if p is not None]
        if len({p for _, p in pairs}) < len(pairs):
            continue
        pairs = [(t, p) for t, p in pairs if table[t][p]]
        total = sum((table[t][p] for t, p in pairs), Fraction(0))
        intersection, union = aggregate(pairs, preds, trues)
        values.setdefault(total, set()).add(intersection / union if union else math.nan)
    return values[max(values)]


def object_dice(pred: Labels, true: Labels) -> float:
    preds, trues = objects(pred), objects(true)
    total = 0.0
    for ours, theirs in ((preds, trues), (trues, preds)):
        area = sum(int(mask.sum()) for mask in ours)
        for mask in ours:
            partner = most_covering(mask, theirs)
            if partner is not None:
                total += int(mask.sum()) / area * float(dice(mask, theirs[partner]))
    return total / 2 if preds or trues else math.nan


def object_f1(pred: Labels, true: Labels) -> float:
    preds, trues = objects(pred), objects(true)
    partners = [(mask, most_covering(mask, trues)) for mask in preds]
    hits = sum(2 * int((mask & trues[t]).sum()) > int(trues[t].sum()) for mask, t in partners if t is not None)
    return 2 * hits / (len(preds) + len(trues)) if preds or trues else math.nan


def hausdorff(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    distances = cdist(np.argwhere(a), np.argwhere(b))
    return float(max(distances.min(0).max(), distances.min(1).max()))


def object_hausdorff(pred: Labels, true: Labels) -> float:
    preds, trues = objects(pred), objects(true)
    if not preds or not trues:
        return math.inf if preds or trues else math.nan
    total = 0.0
    for ours, theirs in ((preds, trues), (trues, preds)):
        area = sum(int(mask.sum()) for mask in ours)
        for mask in ours:
            partner = most_covering(mask, theirs)
            candidates = theirs if partner is None else [theirs[partner]]
            total += int(mask.sum()) / area * min(hausdorff(mask, other) for other in candidates)
    return total / 2


def panoptic(pred: Labels, true: Labels) -> dict[str, Any]:
    preds, trues = objects(pred), objects(true)
    matches = [float(iou(a, b)) for a in preds for b in trues if iou(a, b) > Fraction(1, 2)]
    instances = len(preds) + len(trues)
    return {
        "pq": 2 * sum(matches) / instances if instances else math.nan,
        "dq": 2 * len(matches) / instances if instances else math.nan,
        "sq": sum(matches) / len(matches) if matches else math.nan,
    }
