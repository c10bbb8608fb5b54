"""``summary.json``: everything a report says in numbers. The table and the page are made of it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import medmdm
from medmdm.data.lists import IMAGE_SECTIONS
from medmdm.errors import UserError
from medmdm.files import atomic_write, delimiter_of, plain_cell, text_of
from medmdm.metrics.pixels import pool
from medmdm.reports.baselines import baseline_scores, not_better
from medmdm.reports.detection import pooled_precision, precision_sentence
from medmdm.reports.label_plan import read_label_plan
from medmdm.reports.pseudonyms import Pseudonyms, public_protocol, without_paths
from medmdm.reports.rendering import BASELINE_COLUMNS, COUNTS, METRICS, OBJECT_COUNTS, PER_CLASS, asset, csv_text
from medmdm.reports.scoring import Excluded, Ruler, ScoredCase, Scores
from medmdm.reports.study import read_study, summarise_study
from medmdm.runs.record import MAPS, Evaluation
from medmdm.stats import count_empty, json_ready, paper_block, risk_coverage, subgroups, summarise

PER_CASE_FILE = "per_case.csv"
_FIXED = ("case", "patient", "seen", "excluded", "distance_unit", "tolerance", "prediction_file", "reference_file")
_SCORES = (*METRICS, *MAPS, *OBJECT_COUNTS.values(), *BASELINE_COLUMNS)
_NUMBERED = re.compile(rf"(?:{'|'.join((*PER_CLASS, *COUNTS, *BASELINE_COLUMNS))})_\d+")


def write_per_case(scores: Scores, path: Path) -> None:
    """Write a row for each case, excluded ones with their reason.

    Numbers have all their digits; an empty cell is an undefined value, ``inf`` an infinite distance. Columns of the
    data list stand between, one that has the name of another column under ``list_<name>``.
    """
    keys = list(dict.fromkeys(key for case in scores.cases for key in case.scores))
    columns = list(dict.fromkeys(name for case in scores.cases for name in case.columns))
    titles = [f"list_{name}" if name in (*_FIXED, *_SCORES) or _NUMBERED.fullmatch(name) else name for name in columns]
    ruler = [scores.ruler.unit, _text(scores.ruler.tolerance)]
    rows: dict[int, list[str]] = {}
    for case in scores.cases:
        fixed = [case.name, case.patient or "", "yes" if case.seen else "", "", *ruler, *case.files]
        values = [_text(case.scores.get(key, math.nan)) for key in keys]
        rows[case.number] = [*fixed, *(case.columns.get(name, "") for name in columns), *values]
    for one in scores.excluded:
        rows[one.number] = [one.name, "", "", one.reason, *ruler, *[""] * (2 + len(columns) + len(keys))]
    atomic_write(path, csv_text([[*_FIXED, *titles, *keys], *(row for _, row in sorted(rows.items()))]))


def read_per_case(path: Path, evaluation: Evaluation) -> Scores:
    """Read the scores back; names, patients and columns of the data list come from the evaluation.

    Raises:
        UserError: it cannot be read, or is of other cases.
    """
    try:
        text = text_of(path.read_bytes())
        delimiter = delimiter_of(text)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate again") from error
    by_name = {plain_cell(row.get("case") or ""): row for row in rows}
    found = Scores([], [], Ruler("pixels", 0.0, 0.0), source="per_case.csv")
    pseudonyms = Pseudonyms.of([evaluation])
    for number, case in enumerate(evaluation.cases):
        row = by_name.get(case.name) or by_name.get(pseudonyms.clean(case.name))
        if row is None:
            raise UserError(f"{path} has no row for {pseudonyms.clean(case.name)}: evaluate again")
        if row.get("excluded"):
            found.excluded.append(Excluded(case.name, number, row["excluded"]))
            continue
        keys = [key for key in row if key in _SCORES or _NUMBERED.fullmatch(key or "")]
        scored = ScoredCase.of(case, number, evaluation, {key: _number(row[key], key, path, delimiter) for key in keys})
        files = (plain_cell(row.get("prediction_file") or ""), plain_cell(row.get("reference_file") or ""))
        found.cases.append(replace(scored, files=files))
    unit = rows[0].get("distance_unit") or "pixels"
    tolerance = _number(rows[0].get("tolerance"), "tolerance", path, delimiter)
    return replace(found, ruler=Ruler(unit, {"mm": 1.0, "µm": 1000.0}.get(unit, 0.0), tolerance))


def _text(value: float) -> str:
    return "" if math.isnan(value) else repr(value if isinstance(value, int) else float(value))


def _number(text: str | None, key: str, path: Path, delimiter: str) -> float:
    if not text:
        return math.nan
    text = text if delimiter == "," else text.replace(",", ".")
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError as error:
        raise UserError(f"{path}: {key} is {text!r}, which is no number: evaluate again") from error


SUMMARY_FILE = "summary.json"
HEADLINES = ("dice", "iou", "object_dice", "aji", "hausdorff95", "surface_dice")
_MOST_HEADLINES = 4
_GROUPS = range(2, 9)  # values that a column of a subgroup table may have
_NNUNET = {"Dice": "dice", "IoU": "iou", "TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn"}
_NNUNET |= {"n_pred": "n_pred", "n_ref": "n_true"}


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema of ``summary.json``, which comes with medmdm."""
    return json.loads(asset("summary.schema.json"))


def headline_keys(scores: dict[str, Any]) -> list[str]:
    """Return the metrics that stand first, those that were computed."""
    return [key for key in HEADLINES if key in scores][:_MOST_HEADLINES]


def make_summary(evaluation: Evaluation, scores: Scores, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Return the summary of an evaluation as JSON-able content described by :func:`summary_schema`.

    Args:
        evaluation: the record.
        scores: of its cases; at least one case must have been scored.
        pseudonyms: what stands for patients; applied to everything returned.

    Raises:
        UserError: no case was scored, or the study cannot be read.
    """
    cases = scores.cases
    if not cases:
        first = scores.excluded[0].reason if scores.excluded else "there is none"
        raise UserError(f"{evaluation.folder}: no case can be scored (first: {first})")
    patients = [case.patient for case in cases]
    numbers = [number for number in evaluation.classes if number]
    several = len(numbers) > 1
    summaries = {key: summarise(_values(cases, key), patients) for key in METRICS if _known(cases, key)}
    counts = ({k: {name: case.scores[f"{name}_{k}"] for name in COUNTS} for k in numbers} for case in cases)
    pooled_by_class = pool(counts)
    detection = pooled_precision(cases)
    pooled = _pooled(cases, pooled_by_class) | {key: value for key, (value, _) in detection.items()}
    around = {key: {"pooled_interval": interval} for key, (_, interval) in detection.items()}
    nnunet = {str(k): {name: _column(key, k, several) for name, key in _NNUNET.items()} for k in numbers}
    means = {k: {name: _mean(_values(cases, key)) for name, key in row.items()} for k, row in nnunet.items()}
    baselines = baseline_scores(cases, list(numbers) if several else [], patients)
    dice, provenance, study = summaries["dice"], evaluation.provenance, evaluation.study
    patient_of = {case.name: case.patient for case in evaluation.cases}
    listed = {"listed": len(evaluation.cases), "scored": len(cases), "excluded": len(scores.excluded)}
    summary: dict[str, Any] = {
        "format": 1,
        "medmdm": medmdm.__version__,
        "dataset": evaluation.dataset,
        "section": evaluation.section,
        "cases": listed | {"patients": dice.n_patients},
        "excluded": [{"case": one.name, "reason": one.reason} for one in scores.excluded],
        "source": scores.source,
        "stamp": {key: getattr(provenance, key) for key in ("kind", "sentence", "overlapping")},
        "classes": list(evaluation.classes.values()),
        "ignore": None if evaluation.instance_labels else evaluation.ignore,
        "distance_unit": scores.ruler.unit,
        "tolerance": scores.ruler.tolerance,
        "notes": list(
            dict.fromkeys(
                [
                    *precision_sentence(detection),
                    *not_better(baselines),
                    *evaluation.protocol.get("notes", ()),
                    *scores.notes,
                    *dice.warnings,
                ]
            )
        ),
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
        "scores": {
            key: summary.as_dict() | {"pooled": pooled.get(key)} | around.get(key, {})
            for key, summary in summaries.items()
        },
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
        "baselines": baselines,
        "paper_conventions": None if several else paper_block(_values(cases, "dice")),
        "subgroups": _subgroups(cases, headline_keys(summaries)),
        "risk_coverage": _risk(cases),
        "learning_curve": [] if study is None else summarise_study(read_study(study), patient_of),
        "label_plan": read_label_plan(evaluation.folder),
        "data_list": {k: v for k, v in evaluation.data_list.items() if k not in IMAGE_SECTIONS},
        "protocol": public_protocol(evaluation),
        "record": without_paths(evaluation.record),
    }
    return pseudonyms.clean_all(json_ready(summary))


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
        if len(set(values) - {None, ""}) not in _GROUPS:
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
