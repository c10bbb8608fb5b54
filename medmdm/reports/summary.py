"""``summary.json``: everything a report says in numbers. The table and the page are made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import medmdm
from medmdm.errors import UserError
from medmdm.metrics.pixels import pool
from medmdm.reports.definitions import COUNTS, METRICS, PER_CLASS
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.reports.scoring import ScoredCase, Scores
from medmdm.reports.study import read_study, summarise_study
from medmdm.runs.record import Evaluation
from medmdm.stats.paper import paper_block
from medmdm.stats.selective import risk_coverage
from medmdm.stats.statistics import count_empty, json_ready, subgroups, summarise

__all__ = ["HEADLINES", "SUMMARY_FILE", "headline_keys", "make_summary", "summary_schema"]

SUMMARY_FILE = "summary.json"
HEADLINES = ("dice", "iou", "object_dice", "aji", "hausdorff95", "surface_dice")
_MOST_HEADLINES = 4
_GROUPS = range(2, 9)  # values that a column of a subgroup table may have
_NNUNET = {
    "Dice": "dice",
    "IoU": "iou",
    "TP": "tp",
    "FP": "fp",
    "FN": "fn",
    "TN": "tn",
    "n_pred": "n_pred",
    "n_ref": "n_true",
}


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema of ``summary.json``, which comes with medmdm."""
    schema: dict[str, Any] = json.loads(
        resources.files("medmdm.reports").joinpath("assets/summary.schema.json").read_text(encoding="utf-8")
    )
    return schema


def headline_keys(scores: dict[str, Any]) -> list[str]:
    """Return the metrics that stand first, those that were computed."""
    return [key for key in HEADLINES if key in scores][:_MOST_HEADLINES]


def make_summary(evaluation: Evaluation, scores: Scores, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Summarise the scores of an evaluation.

    Args:
        evaluation: the record.
        scores: of its cases; at least one case must have been scored.
        pseudonyms: what stands for patients; applied to everything returned.

    Returns:
        JSON-able content; keys are described by :func:`summary_schema`.

    Raises:
        UserError: no case was scored, or the study cannot be read.
    """
    cases = scores.cases
    if not cases:
        first = scores.excluded[0].reason if scores.excluded else "there is none"
        raise UserError(f"{evaluation.folder}: no case can be scored (first: {first})")
    patients = [case.patient for case in cases]
    keys = [key for key in METRICS if any(key in case.scores for case in cases)]
    summaries = {key: summarise(_values(cases, key), patients) for key in keys}
    pooled_by_class = _pooled_by_class(cases, evaluation.num_classes)
    pooled = _pooled(cases, pooled_by_class)
    numbers = range(1, evaluation.num_classes)
    dice = summaries["dice"]
    summary: dict[str, Any] = {
        "format": 1,
        "medmdm": medmdm.__version__,
        "dataset": evaluation.dataset,
        "section": evaluation.section,
        "cases": {
            "listed": len(evaluation.cases),
            "scored": len(cases),
            "excluded": len(scores.excluded),
            "patients": dice.n_patients,
        },
        "excluded": [{"case": one.name, "reason": one.reason} for one in scores.excluded],
        "source": scores.source,
        "stamp": {
            "kind": evaluation.provenance.kind,
            "sentence": evaluation.provenance.sentence,
            "overlapping": list(evaluation.provenance.overlapping),
        },
        "classes": list(evaluation.class_names),
        "ignore": None if evaluation.instance_labels else evaluation.ignore,
        "distance_unit": scores.ruler.unit,
        "tolerance": scores.ruler.tolerance,
        "notes": list(dict.fromkeys([*scores.notes, *dice.warnings])),
        "metric_per_case": [_nnunet_case(case, numbers, evaluation) for case in cases],
        **_nnunet_means(cases, numbers, evaluation),
        "scores": {key: summary.as_dict() | {"pooled": pooled.get(key)} for key, summary in summaries.items()},
        "class_scores": _class_scores(cases, patients, evaluation, keys, pooled_by_class),
        "paper_conventions": paper_block(_values(cases, "dice")) if evaluation.num_classes == 2 else None,
        "subgroups": _subgroups(cases, headline_keys(summaries)),
        "risk_coverage": _risk(cases),
        "learning_curve": _learning_curve(evaluation),
        "data_list": {k: v for k, v in evaluation.data_list.items() if k not in ("training", "validation", "test")},
        "protocol": evaluation.protocol,
        "record": evaluation.record,
    }
    cleaned: dict[str, Any] = pseudonyms.clean_all(json_ready(summary))
    return cleaned


def _values(cases: Sequence[ScoredCase], key: str) -> list[float]:
    return [case.scores.get(key, math.nan) for case in cases]


def _key(name: str, number: int, evaluation: Evaluation) -> str:
    """Return the column of a class; with one class but the background its scores are the case's."""
    return name if evaluation.num_classes == 2 and name not in COUNTS else f"{name}_{number}"


def _pooled_by_class(cases: Sequence[ScoredCase], num_classes: int) -> dict[int, dict[str, float]]:
    """Return micro averages by class: what the scores would be if all cases were one."""
    numbers = range(1, num_classes)
    return pool({k: {name: case.scores[f"{name}_{k}"] for name in COUNTS} for k in numbers} for case in cases)


def _pooled(cases: Sequence[ScoredCase], by_class: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return micro averages: of pixels the mean over classes, of objects all of them together."""
    pooled: dict[str, float] = {}
    for key in ("dice", "iou", "precision", "recall"):
        values = [row[key] for row in by_class.values() if not math.isnan(row[key])]
        pooled[key] = sum(values) / len(values) if values else math.nan
    sums: dict[str, float] = {}
    for key in ("objects_true", "objects_pred", "object_tp", "pq_tp", "pq_iou", "aji_intersection", "aji_union"):
        values = [case.scores[key] for case in cases if key in case.scores]
        if values:
            sums[key] = sum(values)
    if sums:
        objects = sums["objects_true"] + sums["objects_pred"]
        for key, above, below in (
            ("object_f1", 2 * sums["object_tp"], objects),
            ("object_precision", sums["object_tp"], sums["objects_pred"]),
            ("object_recall", sums["object_tp"], sums["objects_true"]),
            ("aji", sums["aji_intersection"], sums["aji_union"]),
            ("pq", 2 * sums["pq_iou"], objects),
            ("dq", 2 * sums["pq_tp"], objects),
            ("sq", sums["pq_iou"], sums["pq_tp"]),
        ):
            pooled[key] = above / below if below else math.nan
    return pooled


def _nnunet_case(case: ScoredCase, numbers: range, evaluation: Evaluation) -> dict[str, Any]:
    metrics = {str(k): {name: case.scores[_key(key, k, evaluation)] for name, key in _NNUNET.items()} for k in numbers}
    return {"case": case.name, "metrics": metrics, "prediction_file": case.files[0], "reference_file": case.files[1]}


def _nnunet_means(cases: Sequence[ScoredCase], numbers: range, evaluation: Evaluation) -> dict[str, Any]:
    """Return means over cases by class, and their means over classes, without undefined values, as nnU-Net does."""

    def mean(values: Sequence[float]) -> float:
        defined = [value for value in values if not math.isnan(value)]
        return sum(defined) / len(defined) if defined else math.nan

    by_class = {
        str(k): {name: mean(_values(cases, _key(key, k, evaluation))) for name, key in _NNUNET.items()} for k in numbers
    }
    return {
        "mean": by_class,
        "foreground_mean": {name: mean([row[name] for row in by_class.values()]) for name in _NNUNET},
    }


def _class_scores(
    cases: Sequence[ScoredCase],
    patients: Sequence[str | None],
    evaluation: Evaluation,
    keys: Sequence[str],
    pooled: dict[int, dict[str, float]],
) -> dict[str, Any]:
    """Return for each class its scores, and how often prediction or truth held nothing of it."""
    found: dict[str, Any] = {}
    for number in range(1, evaluation.num_classes):
        scored = {key: _key(key, number, evaluation) for key in PER_CLASS if key in keys}
        found[str(number)] = {
            "name": evaluation.class_names[number],
            "scores": {
                key: summarise(_values(cases, column), patients).as_dict() | {"pooled": pooled[number].get(key)}
                for key, column in scored.items()
            },
            "empty": count_empty(_values(cases, f"n_pred_{number}"), _values(cases, f"n_true_{number}")),
        }
    return found


def _subgroups(cases: Sequence[ScoredCase], keys: Sequence[str]) -> dict[str, Any]:
    """Return the scores by each column of the data list that has a few values."""
    import pandas as pd  # slow to import

    found: dict[str, Any] = {}
    for column in dict.fromkeys(name for case in cases for name in case.columns):
        values = [case.columns.get(column) for case in cases]
        if len({value for value in values if value is not None}) not in _GROUPS:
            continue
        table = pd.DataFrame({"group": values, "patient": [case.patient for case in cases]})
        groups: dict[str, Any] = {}
        for key in keys:
            for value, summary in subgroups(
                table.assign(value=_values(cases, key)), "group", "value", "patient"
            ).items():
                groups.setdefault(value, {"cases": int(sum((v or "(none)") == value for v in values)), "scores": {}})
                groups[value]["scores"][key] = summary.as_dict()
        found[column] = groups
    return found


def _risk(cases: Sequence[ScoredCase]) -> dict[str, Any] | None:
    """Return what is left of the error when the most uncertain cases are set aside, if uncertainty was written."""
    if not any("uncertainty" in case.scores for case in cases):
        return None
    curve = risk_coverage([1 - value for value in _values(cases, "dice")], _values(cases, "uncertainty"))
    return curve.as_dict() if len(curve.coverage) else None


def _learning_curve(evaluation: Evaluation) -> list[dict[str, Any]]:
    if evaluation.study is None:
        return []
    return summarise_study(read_study(evaluation.study), {case.name: case.patient for case in evaluation.cases})
