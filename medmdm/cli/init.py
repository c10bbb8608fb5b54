"""The command ``init``: lay out the configs and data lists that come with medmdm."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmdm.errors import UserError, refuse_full_disk
from medmdm.files import atomic_write, resource_folder

SUMMARY = "lay out the configs and data lists in a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``init`` to its parser."""
    parser.add_argument("folder", help="where to; made if missing")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were changed")


def run(args: argparse.Namespace) -> None:
    """Run ``init`` with parsed arguments."""
    destination = Path(args.folder)
    copied = 0
    for name in ("bundles", "data_lists"):
        source = resource_folder(name)
        for file in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")):
            target = destination / name / file.relative_to(source)
            if target.exists() and target.read_bytes() != file.read_bytes() and not args.overwrite:
                raise UserError(f"{target} exists and differs from the one shipped: pass --overwrite to replace it.")
            with refuse_full_disk(destination):
                target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, file.read_bytes())
            copied += 1
    print(f"{copied} files in {destination}. Next: cd {destination}, then")
    print("python -m monai.bundle run --config_file bundles/mdm_pretrain.json")
