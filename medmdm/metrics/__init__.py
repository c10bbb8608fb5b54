"""Pixel and instance metrics of a case, and statistics over cases."""

from medmdm.metrics.instances import (
    aji,
    aji_plus,
    instance_scores,
    object_dice,
    object_f1,
    object_hausdorff,
    panoptic_quality,
)
from medmdm.metrics.overlap import Overlaps, overlaps
from medmdm.metrics.pixels import dice, iou, pixel_scores, pool
from medmdm.metrics.surface import surface_scores

__all__ = [
    "Overlaps",
    "aji",
    "aji_plus",
    "dice",
    "instance_scores",
    "iou",
    "object_dice",
    "object_f1",
    "object_hausdorff",
    "overlaps",
    "panoptic_quality",
    "pixel_scores",
    "pool",
    "surface_scores",
]
