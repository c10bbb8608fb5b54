"""The command line: ``python -m medmdm <command>``."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medmdm
from medmdm import check, prepare, split
from medmdm.errors import UserError
from medmdm.reports import compare_command, report_command
from medmdm.shipped import shipped_folder

__all__ = ["main"]


def _init(args: argparse.Namespace) -> int:
    """Lay out the configs and data lists."""
    destination = Path(args.folder)
    copied = 0
    for name in ("bundles", "data_lists"):
        source = shipped_folder(name)
        for file in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")):
            target = destination / name / file.relative_to(source)
            if target.exists() and target.read_bytes() != file.read_bytes() and not args.overwrite:
                raise UserError(f"{target} exists and differs from the one shipped: pass --overwrite to replace it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            copied += 1
    print(f"{copied} files in {destination}. Next: cd {destination}, then")
    print("python -m monai.bundle run --config_file bundles/mdm_pretrain.json")
    return 0


def _convert(args: argparse.Namespace) -> int:
    """Turn a published checkpoint into a model.pt."""
    from medmdm.networks import convert

    convert(args.source, args.destination, **dict(args.set or ()))
    print(f"wrote {args.destination}")
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write a segmenter for other programs."""
    from medmdm.networks.export import export_segmenter

    difference = export_segmenter(args.source, args.destination, args.size, args.backbone)
    print(f"wrote {args.destination}: on a new image its logits differ by at most {difference:.1e} from the original's")
    return 0


def _override(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, for example num_head_channels=64")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medmdm", description=medmdm.__doc__)
    parser.add_argument("--version", action="version", version=f"medmdm {medmdm.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    init = commands.add_parser("init", help="lay out the configs and data lists in a folder")
    init.add_argument("folder", help="where to; made if missing")
    init.add_argument("--overwrite", action="store_true", help="replace files that were changed")
    init.set_defaults(run=_init)

    convert = commands.add_parser("convert", help="turn a published ADM or MDM checkpoint into a model.pt")
    convert.add_argument("source", help="the published file (a state dict)")
    convert.add_argument("destination", help="the model.pt to write")
    convert.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_override,
        action="append",
        help="an argument of ADMUNet that the file's shapes do not show, for example num_head_channels=64",
    )
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write a segmenter as ONNX, torch.export or TorchScript, and check it")
    export.add_argument("source", help="the segmenter.pt")
    export.add_argument("destination", help="the file to write: .onnx, .pt2 (torch.export) or .ts (TorchScript)")
    export.add_argument("--size", type=int, nargs="+", required=True, metavar="N", help="pixels along each axis")
    export.add_argument("--backbone", help="its model.pt, where the segmenter was saved without")
    export.set_defaults(run=_export)

    for name, module, summary in (
        ("prepare", prepare, "turn what was downloaded or scanned into images, masks and a data list"),
        ("check", check, "decode every file of a data list and look for what spoils a training or its test"),
        ("split", split, "make new data lists from one: by patient, in folds, or with a few training cases"),
        ("report", report_command, "make tables and a page of what an evaluation left, every number from the files"),
        ("compare", compare_command, "compare runs on the same cases: differences, intervals, tests"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one sentence and status 1.

    Args:
        arguments: the command line after the program's name; default ``sys.argv``.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    args = _parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
