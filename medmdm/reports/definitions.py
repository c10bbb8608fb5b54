"""What the numbers of a report are called, what they mean, and which is better (``assets/metrics.json``)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["COUNTS", "METRICS", "OBJECT_COUNTS", "PER_CLASS", "Metric", "asset"]


@dataclass(frozen=True)
class Metric:
    """A score of a case, by its column in ``per_case.csv``.

    Args:
        title: its name in tables.
        group: ``"pixels"``, ``"surfaces"`` or ``"objects"``.
        explanation: one sentence.
        distance: whether it is a distance, of which less is better, rather than a share of 1.
    """

    title: str
    group: str
    explanation: str
    distance: bool = False


def asset(name: str) -> str:
    """Return the text of a file that comes with the reports: style, script, schema, metrics."""
    return resources.files("medmdm.reports").joinpath(f"assets/{name}").read_text(encoding="utf-8")


_TEXTS: dict[str, dict[str, Any]] = json.loads(asset("metrics.json"))
METRICS = {key: Metric(**texts) for key, texts in _TEXTS.items()}
PER_CLASS = tuple(key for key, metric in METRICS.items() if metric.group != "objects")
COUNTS = ("tp", "fp", "fn", "tn", "n_true", "n_pred")  # pixels of a class
# What the metrics of objects count in a case, and its column: objects, not pixels.
OBJECT_COUNTS = {
    "n_true": "objects_true",
    "n_pred": "objects_pred",
    **{key: key for key in ("object_tp", "pq_tp", "pq_iou", "aji_intersection", "aji_union")},
}
