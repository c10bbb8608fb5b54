"""The command ``check``: see :func:`medmdm.check.check`."""

from __future__ import annotations

import argparse
import json

from medmdm.errors import UserError

SUMMARY = "decode every file of a data list and look for what spoils a training or its test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``check`` to its parser."""
    parser.add_argument(
        "data_list", metavar="DATALIST", help="a JSON data list, a folder with dataset.json, or a shipped list's name"
    )
    parser.add_argument("--dataset_dir", metavar="DIR", help="folder of the images; default: the data list's folder")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Run ``check`` with parsed arguments, print the outcome and return 0, or 1 if there are errors."""
    from medmdm.check import check
    from medmdm.data.folders import named_list

    try:
        report = check(named_list(args.data_list), args.dataset_dir)
    except UserError as error:  # nothing could be checked
        if not args.json:
            raise
        problem = {"check": "data-list", "message": str(error), "files": []}
        print(json.dumps({"ok": False, "errors": [problem], "warnings": []}, indent=2))
        return 1
    print(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())
    return 1 if report.errors else 0
