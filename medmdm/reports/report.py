"""The report of one run folder: its cases are scored, summarised, and written as tables and a page."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medmdm.errors import UserError, counted
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.case_files import CaseArrays
from medmdm.reports.charts import Chart, Curve, Strip, curves, strips
from medmdm.reports.label_plan import label_chart
from medmdm.reports.pictures import CasePicture, encode_map, feature_cases, feature_panel, top_value
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.reports.rendering import METRICS, metric_title, number_text, render
from medmdm.reports.scoring import ScoredCase, Scores, score_cases
from medmdm.reports.summary import (
    HEADLINES,
    PER_CASE_FILE,
    SUMMARY_FILE,
    headline_keys,
    make_summary,
    read_per_case,
    write_per_case,
)
from medmdm.runs.record import MAPS, EvaluatedCase, Evaluation
from medmdm.stats.statistics import BCA_FROM

logger = logging.getLogger(__name__)

PAGE_FILE = "index.html"
BUDGET = 16_000_000  # bytes that the pictures of a page may take
_MANY = 400  # cases; a page of more stays below these bytes, as long as its table and charts leave room
_LARGE_PAGE = 4_800_000
_TEXT = 1_100  # bytes of a case in the table and the charts
_LEAST = 500_000  # bytes for pictures, whatever the table takes
_IN_A_ROW = 5
_MOST_LINES = 8
_CLASS_COLUMNS = 4


def chosen(cases: Sequence[ScoredCase]) -> list[tuple[str, list[ScoredCase]]]:
    """Choose the worst, median and best five by Dice, fewer where these would overlap.

    Returns:
        Rows with their titles; cases without a Dice are in none.
    """
    known = [case for case in cases if not math.isnan(case.scores["dice"])]
    ranked = sorted(known, key=lambda case: (case.scores["dice"], case.number))
    if len(ranked) <= _IN_A_ROW:
        return [("All cases, the worst first", ranked)] if ranked else []
    size = min(_IN_A_ROW, len(ranked) // 3)
    middle = (len(ranked) - size) // 2
    rows = (("worst", ranked[:size]), ("median", ranked[middle : middle + size]), ("best", ranked[::-1][:size]))
    return [(f"The {size} {name} by Dice" if size > 1 else f"The {name} by Dice", row) for name, row in rows]


class Album:
    """The pictures of a page: each is in it once, however often it is shown.

    Args:
        cases: the scored ones.
        budget: bytes that all may take; the cases of the galleries go first, then a sample of the others, evenly spread
            over their order, then what there is room for. None: 16 MB, of many cases so much that the page stays small.

    Attributes:
        rows: of the galleries, from :func:`chosen`.
        pictures: by the number of their case.
        missing: how many there was no room for.
        many: whether only the cases with a picture can be opened.
        tops: of each kind of map, the value that is drawn lightest, so that cases can be compared.
    """

    def __init__(self, cases: Sequence[ScoredCase], budget: int | None = None) -> None:
        self.many = len(cases) > _MANY
        if budget is None:
            budget = max(_LARGE_PAGE - _TEXT * len(cases), _LEAST) if self.many else BUDGET
        self.rows = chosen(cases)
        self.pictures: dict[int, CasePicture] = {}
        drawn = {case.number: case.picture for case in cases if case.picture is not None}
        first = dict.fromkeys(case.number for _, row in self.rows for case in row)
        others = [case.number for case in cases if case.number in drawn and case.number not in first]
        room, size = budget, sum(drawn[number].size for number in others)
        left = room - sum(drawn[number].size for number in first if number in drawn)
        sample = others[:: max(1, math.ceil(size / max(left, 1)))]
        for number in dict.fromkeys((*first, *sample, *others)):
            picture = drawn.get(number)
            if picture is not None and picture.size <= room:
                self.pictures[number] = picture
                room -= picture.size
        self.missing = len(drawn) - len(self.pictures)
        self.tops = {name: top_value([p.maps for p in self.pictures.values()], name) for name in MAPS}

    def opens(self, number: int) -> bool:
        """Whether a case can be opened: of many, those with a picture."""
        return not self.many or number in self.pictures

    def drawn_map(self, number: int, name: str) -> bytes:
        """Return a map of a case as a JPEG."""
        return encode_map(self.pictures[number].maps[name], self.tops[name])


def make_page(
    summary: Mapping[str, Any], cases: Sequence[ScoredCase], features: tuple[bytes, Sequence[str]] | None = None
) -> str:
    """Return the report as HTML.

    Args:
        summary: from :func:`medmdm.reports.summary.make_summary`.
        cases: the scored ones, names and patients as they are to be shown.
        features: the panel of some cases' features, and the names of these cases as they are to be shown.
    """
    lines = _lines(summary["learning_curve"])
    columns = _columns(summary, cases)
    return render(
        "page.html.j2",
        summary=summary,
        cases=cases,
        album=Album(cases),
        headlines=headline_keys(summary["scores"]),
        columns=columns,
        titles=columns | {key: metric_title(key, summary["distance_unit"]) for key in METRICS if key not in columns},
        distributions=_distributions(summary, cases),
        risk=_risk(summary["risk_coverage"]),
        learning_curve=_learning_curve(lines),
        label_chart=label_chart(summary["label_plan"]),
        features=features,
        lines=len(lines),
        most_lines=_MOST_LINES,
        bca_from=BCA_FROM,
    )


def _columns(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> dict[str, str]:
    """Return the scores in the table of all cases, with their titles."""
    keys = [key for key in (*HEADLINES, "uncertainty") if any(key in case.scores for case in cases)]
    titles = {key: metric_title(key, summary["distance_unit"]) if key in METRICS else "Uncertainty" for key in keys}
    if not 1 < len(summary["class_scores"]) <= _CLASS_COLUMNS:
        return titles
    by_class = {f"dice_{k}": f"Dice {row['name']}" for k, row in summary["class_scores"].items()}
    return {"dice": titles["dice"], **by_class, **titles}


def _distributions(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> list[Chart]:
    """Return a chart of every case for the metrics that stand first, distances on axes of their own."""
    shares = [key for key in headline_keys(summary["scores"]) if not METRICS[key].distance]
    charts = [(shares, "score of a case")]
    for key in ("hausdorff95", "object_hausdorff"):
        if key in summary["scores"]:
            charts.append(([key], f"{metric_title(key, summary['distance_unit'])} of a case"))
    found = [([row for key in keys if (row := _strip(key, summary, cases)) is not None], axis) for keys, axis in charts]
    return [strips(rows, axis) for rows, axis in found if rows]


def _strip(key: str, summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> Strip | None:
    entry = summary["scores"][key]
    known = [case for case in cases if math.isfinite(case.scores.get(key, math.nan))]
    if not known:
        return None
    low, high = entry["interval"]
    return Strip(
        name=METRICS[key].title,
        values=[case.scores[key] for case in known],
        cases=[case.number for case in known],
        labels=[f"{case.name}: {number_text(case.scores[key], METRICS[key].distance)}" for case in known],
        mean=entry["mean"],
        interval=None if low is None or high is None else (low, high),
    )


def _risk(curve: Mapping[str, Any] | None) -> Chart | None:
    """Return the risk-coverage curve, where uncertainty was written."""
    if curve is None or len(curve["coverage"]) < 2:
        return None
    sure = Curve("most certain cases kept", curve["coverage"], curve["risk"])
    chance = Curve("if uncertainty knew nothing", (curve["coverage"][0], 1.0), (curve["chance"], curve["chance"]))
    return curves([sure, chance], "share of cases kept", "1 \N{MINUS SIGN} Dice", "Risk against coverage")


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(f"{row['backbone']}, {row['head']}", []).append(row)
    return lines


def _learning_curve(lines: Mapping[str, list[Mapping[str, Any]]]) -> Chart | None:
    """Draw a study; if there are more lines than can be told apart, those that are best at their end."""
    best = sorted(lines, key=lambda name: -(lines[name][-1]["dice"]["mean"] or 0))[:_MOST_LINES]
    drawn = []
    for name, rows in lines.items():
        points = [row for row in rows if row["dice"]["mean"] is not None]
        if name in best and points:
            means = [row["dice"]["mean"] for row in points]
            draws = [[d for d in row["dice"]["draws"] if d is not None] or [row["dice"]["mean"]] for row in points]
            ends = [min(one) for one in draws], [max(one) for one in draws]
            drawn.append(Curve(name, [row["shots"] for row in points], means, *ends))
    shots = sorted({row["shots"] for rows in lines.values() for row in rows})
    if not drawn or len(shots) < 2:
        return None
    return curves(drawn, "labelled images", "Dice, mean over test cases", "Learning curve", shots)


@dataclass(frozen=True)
class Report:
    """How evaluations are reported: ``report.write(evaluation, report.score(evaluation))``.

    Args:
        strict: refuse to write a report if a case is wrong.
        surface: also measure distances between outlines, which take most of the time.
        keep_patient_ids: write patient ids as they are instead of numbers.
    """

    strict: bool = False
    surface: bool = True
    keep_patient_ids: bool = False

    def score(self, evaluation: Evaluation, arrays: Callable[[EvaluatedCase], CaseArrays] | None = None) -> Scores:
        """Score every case of an evaluation.

        Args:
            evaluation: its record.
            arrays: gives what the files of a case hold, see :class:`medmdm.reports.CaseArrays`, so that nothing is
                decoded again; it is called once per case, in order, and what it returns is dropped before the next
                call. A ``UserError`` that it raises sets the case aside. ``None``: the files are read, or
                ``per_case.csv`` where all masks, or all labels, are gone.

        Returns:
            The scores; ``scores.means`` are the mean Dice and IoU over cases.

        Raises:
            UserError: ``per_case.csv`` is needed and cannot be read.
        """
        table = evaluation.folder / PER_CASE_FILE
        if arrays is None and table.is_file():
            masks = any(case.prediction is not None and case.prediction.exists() for case in evaluation.cases)
            labels = any(case.label is not None and case.label.exists() for case in evaluation.cases)
            if not (masks and labels):
                return read_per_case(table, evaluation)
        return score_cases(evaluation, self.surface, arrays=arrays)

    def write(self, evaluation: Evaluation, scores: Scores) -> Path:
        """Write ``per_case.csv``, ``summary.json``, ``summary.md`` and ``index.html`` into the run folder.

        Args:
            evaluation: the record.
            scores: from :meth:`score`.

        Returns:
            The page.

        Raises:
            UserError: no case was scored, or one is wrong and the report is ``strict``.
        """
        if self.strict and scores.excluded:
            others = len(scores.excluded) - 1
            more = f" ({counted(others, 'more case', 'is', 'are')} wrong)" if others else ""
            raise UserError(f"{scores.excluded[0].reason}{more}: correct it, or report without strict")
        pseudonyms = Pseudonyms.of([evaluation], self.keep_patient_ids)
        summary = make_summary(evaluation, scores, pseudonyms)
        shown = _pseudonymous(scores, pseudonyms)
        folder = evaluation.folder
        sweep_temporaries(folder)
        if scores.source == "masks":
            write_per_case(shown, folder / PER_CASE_FILE)
        save_json(summary, folder / SUMMARY_FILE)
        headlines = headline_keys(summary["scores"])
        atomic_write(folder / "summary.md", render("summary.md.j2", summary=summary, headlines=headlines))
        panel = feature_panel(folder)
        names = [pseudonyms.clean(evaluation.cases[n].name) for n in feature_cases(len(evaluation.cases))]
        atomic_write(folder / PAGE_FILE, make_page(summary, shown.cases, None if panel is None else (panel, names)))
        for one in shown.excluded:
            logger.warning(one.reason)
        return folder / PAGE_FILE


def write_report(
    run_dir: str | os.PathLike[str], *, strict: bool = False, keep_patient_ids: bool = False, surface: bool = True
) -> Path:
    """Score an evaluation from its files and write its report.

    That is ``per_case.csv``, ``summary.json``, ``summary.md`` and ``index.html`` in its folder, each atomically.
    Cases with a missing mask, another size, another affine or unknown values are named in one sentence each and left
    out of the numbers; how many is on the first line of the report. Where all masks, or all labels, are gone, the
    scores of an earlier ``per_case.csv`` are taken as they are.

    Args:
        run_dir: folder with ``evaluation.json``.
        strict: see :class:`Report`.
        keep_patient_ids: see there.
        surface: see there.

    Returns:
        The page.

    Raises:
        UserError: the record is missing or wrong, no case can be scored, or ``strict`` finds a wrong case.
    """
    report, evaluation = Report(strict, surface, keep_patient_ids), Evaluation.load(run_dir)
    return report.write(evaluation, report.score(evaluation))


def _pseudonymous(scores: Scores, pseudonyms: Pseudonyms) -> Scores:
    """Return the scores without patient ids."""
    clean = pseudonyms.clean
    cases = [
        replace(
            case,
            name=clean(case.name),
            patient=pseudonyms.name(case.patient),
            columns={clean(key): clean(value) for key, value in case.columns.items()},
            files=(clean(case.files[0]), clean(case.files[1])),
        )
        for case in scores.cases
    ]
    excluded = [replace(one, name=clean(one.name), reason=clean(one.reason)) for one in scores.excluded]
    return replace(scores, cases=cases, excluded=excluded)
