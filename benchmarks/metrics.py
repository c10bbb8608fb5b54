"""Instance metrics: medmdm's table of overlaps against loops over instances and whole images, in one run.

Both sides score the same pair of label maps: ellipses the size of nuclei, and a copy in which each has moved and
changed its size a little, one in twenty is missing and one in twenty has no partner. The straightforward side follows
the definitions: for each instance it makes a mask of the whole image. For the object Hausdorff distance it makes one
distance transform of the whole image for each instance and reads all distances that are needed from it; comparing each
unmatched instance with every other by its own two transforms, as the challenge's program does, would take some 70
times longer.

Usage::

    python benchmarks/metrics.py            # 1000 x 1000 with 700 instances, then 4000 x 4000 with 10 000; minutes
    python benchmarks/metrics.py --quick    # 400 x 400 with 100 instances instead of the first
    python benchmarks/metrics.py --json     # one line and nothing else
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from medmdm.metrics.instances import aji, instance_scores, object_dice, object_f1, object_hausdorff, panoptic_quality

Labels = NDArray[np.int32]
UNMATCHED = 0.05  # of the instances of either map


def make_pair(size: int, instances: int, seed: int = 0) -> tuple[Labels, Labels]:
    """Draw a predicted and a true label map, ``[size, size]``, with about so many instances each, and gaps."""
    rng = np.random.default_rng(seed)
    cells = math.ceil(math.sqrt(instances / (1 - UNMATCHED)))
    pitch = size / cells
    pred, true = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    chosen = rng.permutation(cells**2)[: round(instances / (1 - UNMATCHED))]
    only_true, only_pred = rng.permutation(len(chosen))[: 2 * round(len(chosen) * UNMATCHED)].reshape(2, -1)
    for k, cell in enumerate(chosen):
        centre = (np.array(divmod(cell, cells)) + 0.5 + rng.uniform(-0.1, 0.1, 2)) * pitch
        radii, angle = rng.uniform(0.2, 0.36, 2) * pitch, rng.uniform(0, math.pi)
        if k not in only_pred:
            draw_ellipse(true, centre, radii, angle, 3 * k + 1)
        if k not in only_true:
            moved, resized = centre + rng.uniform(-0.1, 0.1, 2) * pitch, radii * rng.uniform(0.8, 1.2)
            draw_ellipse(pred, moved, resized, angle, 5 * (len(chosen) - k))
    return pred, true


def draw_ellipse(labels: Labels, centre: NDArray, radii: NDArray, angle: float, number: int) -> None:
    """Fill an ellipse with a number, where there is background."""
    low = np.maximum(np.floor(centre - radii.max()).astype(int), 0)
    high = np.minimum(np.ceil(centre + radii.max()).astype(int) + 1, labels.shape)
    window = labels[low[0] : high[0], low[1] : high[1]]
    y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
    y, x = y - centre[0], x - centre[1]
    along, across = math.cos(angle) * y + math.sin(angle) * x, math.cos(angle) * x - math.sin(angle) * y
    window[((along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1) & (window == 0)] = number


def numbers(labels: Labels) -> list[int]:
    return [int(number) for number in np.unique(labels) if number]


def largest_overlap(mask: NDArray[np.bool_], labels: Labels) -> int | None:
    """Return the instance of ``labels`` that covers most of the mask."""
    found, counts = np.unique(labels[mask & (labels > 0)], return_counts=True)
    return int(found[counts.argmax()]) if len(found) else None


def slow_aji(pred: Labels, true: Labels) -> float:
    intersection, union, used = 0, 0, set()
    for t in numbers(true):
        here = true == t
        best, best_iou = None, 0.0
        for p in numbers(pred[here]):
            there = pred == p
            common, joined = int((here & there).sum()), int((here | there).sum())
            if common / joined > best_iou:
                best, best_iou, pair = p, common / joined, (common, joined)
        if best is None:
            union += int(here.sum())
        else:
            used.add(best)
            intersection, union = intersection + pair[0], union + pair[1]
    return intersection / (union + sum(int((pred == p).sum()) for p in numbers(pred) if p not in used))


def slow_object_dice(pred: Labels, true: Labels) -> float:
    total = 0.0
    for a, b in ((pred, true), (true, pred)):
        foreground = int((a > 0).sum())
        for number in numbers(a):
            here = a == number
            partner = largest_overlap(here, b)
            if partner is not None:
                there = b == partner
                share = 2 * int((here & there).sum()) / (int(here.sum()) + int(there.sum()))
                total += int(here.sum()) / foreground * share
    return total / 2


def slow_object_f1(pred: Labels, true: Labels) -> float:
    hits = 0
    for p in numbers(pred):
        here = pred == p
        partner = largest_overlap(here, true)
        if partner is not None:
            there = true == partner
            hits += int((here & there).sum()) > 0.5 * int(there.sum())
    return 2 * hits / (len(numbers(pred)) + len(numbers(true)))


def slow_panoptic_quality(pred: Labels, true: Labels) -> float:
    total = 0.0
    for t in numbers(true):
        here = true == t
        for p in numbers(pred[here]):
            there = pred == p
            iou = int((here & there).sum()) / int((here | there).sum())
            total += iou if iou > 0.5 else 0.0
    return 2 * total / (len(numbers(pred)) + len(numbers(true)))


def slow_object_hausdorff(pred: Labels, true: Labels) -> float:
    maps = (pred, true)
    names = [numbers(labels) for labels in maps]
    # Directed distances from the instances of one map to those of the other: the largest distance in each instance.
    directed = [np.zeros((len(names[0]), len(names[1]))), np.zeros((len(names[1]), len(names[0])))]
    for side in (0, 1):
        index = np.searchsorted(names[1 - side], maps[1 - side])
        filled = maps[1 - side] > 0
        for j, number in enumerate(names[side]):
            distance = distance_transform_edt(maps[side] != number)
            np.maximum.at(directed[1 - side][:, j], index[filled], distance[filled])
    both = np.maximum(directed[0], directed[1].T)
    total = 0.0
    for side, table in ((0, both), (1, both.T)):
        foreground = int((maps[side] > 0).sum())
        for i, number in enumerate(names[side]):
            here = maps[side] == number
            partner = largest_overlap(here, maps[1 - side])
            distance = table[i].min() if partner is None else table[i, names[1 - side].index(partner)]
            total += int(here.sum()) / foreground * distance
    return total / 2


Metric = Callable[[Labels, Labels], float]
TOGETHER: dict[str, tuple[Metric, Metric]] = {
    "AJI": (aji, slow_aji),
    "object Dice": (object_dice, slow_object_dice),
    "object F1": (object_f1, slow_object_f1),
    "panoptic quality": (panoptic_quality, slow_panoptic_quality),
}


def timed(metric: Callable, *arguments: Labels, repeats: int = 1) -> tuple[float, float]:
    """Return the value and the shortest of several times in seconds."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        value = metric(*arguments)
        best = min(best, time.perf_counter() - start)
    return value, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a 400 x 400 pair with 100 instances for the ratios")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    arguments = parser.parse_args()
    size, instances = (400, 100) if arguments.quick else (1000, 700)

    def say(*columns: object) -> None:
        if not arguments.json:
            print("| " + " | ".join(str(column) for column in columns) + " |", flush=True)

    pred, true = make_pair(size, instances)
    if not arguments.json:
        print(f"{platform.machine()} CPU, numpy {np.__version__}, load {os.getloadavg()[0]:.1f}")
        print(f"{size} x {size}, {len(numbers(true))} true and {len(numbers(pred))} predicted instances\n")
    say("metric", "ours (s)", "straightforward (s)", "ratio", "difference")
    say(*["---"] * 5)
    differences, slow_total = [], 0.0
    for name, (ours, slow) in TOGETHER.items():
        value, seconds = timed(ours, pred, true, repeats=5)
        expected, slow_seconds = timed(slow, pred, true)
        slow_total += slow_seconds
        differences.append(abs(value - expected))
        say(name, f"{seconds:.4f}", f"{slow_seconds:.2f}", f"{slow_seconds / seconds:.0f}", f"{differences[-1]:.1e}")
    # One call, which computes the AJI+ besides.
    _, seconds = timed(lambda p, t: instance_scores(p, t, hausdorff=False)["pq"], pred, true, repeats=5)
    ratio = slow_total / seconds
    say("these together", f"{seconds:.4f}", f"{slow_total:.2f}", f"{ratio:.0f}", f"{max(differences):.1e}")
    value, seconds = timed(object_hausdorff, pred, true, repeats=3)
    expected, slow_seconds = timed(slow_object_hausdorff, pred, true)
    differences.append(abs(value - expected))
    say(
        "object Hausdorff",
        f"{seconds:.3f}",
        f"{slow_seconds:.1f}",
        f"{slow_seconds / seconds:.0f}",
        f"{differences[-1]:.1e}",
    )
    pred, true = make_pair(4000, 10_000, seed=1)
    _, seconds_10000 = timed(lambda p, t: instance_scores(p, t)["pq"], pred, true)
    if arguments.json:
        print(json.dumps({"ratio": ratio, "max_difference": max(differences), "seconds_10000": seconds_10000}))
    else:
        print(
            f"\n4000 x 4000, {len(numbers(true))} true and {len(numbers(pred))} predicted instances: "
            f"all metrics in {seconds_10000:.2f} s"
        )


if __name__ == "__main__":
    main()
