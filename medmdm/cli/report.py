"""The command ``report``: tables and a page of what evaluations left; see :func:`medmdm.reports.write_report`."""

from __future__ import annotations

import argparse

SUMMARY = "make tables and a page of what an evaluation left, every number from the files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report`` to its parser."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a folder with evaluation.json, which the report goes into"
    )
    parser.add_argument("--strict", action="store_true", help="refuse if a case is wrong, instead of leaving it out")
    parser.add_argument("--keep_patient_ids", action="store_true", help="write patient ids, not numbers in their place")
    without = "leave out distances between outlines, which take most of the time"
    parser.add_argument("--no_surface", dest="surface", action="store_false", help=without)


def run(args: argparse.Namespace) -> None:
    """Run ``report`` with parsed arguments and print the pages."""
    from medmdm.reports import write_report

    for folder in args.runs:
        print(write_report(folder, strict=args.strict, keep_patient_ids=args.keep_patient_ids, surface=args.surface))
