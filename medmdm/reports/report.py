"""The report of one run folder: its cases are scored, summarised, and written as tables and a page."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from medmdm.errors import UserError
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.case_files import CaseArrays
from medmdm.reports.page import make_page
from medmdm.reports.per_case import PER_CASE_FILE, Pseudonyms, read_per_case, write_per_case
from medmdm.reports.rendering import counted, render
from medmdm.reports.scoring import Scores, score_cases
from medmdm.reports.summary import SUMMARY_FILE, headline_keys, make_summary
from medmdm.runs.record import EvaluatedCase, Evaluation

PAGE_FILE = "index.html"

logger = logging.getLogger(__name__)


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
        pseudonyms = Pseudonyms([case.patient for case in evaluation.cases], self.keep_patient_ids)
        summary = make_summary(evaluation, scores, pseudonyms)
        shown = _pseudonymous(scores, pseudonyms)
        folder = evaluation.folder
        sweep_temporaries(folder)
        if scores.source == "masks":
            write_per_case(shown, folder / PER_CASE_FILE)
        save_json(summary, folder / SUMMARY_FILE)
        headlines = headline_keys(summary["scores"])
        atomic_write(folder / "summary.md", render("summary.md.j2", summary=summary, headlines=headlines))
        atomic_write(folder / PAGE_FILE, make_page(summary, shown.cases))
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
