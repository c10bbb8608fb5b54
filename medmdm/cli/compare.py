"""The command ``compare``: runs on the same cases; see :func:`medmdm.reports.write_comparison`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "compare runs on the same cases: differences, intervals, tests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare`` to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders with evaluation.json, two or more")
    parser.add_argument("--out", metavar="DIR", help="where to write; default: beside the first run, compare_A_B")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        help="test only this one, such as dice; may be given several times. Choose before looking: p-values are "
        "corrected for the number of tests",
    )
    parser.add_argument("--keep_patient_ids", action="store_true", help="write patient ids, not numbers in their place")


def run(args: argparse.Namespace) -> None:
    """Run ``compare`` with parsed arguments and print the table and the page."""
    from medmdm.reports import write_comparison

    folders = [Path(folder).resolve() for folder in args.runs]
    out = args.out or folders[0].parent / "_".join(["compare", *(folder.name for folder in folders)])
    page = write_comparison(args.runs, out, metrics=args.metric, keep_patient_ids=args.keep_patient_ids)
    print((page.parent / "comparison.md").read_text(encoding="utf-8"))
    print(page)
