"""What the numbers of a report are called, what they mean, and which is better."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COUNTS", "METRICS", "OBJECT_COUNTS", "PER_CLASS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A score of a case.

    Args:
        key: its column in ``per_case.csv``.
        title: its name in tables.
        group: ``"pixels"``, ``"surfaces"`` or ``"objects"``.
        explanation: one sentence.
        distance: whether it is a distance, of which less is better, rather than a share of 1.
    """

    key: str
    title: str
    group: str
    explanation: str
    distance: bool = False


METRICS = {
    metric.key: metric
    for metric in (
        Metric("dice", "Dice", "pixels", "Twice the common pixels, divided by the pixels of truth and prediction."),
        Metric("iou", "IoU", "pixels", "The common pixels, divided by the pixels of either (Jaccard index)."),
        Metric("precision", "Precision", "pixels", "The share of the predicted pixels that is right."),
        Metric("recall", "Recall", "pixels", "The share of the true pixels that is found (sensitivity)."),
        Metric(
            "hausdorff95",
            "Hausdorff 95 %",
            "surfaces",
            "The distance within which 95 % of each outline lie from the other; the larger of the two sides.",
            distance=True,
        ),
        Metric("surface_dice", "Surface Dice", "surfaces", "The share of both outlines within the tolerance."),
        Metric("boundary_f", "Boundary F", "surfaces", "F1 of the shares of each outline within the tolerance."),
        Metric(
            "object_dice",
            "Object Dice",
            "objects",
            "Dice of each object with the one that covers most of it, weighted by area, from both sides (GlaS "
            "challenge).",
        ),
        Metric(
            "object_f1",
            "Object F1",
            "objects",
            "F1 of detection: a prediction counts if it covers more than half of the object it overlaps most (GlaS "
            "challenge).",
        ),
        Metric("object_precision", "Object precision", "objects", "The share of the predicted objects that counts."),
        Metric("object_recall", "Object recall", "objects", "The share of the true objects that is found."),
        Metric(
            "object_hausdorff",
            "Object Hausdorff",
            "objects",
            "Hausdorff distance of each object to its counterpart, weighted by area, from both sides, in pixels (GlaS "
            "challenge).",
            distance=True,
        ),
        Metric(
            "aji",
            "AJI",
            "objects",
            "Aggregated Jaccard index: each true object with the prediction of highest IoU, unpaired ones added to the "
            "union (MoNuSeg challenge).",
        ),
        Metric("aji_plus", "AJI+", "objects", "AJI with pairs one to one."),
        Metric("pq", "Panoptic quality", "objects", "Detection quality times segmentation quality."),
        Metric("dq", "Detection quality", "objects", "F1 of the objects matched with an IoU above 1/2."),
        Metric("sq", "Segmentation quality", "objects", "Mean IoU of the matched objects."),
    )
}
PER_CLASS = tuple(metric.key for metric in METRICS.values() if metric.group != "objects")
COUNTS = ("tp", "fp", "fn", "tn", "n_true", "n_pred")  # pixels of a class
# What the metrics of objects count in a case, and its column: objects, not pixels.
OBJECT_COUNTS = {
    "n_true": "objects_true",
    "n_pred": "objects_pred",
    "object_tp": "object_tp",
    "pq_tp": "pq_tp",
    "pq_iou": "pq_iou",
    "aji_intersection": "aji_intersection",
    "aji_union": "aji_union",
}
