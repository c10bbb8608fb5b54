"""The command ``prepare``: see :func:`medmdm.prepare.prepare`."""

from __future__ import annotations

import argparse

from medmdm.prepare import KINDS, prepare

SUMMARY = "turn what was downloaded or scanned into images, masks and a data list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prepare`` to its parser."""
    kinds = parser.add_subparsers(dest="kind", metavar="kind", required=True)
    for name, kind in KINDS.items():
        own = kinds.add_parser(name, help=kind.help, description=kind.help)
        own.add_argument("source", metavar="SOURCE", help="the folder or zip file as published")
        own.add_argument("dest", metavar="DEST", help="folder to write to; made if missing")
        for option, settings in kind.options.items():
            own.add_argument(f"--{option.replace('_', '-')}", **settings)


def run(args: argparse.Namespace) -> None:
    """Run ``prepare`` with parsed arguments and print its table."""
    options = {name: getattr(args, name) for name in KINDS[args.kind].options}
    print(prepare(args.kind, args.source, args.dest, **options))
