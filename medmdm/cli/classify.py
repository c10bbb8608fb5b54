"""The command ``classify``: see :class:`medmdm.segment.Classification`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "tell a label of whole images, such as a grade, from a few labelled ones by a backbone's pooled features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``classify`` to its parser."""
    parser.add_argument("--backbone", metavar="FILE", required=True, help="the model.pt whose features are read")
    parser.add_argument("--dataset_dir", metavar="DIR", required=True, help="folder of the images")
    lists = "JSON file, or name of a list that comes with medmdm; default: the folder's own"
    parser.add_argument("--data_list", metavar="LIST", help=lists)
    parser.add_argument("--label", metavar="KEY", required=True, help="of the list's entries, such as grade")
    parser.add_argument("--section", default="test", help="that is tested; default test")
    shots = "numbers of labelled training images, 0 for all; default 8"
    parser.add_argument("--shots", metavar="N", type=int, nargs="+", default=[8], help=shots)
    parser.add_argument("--draws", metavar="N", type=int, help="of labelled images; default 10, of the paper's rule 1")
    rule = "how they are drawn; default seeded"
    parser.add_argument("--subset_rule", choices=("seeded", "paper"), default="seeded", help=rule)
    parser.add_argument("--method", nargs="+", default=["linear", "knn"], help="linear, knn or both; default both")
    parser.add_argument("--neighbours", metavar="N", type=int, default=5, help="that vote in knn; default 5")
    baselines = "a baseline instead of the weights: random (weights), raw (pixels), filters"
    parser.add_argument("--initialise", default="pretrained", help=baselines)
    parser.add_argument("--device", default="cpu", help="default cpu")
    out = "where classification.csv, .json and .md go; default classify"
    parser.add_argument("--out", metavar="DIR", default="classify", help=out)


def run(args: argparse.Namespace) -> None:
    """Run ``classify`` with parsed arguments, and print the table and where it lies."""
    from medmdm.artifacts.backbone import open_backbone
    from medmdm.data.cases import select_cases
    from medmdm.segment import Classification, Grid
    from medmdm.segment.classification import PAGE_FILE

    draws = args.draws if args.draws is not None else 1 if args.subset_rule == "paper" else 10
    cases = select_cases(args.dataset_dir, args.data_list, ("training", args.section), labelled=False)
    backbone = open_backbone(args.backbone, initialise=args.initialise, device=args.device)
    grid = Grid([n or None for n in dict.fromkeys(args.shots)], draws)
    settings = {"methods": args.method, "rule": args.subset_rule, "section": args.section}
    page = Classification(cases, backbone, args.label, grid, **settings, neighbours=args.neighbours).run(args.out)
    print(page)
    print(Path(args.out) / PAGE_FILE)
