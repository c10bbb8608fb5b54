"""The command line: ``medmdm <command>`` or ``python -m medmdm <command>``, one file a command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder

import medmdm
from medmdm.cli import (
    add_labels,
    bundles,
    check,
    classify,
    compare,
    completion,
    convert,
    doctor,
    export,
    init,
    pack,
    plan_labels,
    prepare,
    report,
    shards,
    split,
)
from medmdm.errors import UserError, find_user_error, show_interruption, show_user_error, terminate_as_interrupt

__all__ = ["main"]

COMMANDS = (
    init, prepare, check, doctor, split, plan_labels, add_labels, classify, report, compare, convert, export, pack,
    shards, completion,
)  # fmt: skip

_BUNDLES = (
    "The commands that train run MONAI bundles: medmdm segment is python -m monai.bundle run --config_file "
    "bundles/mdm_segment.json with the same settings (python -m medmdm init FOLDER lays out the bundles to be changed)."
)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m medmdm", description=medmdm.__doc__, epilog=_BUNDLES)
    made.add_argument("--version", action="version", version=f"medmdm {medmdm.__version__}")
    commands = made.add_subparsers(metavar="command", required=True)
    for name, summary in bundles.COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=made)
    return made


class _Announcement(MetaPathFinder):
    """Says that PyTorch is being loaded, which takes seconds in which nothing else is said."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "torch":
            sys.meta_path.remove(self)
            print("loading PyTorch and MONAI", file=sys.stderr)


def _announce_torch() -> None:
    """Let the first import of PyTorch be announced, on a terminal."""
    known = any(isinstance(finder, _Announcement) for finder in sys.meta_path)
    if sys.stderr.isatty() and "torch" not in sys.modules and not known:
        sys.meta_path.insert(0, _Announcement())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one sentence and status 1.

    Args:
        arguments: the command line after the program's name; default ``sys.argv``.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    terminate_as_interrupt()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in bundles.COMMANDS:
            examined = bundles.without_dry_run(words[0], words[1:])
            return bundles.run(words[0], words[1:]) if examined is None else doctor.diagnose([], examined, words[0])
        args = _parser().parse_args(words)
        _announce_torch()  # a bundle says it by itself
        return args.run(args) or 0  # only ``check`` and ``doctor`` have a status of their own
    except KeyboardInterrupt as error:
        # Behind MONAI's eval() Python ends by the signal, whatever is returned.
        if words and words[0] in bundles.COMMANDS:
            raise
        return show_interruption(error)
    except (UserError, OSError) as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        show_user_error(user_error)
        return 1
