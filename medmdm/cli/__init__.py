"""The command line: ``python -m medmdm <command>``, one file a command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import medmdm
from medmdm.cli import check, compare, convert, export, init, prepare, report, split
from medmdm.errors import UserError, find_user_error, show_interruption, terminate_as_interrupt

__all__ = ["main"]

COMMANDS = (init, prepare, check, split, report, compare, convert, export)

_BUNDLES = (
    "To train and to segment, lay out the bundles in a folder (python -m medmdm init FOLDER) and run one there: "
    "python -m monai.bundle run --config_file bundles/mdm_pretrain.json; from elsewhere give the path to bundles/."
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medmdm", description=medmdm.__doc__, epilog=_BUNDLES)
    parser.add_argument("--version", action="version", version=f"medmdm {medmdm.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
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
    terminate_as_interrupt()
    args = _parser().parse_args(arguments)
    try:
        return args.run(args) or 0  # only ``check`` has a status of its own
    except KeyboardInterrupt as error:
        return show_interruption(error)
    except (UserError, OSError) as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        print(f"error: {user_error}", file=sys.stderr)
        return 1
