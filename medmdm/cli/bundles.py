"""The commands ``pretrain``, ``segment``, ``evaluate``, ``infer`` and ``study``: the bundles, under shorter names.

``medmdm segment --config FILE,FILE --key value`` is ``python -m monai.bundle run --config_file "['FILE','FILE']" --key
value`` in the same process, with help and completion from the bundles' schemas.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmdm.errors import UserError, nearest, show_user_errors_as_sentences, when_interrupted
from medmdm.files import expanded, resource_folder
from medmdm.schemas import bundle_schema

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)

COMMANDS = {
    "pretrain": "pre-train a network on images without labels",
    "segment": "learn to segment from a few labelled images, and report how well it went",
    "evaluate": "test a saved segmenter on the labelled images of any data list",
    "infer": "write masks of images with a saved segmenter",
    "study": "compare backbones, heads and numbers of labelled images in one table",
}
_CONFIG = ("--config", "--config_file")


def run(command: str, arguments: Sequence[str]) -> int:
    """Run a bundle in this process as ``python -m monai.bundle run`` does, or print its help.

    Args:
        command: one of :data:`COMMANDS`.
        arguments: the command line after it.

    Returns:
        The exit status.

    Raises:
        UserError: a config does not exist or is another command's, or a word is no setting.
    """
    if {"-h", "--help"} & set(arguments):
        parser(command).print_help()
        return 0
    show_user_errors_as_sentences()
    when_interrupted("nothing is written yet; the same command starts anew.")
    given, settings = split_words(arguments)
    logger.info("medmdm %s: loading PyTorch and MONAI", command)
    files = config_files(command, given)
    config = merged(files)
    for flag in filter(_is_flag, settings):
        refuse_without_part(flag.lstrip("-").partition("=")[0], config, command)
    beside = {
        f"--{key}": str(resource_folder("bundles") / name)
        for key, name in (("logging_file", "logging.conf"), ("meta_file", "metadata.json"))
        if not (files[0].parent / name).is_file() and not any(a.startswith(f"--{key}") for a in settings)
    }
    more = [word for pair in beside.items() for word in pair]
    sys.argv = ["medmdm", "run", "--config_file", str([str(file) for file in files]), *more, *settings]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    return 0


def without_dry_run(command: str, arguments: Sequence[str]) -> list[str] | None:
    """Return a command line without its ``--dry_run``; None where it has none, or the bundle has such a setting."""
    at = next((i for i, word in enumerate(arguments) if word.partition("=")[0] == "--dry_run"), None)
    if at is None or "dry_run" in bundle_schema(f"mdm_{command}")["properties"]:
        return None
    valued = arguments[at] == "--dry_run" and arguments[at + 1 : at + 2] and not _is_flag(arguments[at + 1])
    return [*arguments[:at], *arguments[at + (2 if valued else 1) :]]


def parser(command: str) -> argparse.ArgumentParser:
    """Return what shows a bundle's help: its settings and parts, from its schema."""
    made = argparse.ArgumentParser(
        prog=f"medmdm {command}",
        usage=f"medmdm {command} [--config FILE[,FILE...]] [--key value ...]",
        description=f"{COMMANDS[command].capitalize()}. The same as: python -m monai.bundle run --config_file "
        f"bundles/mdm_{command}.json --key value ...",
        epilog="true, false and null mean what they mean in JSON. Reach into a part with #: --part#argument value.",
    )
    shipped = f"mdm_{command}.json"
    about = f"one or more JSON files that are merged in this order; overlays alone are put on the shipped {shipped}, "
    made.add_argument("--config", metavar="FILE[,FILE]", help=f"{about}which is the default")
    for title, is_part in (("settings", False), ("parts", True)):
        group = made.add_argument_group(title)
        for key, schema in keys(command):
            if bool(schema.get("x-part")) == is_part:
                group.add_argument(f"--{key}", metavar="VALUE", help=_described(schema).replace("%", "%%"))
    return made


def keys(command: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each key that may be given to a bundle, with its schema; those inside plain dictionaries as ``a#b``."""
    for key, part in bundle_schema(f"mdm_{command}")["properties"].items():
        if key in ("$schema", "bundle", "imports"):
            continue
        inner = {} if part.get("x-part") else part.get("properties", {})
        yield from ((f"{key}#{name}", below) for name, below in inner.items()) if inner else [(key, part)]


def _described(schema: Mapping[str, Any]) -> str:
    """Return what a key means, what it must be and its default."""
    meaning = str(schema["description"])
    if schema.get("x-part"):
        return meaning
    default = schema.get("default")
    computed = isinstance(default, str) and default[:1] in ("$", "@")
    shown = "computed" if computed else default if isinstance(default, str) else json.dumps(default)
    return f"{meaning} [{schema['title']}; default: {shown}]"


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of configs, and the settings: flags and their values in turn, or ``--key=value``.

    Raises:
        UserError: a word follows no flag.
    """
    configs: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not _is_flag(flag):
            raise UserError(f"{flag!r} follows no setting: give settings as --key value, values with spaces in quotes.")
        key, equals, value = flag.partition("=")
        if not equals:
            value = "" if not rest or _is_flag(rest[0]) else rest.pop(0)
        if key in _CONFIG:
            configs += _names(value)
        else:
            settings += [flag] if equals or not value else [flag, value]
    return configs, settings


def _is_flag(word: str) -> bool:
    return re.match("--?[a-zA-Z]", word) is not None


def _names(text: str) -> list[str]:
    """Return the files of ``a.json,b.json``, or of a list as MONAI takes it."""
    if not text:
        raise UserError("--config needs a file: --config FILE, or several with commas between them.")
    if expanded(text).is_file():
        return [text]
    return [name.strip(" '\"") for name in text.strip("[]").split(",")]


def config_file(name: str) -> Path:
    """Return the config that a name means, as typed: a file, or one that comes with medmdm.

    Raises:
        UserError: it does not exist.
    """
    shipped = resource_folder("bundles")
    found = next((p for p in (expanded(name), shipped / name.removeprefix("bundles/")) if p.is_file()), None)
    if found is None:
        known = [file.relative_to(shipped).as_posix() for file in shipped.glob("**/*.json")]
        raise UserError(f"the config {name} does not exist in {Path.cwd()}{nearest(name, known)}: correct --config.")
    return found


def config_files(command: str, given: Sequence[str]) -> list[Path]:
    """Return the configs to merge: those given, or behind the shipped one where they are overlays.

    Args:
        command: one of :data:`COMMANDS`.
        given: names of files, as typed.

    Raises:
        UserError: a file does not exist, cannot be read or merged, or is of another command.
    """
    bundle, files, complete = f"mdm_{command}", [config_file(name) for name in given], False
    named = None
    for path in files:
        found, content = bundle_of(path)
        named, complete = found or named, complete or (found is not None and "run" in content)
    if named not in (None, bundle):
        other = named.removeprefix("mdm_") if named.removeprefix("mdm_") in COMMANDS else None
        advice = f"run medmdm {other}" if other else f"use {bundle}.json"
        raise UserError(f"{' and '.join(given)}: this is a config of {named}, not of {bundle}: {advice}.")
    files = files if complete else [resource_folder("bundles") / f"{bundle}.json", *files]
    merged(files)
    return files


def merged(files: Sequence[Path]) -> ConfigParser:
    """Put configs upon each other as MONAI does.

    Raises:
        UserError: there is nothing that a key could be put upon, where MONAI ends in a traceback.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    config = ConfigParser({})
    for path in files:
        for key, value in bundle_of(path)[1].items():
            refuse_without_part(key.removeprefix("+"), config, f"the config {path}")
            try:
                merge_kv(config, key, value)
            except (ValueError, TypeError):
                advice = "it merges a part with a part, or a list with a list"
                raise UserError(f"the config {path}: {key!r} cannot be merged: {advice}.") from None
    return config


def refuse_without_part(key: str, config: ConfigParser, where: str = "the config") -> None:
    """Refuse a key such as ``"head#steps"`` of a part that a config does not have.

    Raises:
        UserError: ``where`` has no part ``"head"``.
    """
    *above, _ = key.replace("::", "#").split("#")
    known = config.get()
    for number, step in enumerate(above, start=1):
        part = "#".join(above[:number])
        if not isinstance(config.get(part), (dict, list)):
            if isinstance(known, dict) and step in known:
                raise UserError(
                    f"Unknown key {key!r}: {part} of {where} is {known[step]!r}, not a part: give it whole."
                )
            near = nearest(step, known if isinstance(known, dict) else ())
            raise UserError(f"Unknown key {key!r}: {where} has no part {part!r}{near}.")
        known = config.get(part)


def bundle_of(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the bundle that a config names, if any, and its content.

    Raises:
        UserError: it cannot be read.
    """
    from monai.bundle import ConfigParser  # slow to import

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Duplicate key")  # MONAI reads it again, and says so
            content = ConfigParser.load_config_file(path)
    except (ValueError, OSError) as error:
        raise UserError(f"the config {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f'the config {path} cannot be used: it holds no keys, {{"key": value}}, but {content!r:.40}.')
    found = content.get("bundle")
    return (None if found is None else str(found)), content
