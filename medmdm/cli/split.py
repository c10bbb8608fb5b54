"""The command ``split``: new data lists from one; see :mod:`medmdm.data.splits`."""

from __future__ import annotations

import argparse
import json
import os

from medmdm.errors import UserError
from medmdm.files import expanded

SUMMARY = "make new data lists from one: by patient, in folds, or with a few training cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``split`` to its parser."""
    parser.add_argument(
        "data_list", metavar="DATALIST", help="a JSON data list, a folder with dataset.json, or a shipped list's name"
    )
    parser.add_argument("out", metavar="OUT", help="the list to write; with --folds, x.json means x_fold_1.json, …")
    parser.add_argument("--test", type=float, metavar="SHARE", help="pool all cases and hold this share out as test")
    parser.add_argument("--folds", type=int, metavar="K", help="divide what trains and validates into K folds")
    parser.add_argument("--stratify", metavar="COLUMN", help="spread the values of this column evenly, such as grade")
    parser.add_argument(
        "--subject",
        metavar="REGEX",
        help="finds the patient in an image's path where the list names none, by its first group if it has one, such "
        "as '([0-9]+)_[0-9]+[.]png'",
    )
    parser.add_argument("--subset", type=int, metavar="N", help="keep N training cases")
    parser.add_argument(
        "--rule",
        choices=("paper", "seeded"),
        help="how to choose them (default: paper for glas and monuseg)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another division (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace data lists that differ")


def run(args: argparse.Namespace) -> None:
    """Run ``split`` with parsed arguments and print what came out."""
    from medmdm.data.folders import named_list
    from medmdm.data.lists import load_data_list
    from medmdm.data.splits import default_rule, patients_unknown, split_data_list, summarise
    from medmdm.files import atomic_write, refuse_to_replace

    out = expanded(args.out)
    if out.suffix.lower() != ".json":
        raise UserError(f"OUT is {out}: give the name of a JSON file, such as {out.name}.json.")
    data_list = load_data_list(named_list(args.data_list))
    rule = args.rule or default_rule(data_list.name)
    lists = split_data_list(data_list, args.test, args.folds, args.stratify, args.subset, rule, args.seed, args.subject)
    numbered = [out.with_name(f"{out.stem}_fold_{k}{out.suffix}") for k in range(1, len(lists) + 1)]
    paths = [out] if args.folds is None else numbered
    texts = [json.dumps(content, indent=2, ensure_ascii=False) + "\n" for content in lists]
    for path, text in zip(paths, texts, strict=True) if not args.overwrite else ():  # before any is written
        refuse_to_replace(path, text)
    for path, text, content in zip(paths, texts, lists, strict=True):
        atomic_write(path, text)
        print(f"{path}: {summarise(content, args.stratify)}")
    unknown = None if args.subject or (args.test is None and args.folds is None) else patients_unknown(data_list)
    if unknown:
        print(f"note: {unknown}")
    if data_list.path is not None and out.resolve().parent != data_list.path.resolve().parent:
        folder = "DIR (the folder of the images)" if data_list.shipped else os.path.relpath(data_list.path.parent)
        print(f"image paths do not start at the new list's folder, so pass with it: --dataset_dir {folder}")
