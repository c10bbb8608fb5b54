"""Pixel and instance metrics of a case, and statistics over cases.

Metrics are called as ``metric(pred, true)``. What is undefined (nothing to score) is NaN and never averaged in
silence: every summary counts what it left out. Definitions and edge cases: ``docs/reference/metrics.md``.
"""

from medmdm.metrics.comparison import Comparison, holm, paired, sign_flip_test
from medmdm.metrics.instances import (
    aji,
    aji_plus,
    instance_scores,
    object_dice,
    object_f1,
    object_hausdorff,
    panoptic_quality,
)
from medmdm.metrics.intervals import bca_interval, t_interval
from medmdm.metrics.overlap import Overlaps, overlaps
from medmdm.metrics.paper import PAPER_LABELS, paper_block
from medmdm.metrics.pixels import dice, iou, pixel_scores, pool
from medmdm.metrics.selective import RiskCoverage, risk_coverage
from medmdm.metrics.spread import Spread, spread
from medmdm.metrics.statistics import Summary, count_empty, json_ready, subgroups, summarise
from medmdm.metrics.surface import surface_scores

__all__ = [
    "PAPER_LABELS",
    "Comparison",
    "Overlaps",
    "RiskCoverage",
    "Spread",
    "Summary",
    "aji",
    "aji_plus",
    "bca_interval",
    "count_empty",
    "dice",
    "holm",
    "instance_scores",
    "iou",
    "json_ready",
    "object_dice",
    "object_f1",
    "object_hausdorff",
    "overlaps",
    "paired",
    "panoptic_quality",
    "paper_block",
    "pixel_scores",
    "pool",
    "risk_coverage",
    "sign_flip_test",
    "spread",
    "subgroups",
    "summarise",
    "surface_scores",
    "t_interval",
]
