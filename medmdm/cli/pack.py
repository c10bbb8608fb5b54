"""The command ``pack``: a bundle for MONAI's model zoo from a run."""

from __future__ import annotations

import argparse
import dataclasses

SUMMARY = "make a bundle in the layout of MONAI's model zoo from a pre-training or a segmenting run"

_ABOUT = {
    "name": "title of the bundle",
    "version": "of the bundle; default 0.1.0",
    "changes": "what this version is, for the changelog",
    "authors": "who made it",
    "copyright": "who owns it",
    "licence": "of the bundle: the text, or a file that holds it",
    "data_licence": "of the data: the text, or a file that holds it; default: what the run's data list says",
    "data_source": "where the data can be had",
    "modality": "of the images, such as CT, MR or histology",
    "intended_use": "what it is for; default: research, no diagnosis",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``pack`` to its parser."""
    parser.add_argument("run_dir", metavar="RUN", help="folder of the run")
    parser.add_argument("destination", metavar="DEST", help="the bundle's folder, which must not exist yet")
    for key, text in _ABOUT.items():
        parser.add_argument(f"--{key}", metavar="TEXT", help=text)
    parser.add_argument("--references", metavar="TEXT", nargs="+", help="publications; default: the method's")
    parser.add_argument("--backbone", metavar="FILE", help="of a segmenting run, where it is not where it was")


def run(args: argparse.Namespace) -> None:
    """Run ``pack`` with parsed arguments."""
    from medmdm.zoo import About, pack

    given = {one.name: getattr(args, one.name) for one in dataclasses.fields(About)}
    given["references"] = tuple(args.references or ())
    about = About(**{key: value for key, value in given.items() if value is not None})
    print(f"packed {pack(args.run_dir, args.destination, about, args.backbone)}")
