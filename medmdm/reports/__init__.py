"""Reports of evaluations: tables, figures, and one HTML page that holds everything.

They are made of files alone: what an evaluation wrote (``evaluation.json``, masks), the data set's images and labels,
or, where the masks are gone, ``per_case.csv``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_comparison", "write_report"]


def write_report(
    run_dir: str | os.PathLike[str], *, strict: bool = False, keep_patient_ids: bool = False, surface: bool = True
) -> Path:
    """Score an evaluation from its files and write ``per_case.csv``, ``summary.json``, ``summary.md`` and
    ``index.html`` into its folder, each atomically.

    Cases with a missing mask, another size, another affine or unknown values are named in one sentence each and left
    out of the numbers; how many is on the first line of the report. Where all masks, or all labels, are gone, the
    scores of an earlier ``per_case.csv`` are taken as they are.

    Args:
        run_dir: folder with ``evaluation.json``.
        strict: refuse to report if a case is wrong.
        keep_patient_ids: write patient ids as they are instead of numbers.
        surface: also distances between outlines, which take most of the time.

    Returns:
        The page.

    Raises:
        UserError: the record is missing or wrong, no case can be scored, or ``strict`` finds a wrong case.
    """
    from medmdm.reports.run_report import make_report

    return make_report(run_dir, strict=strict, keep_patient_ids=keep_patient_ids, surface=surface)


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    keep_patient_ids: bool = False,
) -> Path:
    """Compare runs on the cases that all of them scored, and write ``comparison.csv``, ``comparison.json``,
    ``comparison.md`` and ``index.html``.

    Args:
        run_dirs: at least two folders with ``evaluation.json``; where one has no ``per_case.csv`` yet, its report is
            made first.
        out: folder to write into.
        metrics: to be tested, such as ``["dice"]``: choose them before looking, for every p-value is corrected for the
            number of tests. Default: Dice, and Hausdorff 95 % and the metrics of objects where there are any.
        keep_patient_ids: write patient ids as they are instead of numbers.

    Returns:
        The page.

    Raises:
        UserError: fewer than two runs, no common case, or a metric that a run lacks.
    """
    from medmdm.reports.run_comparison import make_comparison

    return make_comparison(run_dirs, out, metrics, keep_patient_ids)
