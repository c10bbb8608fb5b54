"""The command ``check``: see :func:`medmdm.check.check`."""

from __future__ import annotations

import argparse
import json

from medmdm.errors import UserError
from medmdm.files import expanded

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
    from medmdm.data.folders import list_file
    from medmdm.data.lists import LIST_NAMES

    try:
        path = expanded(args.data_list)
        data_list = list_file(path) if path.is_dir() else path
        if data_list is None:
            raise UserError(
                f"{path} holds no data list ({' or '.join(LIST_NAMES)}): give the file, or make one of a folder as "
                "downloaded or exported with python -m medmdm prepare."
            )
        report = check(data_list, args.dataset_dir)
    except UserError as error:  # nothing could be checked
        if not args.json:
            raise
        problem = {"check": "data-list", "message": str(error), "files": []}
        print(json.dumps({"ok": False, "errors": [problem], "warnings": []}, indent=2))
        return 1
    print(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())
    return 1 if report.errors else 0
