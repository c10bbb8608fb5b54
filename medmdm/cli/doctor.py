"""The command ``doctor``: see :func:`medmdm.runs.doctor.examine`."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmdm.cli.bundles import (
    COMMANDS,
    bundle_of,
    config_file,
    config_files,
    merged,
    refuse_without_part,
    split_words,
)
from medmdm.errors import UserError

if TYPE_CHECKING:
    from medmdm.check.findings import Finding

SUMMARY = "look at a config before it is run: keys, values, files, data, memory, disk and time, all findings at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor`` to its parser."""
    parser.usage = "python -m medmdm doctor COMMAND|CONFIG [CONFIG ...] [--key value ...] [--json]"
    parser.add_argument(
        "words",
        metavar="CONFIG",
        nargs=argparse.REMAINDER,
        help="as for a run: bundle, then overlays; or its command, such as pretrain",
    )
    parser.epilog = (
        "--key value: settings, as for a run. --json: print the findings as JSON. Status 1: an error was found."
    )


def run(args: argparse.Namespace) -> int:
    """Run ``doctor`` with parsed arguments, print the findings and return 0, or 1 if there are errors."""
    words = [word for word in args.words if word != "--json"]
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return diagnose(words[:count], words[count:], as_json="--json" in args.words)


def diagnose(configs: Sequence[str], words: Sequence[str], command: str | None = None, as_json: bool = False) -> int:
    """Examine a config with the settings of a command line, print the findings and return the exit status.

    Args:
        configs: files to merge, as for a run.
        words: settings, and ``--config``.
        command: the bundle's, such as ``"segment"``; None: by the configs.
        as_json: print JSON.
    """
    from medmdm.runs.doctor import examine

    if configs and configs[0] in COMMANDS:  # as in ``medmdm pretrain``
        command, configs = configs[0], configs[1:]
    named, settings = split_words(words)
    given = [*(name for word in configs for name in word.split(",")), *named]
    try:
        if not given and command is None:
            raise UserError("doctor needs a config: bundles/mdm_pretrain.json, or another bundle or overlay.")
        files = config_files(command or _command(given), given)
        findings = (*_said_twice(files), *examine(_merged(files, settings)))
    except UserError as error:
        if not as_json:
            raise
        print(_json("error", [{"level": "error", "check": "config", "message": str(error), "files": []}]))
        return 1
    errors = sum(finding.level == "error" for finding in findings)
    print(_json("error" if errors else "ok", [_plain(f) for f in findings]) if as_json else _text(findings))
    return 1 if errors else 0


def _command(names: Sequence[str]) -> str:
    """Return the command whose bundle the configs are of, or, where all are overlays, whose settings they change."""
    from medmdm.schemas import bundle_schema

    keys: set[str] = set()
    for name in names:
        bundle, content = bundle_of(config_file(name))
        if bundle is not None:
            return bundle.removeprefix("mdm_")
        keys |= {key.split("#")[0] for key in content}
    keys -= set(content.get("extra_keys", ()))
    known = {command: len(keys & set(bundle_schema(f"mdm_{command}")["properties"])) for command in COMMANDS}
    return max(known, key=known.__getitem__)


def _merged(files: Sequence[Path], settings: Sequence[str]) -> Any:
    """Return the parser of a config as ``monai.bundle run`` merges it, read as a run's start reads it."""
    from fire.parser import DefaultParseValue

    from medmdm.runs.command_line import restore, typed
    from medmdm.runs.config import normalise
    from medmdm.schemas import settings as known_settings

    given: Mapping[str, str] = typed(settings)
    parser = merged(files)
    for key, value in given.items():
        refuse_without_part(key, parser)
        parser[key] = DefaultParseValue(value)
    restore(parser, known_settings(str(parser.get("bundle"))), given)
    normalise(parser)
    try:
        parser.parse(reset=True)
    except (LookupError, ValueError, OSError) as error:
        said = str(error.args[0] if error.args else error).splitlines()[0]
        raise UserError(
            f"A text that begins with '%' stands for another place or file that cannot be read: {said}."
        ) from None
    return parser


def _said_twice(files: Sequence[Path]) -> list[Finding]:
    """Return a warning for each key that a config has twice, of which the last one counts."""
    from monai.bundle import ConfigParser

    from medmdm.check.findings import Finding

    found = []
    for path in files:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ConfigParser.load_config_file(path)
        for one in caught:
            key = str(one.message).partition("Duplicate key: `")[2].rstrip("`")
            if key:
                said = f"{path} has the key {key!r} twice in one place, and the last one counts: delete the other"
                found.append(Finding("warning", "config", said, (str(path),)))
    return found


def _plain(finding: Finding) -> dict[str, Any]:
    return {"level": finding.level, "check": finding.check, "message": finding.message, "files": list(finding.files)}


def _json(status: str, findings: list[dict[str, Any]]) -> str:
    return json.dumps({"ok": status == "ok", "findings": findings}, indent=2)


def _text(findings: Sequence[Finding]) -> str:
    counts = {level: sum(f.level == level for f in findings) for level in ("error", "warning")}
    lines = [f"{finding.level + ':':<9}{finding.message}." for finding in findings]
    summary = ", ".join(f"{number} {level}{'' if number == 1 else 's'}" for level, number in counts.items())
    return "\n".join([*lines, summary])
