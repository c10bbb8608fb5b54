"""The command ``plan-labels``: see :class:`medmdm.segment.LabelPlanner`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "say how many labels are needed, and which images to label next"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``plan-labels`` to its parser."""
    parser.add_argument(
        "source", metavar="RUN_OR_LIST", help="the run folder of a segmentation, or a data list as `check` takes it"
    )
    parser.add_argument("--dataset_dir", metavar="DIR", help="folder of a list's images; default: the list's folder")
    features = "a model.pt or segmenter.pt whose features are read; default: a run's backbone, scikit-image's filters"
    parser.add_argument("--features", metavar="FILE", help=features)
    spacing = "mm per pixel (rows, columns) at which a list's images are read; default: that of the features, or theirs"
    parser.add_argument("--spacing", metavar="MM", type=float, nargs=2, help=spacing)
    out = "where label_plan.csv goes; default: the run folder, or label_plan"
    parser.add_argument("--out", metavar="DIR", help=out)
    at = "numbers of labelled images to continue the curve to; default: powers of 2"
    parser.add_argument("--at", metavar="N", type=int, nargs="+", help=at)
    parser.add_argument("--count", metavar="N", type=int, default=10, help="how many images to name; default 10")
    parser.add_argument("--draws", metavar="N", type=int, default=20, help="draws of labelled images; default 20")


def run(args: argparse.Namespace) -> None:
    """Run ``plan-labels`` with parsed arguments, and print the plan and where it lies."""
    from medmdm.segment.label_plan import CSV_FILE, planner_of

    settings = {"at": args.at, "count": args.count, "draws": args.draws}
    planner, folder = planner_of(args.source, args.dataset_dir, args.features, args.spacing, args.out, **settings)
    print(planner.run(folder))
    print(Path(folder) / CSV_FILE)
