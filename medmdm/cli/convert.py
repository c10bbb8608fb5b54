"""The command ``convert``: turn a published checkpoint into a ``model.pt``."""

from __future__ import annotations

import argparse
import json
from typing import Any

SUMMARY = "turn a published ADM or MDM checkpoint into a model.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert`` to its parser."""
    parser.add_argument("source", help="the published file (a state dict)")
    parser.add_argument("destination", help="the model.pt to write")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_override,
        action="append",
        help="an argument of ADMUNet that the file's shapes do not show, for example num_head_channels=64",
    )


def run(args: argparse.Namespace) -> None:
    """Run ``convert`` with parsed arguments."""
    from medmdm.artifacts.pretrained import convert

    convert(args.source, args.destination, **dict(args.set or ()))
    print(f"wrote {args.destination}")


def _override(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, for example num_head_channels=64")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
