"""Pixel and instance metrics of one case.

Metrics are called as ``metric(pred, true)``. What is undefined (nothing to score) is NaN and never averaged in
silence: every summary counts what it left out. Definitions and edge cases: ``docs/reference/metrics.md``.
"""

from medmdm.metrics.detection import average_precision, match_boxes, object_boxes
from medmdm.metrics.instances import (
    aji,
    aji_plus,
    connected_objects,
    instance_scores,
    object_dice,
    object_f1,
    object_hausdorff,
    panoptic_quality,
)
from medmdm.metrics.overlap import Overlaps, overlaps
from medmdm.metrics.pixels import dice, iou, mean_scores, pixel_scores, pool, surface_scores

__all__ = [
    "Overlaps", "aji", "aji_plus", "average_precision", "connected_objects", "dice", "instance_scores", "iou",
    "match_boxes", "mean_scores", "object_boxes", "object_dice", "object_f1", "object_hausdorff", "overlaps",
    "panoptic_quality", "pixel_scores", "pool", "surface_scores",
]  # fmt: skip
