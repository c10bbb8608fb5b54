"""Making the report of one run folder: scores, tables, page."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from medmdm.errors import UserError
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.markdown import make_markdown
from medmdm.reports.page import make_page
from medmdm.reports.per_case import PER_CASE_FILE, read_per_case, write_per_case
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.reports.scoring import Excluded, ScoredCase, Scores, score_cases
from medmdm.reports.summary import SUMMARY_FILE, make_summary
from medmdm.reports.wording import counted
from medmdm.runs.record import Evaluation, load_evaluation

__all__ = ["MARKDOWN_FILE", "PAGE_FILE", "collect_scores", "make_report"]

PAGE_FILE = "index.html"
MARKDOWN_FILE = "summary.md"

logger = logging.getLogger(__name__)


def make_report(
    run_dir: str | os.PathLike[str],
    strict: bool = False,
    keep_patient_ids: bool = False,
    surface: bool = True,
    progress: bool = True,
) -> Path:
    """Write the report of a run folder; see :func:`medmdm.reports.write_report`."""
    evaluation = load_evaluation(run_dir)
    scores, source = collect_scores(evaluation, surface, progress)
    if strict and scores.excluded:
        others = len(scores.excluded) - 1
        more = f" ({counted(others, 'more case')} {'is' if others == 1 else 'are'} wrong)" if others else ""
        raise UserError(f"{scores.excluded[0].reason}{more}: correct it, or report without strict")
    pseudonyms = Pseudonyms([case.patient for case in evaluation.cases], keep_patient_ids)
    summary = make_summary(evaluation, scores, pseudonyms, source)
    shown = pseudonymous(scores, pseudonyms)
    folder = evaluation.folder
    sweep_temporaries(folder)
    if source == "masks":
        write_per_case(shown, folder / PER_CASE_FILE)
    save_json(summary, folder / SUMMARY_FILE)
    atomic_write(folder / MARKDOWN_FILE, make_markdown(summary))
    atomic_write(folder / PAGE_FILE, make_page(summary, shown.cases))
    for one in shown.excluded:
        logger.warning(one.reason)
    return folder / PAGE_FILE


def collect_scores(evaluation: Evaluation, surface: bool = True, progress: bool = True) -> tuple[Scores, str]:
    """Score an evaluation from its masks, or read ``per_case.csv`` where all masks, or all labels, are gone.

    Returns:
        The scores, and ``"masks"`` or ``"per_case.csv"``.
    """
    table = evaluation.folder / PER_CASE_FILE
    masks = any(case.prediction is not None and case.prediction.exists() for case in evaluation.cases)
    labels = any(case.label is not None and case.label.exists() for case in evaluation.cases)
    if not (masks and labels) and table.is_file():
        return read_per_case(table, evaluation), "per_case.csv"
    return score_cases(evaluation, surface, progress), "masks"


def pseudonymous(scores: Scores, pseudonyms: Pseudonyms) -> Scores:
    """Return the scores without patient ids."""

    def case(one: ScoredCase) -> ScoredCase:
        return replace(
            one,
            name=pseudonyms.clean(one.name),
            patient=pseudonyms.name(one.patient),
            columns={pseudonyms.clean(key): pseudonyms.clean(value) for key, value in one.columns.items()},
            files=(pseudonyms.clean(one.files[0]), pseudonyms.clean(one.files[1])),
        )

    excluded = [
        Excluded(pseudonyms.clean(one.name), one.number, pseudonyms.clean(one.reason)) for one in scores.excluded
    ]
    return replace(scores, cases=[case(one) for one in scores.cases], excluded=excluded)
