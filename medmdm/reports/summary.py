"""``summary.json``: everything a report says in numbers. The table and the page are made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import medmdm
from medmdm.errors import UserError
from medmdm.metrics.pixels import pool
from medmdm.reports.per_case import Pseudonyms
from medmdm.reports.rendering import COUNTS, METRICS, OBJECT_COUNTS, PER_CLASS, asset
from medmdm.reports.scoring import ScoredCase, Scores
from medmdm.reports.study import read_study, summarise_study
from medmdm.runs.record import Evaluation
from medmdm.stats import count_empty, json_ready, paper_block, risk_coverage, subgroups, summarise

SUMMARY_FILE = "summary.json"
HEADLINES = ("dice", "iou", "object_dice", "aji", "hausdorff95", "surface_dice")
_MOST_HEADLINES = 4
_GROUPS = range(2, 9)  # values that a column of a subgroup table may have
_NNUNET = {"Dice": "dice", "IoU": "iou", "TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn"}
_NNUNET |= {"n_pred": "n_pred", "n_ref": "n_true"}


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema of ``summary.json``, which comes with medmdm."""
    schema: dict[str, Any] = json.loads(asset("summary.schema.json"))
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
    numbers = range(1, evaluation.num_classes)
    several = evaluation.num_classes > 2
    summaries = {key: summarise(_values(cases, key), patients) for key in METRICS if _known(cases, key)}
    pooled_by_class = pool(
        {k: {name: case.scores[f"{name}_{k}"] for name in COUNTS} for k in numbers} for case in cases
    )
    pooled = _pooled(cases, pooled_by_class)
    nnunet = {str(k): {name: _column(key, k, several) for name, key in _NNUNET.items()} for k in numbers}
    means = {k: {name: _mean(_values(cases, key)) for name, key in row.items()} for k, row in nnunet.items()}
    dice, provenance, study = summaries["dice"], evaluation.provenance, evaluation.study
    patient_of = {case.name: case.patient for case in evaluation.cases}
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
        "stamp": {key: getattr(provenance, key) for key in ("kind", "sentence", "overlapping")},
        "classes": evaluation.class_names,
        "ignore": None if evaluation.instance_labels else evaluation.ignore,
        "distance_unit": scores.ruler.unit,
        "tolerance": scores.ruler.tolerance,
        "notes": list(dict.fromkeys([*scores.notes, *dice.warnings])),
        "metric_per_case": [
            {
                "case": case.name,
                "metrics": {k: {name: case.scores[key] for name, key in row.items()} for k, row in nnunet.items()},
                "prediction_file": case.files[0],
                "reference_file": case.files[1],
            }
            for case in cases
        ],
        # As nnU-Net has them: over cases by class, and their means over classes, without undefined values.
        "mean": means,
        "foreground_mean": {name: _mean([row[name] for row in means.values()]) for name in _NNUNET},
        "scores": {key: summary.as_dict() | {"pooled": pooled.get(key)} for key, summary in summaries.items()},
        "class_scores": {
            str(k): {
                "name": evaluation.class_names[k],
                "scores": {
                    key: summarise(_values(cases, _column(key, k, several)), patients).as_dict()
                    | {"pooled": pooled_by_class[k].get(key)}
                    for key in PER_CLASS
                    if key in summaries
                },
                # How often prediction or truth held nothing of it.
                "empty": count_empty(_values(cases, f"n_pred_{k}"), _values(cases, f"n_true_{k}")),
            }
            for k in numbers
        },
        "paper_conventions": None if several else paper_block(_values(cases, "dice")),
        "subgroups": _subgroups(cases, headline_keys(summaries)),
        "risk_coverage": _risk(cases),
        "learning_curve": [] if study is None else summarise_study(read_study(study), patient_of),
        "data_list": {k: v for k, v in evaluation.data_list.items() if k not in ("training", "validation", "test")},
        "protocol": evaluation.protocol,
        "record": evaluation.record,
    }
    cleaned: dict[str, Any] = pseudonyms.clean_all(json_ready(summary))
    return cleaned


def _known(cases: Sequence[ScoredCase], key: str) -> bool:
    return any(key in case.scores for case in cases)


def _values(cases: Sequence[ScoredCase], key: str) -> list[float]:
    return [case.scores.get(key, math.nan) for case in cases]


def _column(name: str, number: int, several: bool) -> str:
    """Return the column of a class; with one class but the background its scores are the case's."""
    return f"{name}_{number}" if several or name in COUNTS else name


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _pooled(cases: Sequence[ScoredCase], by_class: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return micro averages: of pixels the mean over classes, of objects all of them together."""
    pooled = {key: _mean([row[key] for row in by_class.values()]) for key in ("dice", "iou", "precision", "recall")}
    if not _known(cases, "objects_true"):
        return pooled
    sums = {key: sum(case.scores.get(key, 0) for case in cases) for key in OBJECT_COUNTS.values()}
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


def _subgroups(cases: Sequence[ScoredCase], keys: Sequence[str]) -> dict[str, Any]:
    """Return the scores by each column of the data list that has a few values."""
    import pandas as pd  # slow to import

    found: dict[str, Any] = {}
    for column in dict.fromkeys(name for case in cases for name in case.columns):
        values = [case.columns.get(column) for case in cases]
        if len(set(values) - {None}) not in _GROUPS:
            continue
        table = pd.DataFrame({"group": values, "patient": [case.patient for case in cases]})
        groups: dict[str, Any] = {}
        for key in keys:
            parts = subgroups(table.assign(value=_values(cases, key)), "group", "value", "patient")
            for value, summary in parts.items():
                groups.setdefault(value, {"cases": sum((v or "(none)") == value for v in values), "scores": {}})
                groups[value]["scores"][key] = summary.as_dict()
        found[column] = groups
    return found


def _risk(cases: Sequence[ScoredCase]) -> dict[str, Any] | None:
    """Return what is left of the error when the most uncertain cases are set aside, if uncertainty was written."""
    if not _known(cases, "uncertainty"):
        return None
    curve = risk_coverage([1 - value for value in _values(cases, "dice")], _values(cases, "uncertainty"))
    return curve.as_dict() if len(curve.coverage) else None
