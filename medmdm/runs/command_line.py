"""What was typed for a setting that is a text, before python-fire and MONAI's parser read it as something else.

python-fire reads ``2024_01`` as a number, ``a,b`` as a tuple and what follows ``#`` as a comment; MONAI's parser makes
``::`` of a ``#``. The name of a folder must come through as it was typed, or not at all.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from monai import bundle
from monai.bundle import ConfigParser

from medmdm.errors import UserError

#: Arguments of ``python -m monai.bundle run`` that are no settings.
_OF_MONAI = tuple(inspect.signature(bundle.run).parameters)
#: Within parts, whose schema does not say what their arguments are.
_PATHS = ("path", "folder")


def typed(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Return what a command line gives for each key (``backbones#MDM#path``).

    Args:
        arguments: its words; default: those of ``python -m monai.bundle``, if that is what runs.
    """
    if arguments is None:
        program, *arguments = sys.argv or [""]
        if PurePath(program).parts[-3:] != ("monai", "bundle", "__main__.py"):
            return {}
    if "--" in arguments:
        arguments = arguments[: len(arguments) - 1 - arguments[::-1].index("--")]
    found = {}
    rest = iter(enumerate(arguments))
    for number, argument in rest:
        if not _is_flag(argument):
            continue
        key, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            if number + 1 == len(arguments) or _is_flag(arguments[number + 1]):
                continue  # a switch, which is no text
            value = next(rest)[1]
        found[key.replace("-", "_").replace("::", "#")] = value
    return found


def _is_flag(argument: str) -> bool:
    return argument.startswith("--") or re.match("-[a-zA-Z]", argument) is not None


def restore(
    parser: ConfigParser, settings: Mapping[str, Mapping[str, Any]], given: Mapping[str, str] | None = None
) -> bool:
    """Put the texts that were typed back into a config; return whether something changed.

    Names that MONAI or :func:`medmdm.runs.config.normalise` would change again become paths, which they leave alone.

    Args:
        parser: of the running bundle.
        settings: key -> schema, see :func:`medmdm.schemas.settings`.
        given: what was typed, see :func:`typed`.

    Raises:
        UserError: None was typed for a key within a part that is not there, or a text that was not typed holds ``::``,
            which MONAI has made of a ``#``.
    """
    changed = False
    given = typed() if given is None else given
    for key, value in given.items():
        kind = settings.get(key, {"type": "string"} if key.rpartition("#")[2] in _PATHS else {})
        if value == "None" and key not in _OF_MONAI:  # MONAI drops it, and the default would stand
            _check_part(parser, key)
            meant: Any = None
        elif key != "device" and _is_text(kind) and not _means_more(value, kind):
            meant = _unquoted(value)
            meant = Path(meant) if "#" in meant or meant in ("true", "false") else meant
        else:
            continue
        if meant != parser.get(key, _OF_MONAI):  # which no setting is
            parser[key] = meant
            changed = True
    for path, value in _texts(parser.get()):
        if "::" in value and value[:1] not in ("$", "@", "%") and path not in given:
            raise UserError(
                f"{path} is {value!r}: MONAI makes '::' of a '#' in a text, so it may be another file or folder that "
                f"was meant: give {path} on the command line, or a name without either."
            )
    return changed


def _check_part(parser: ConfigParser, key: str) -> None:
    """Refuse a key within a part that is not there, as MONAI refuses values other than None."""
    part = key.rpartition("#")[0]
    if part and not isinstance(parser.get(part), (dict, list)):
        raise UserError(f"Unknown key {key!r}: the config has no part {part!r}.")


def _is_text(kind: Mapping[str, Any]) -> bool:
    kinds = kind.get("type", ())
    return "string" in kinds and "array" not in kinds and "pattern" not in kind and not kind.get("x-part")


def _means_more(value: str, kind: Mapping[str, Any]) -> bool:
    return value == "null" or value[:1] in ("$", "@", "%") or ("object" in kind["type"] and value[:1] == "{")


def _unquoted(value: str) -> str:
    """Quotes within the quotes of the shell are how people tell python-fire that something is a text."""
    if value[:1] in ("'", '"') and value[-1:] == value[:1]:
        try:
            meant = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            return value
        return meant if isinstance(meant, str) else value
    return value


def _texts(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``("a#b#0", text)`` for every text but notes and what MONAI gives a meaning to."""
    if isinstance(config, str):
        yield path, config
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, part in items:
        if not str(key).startswith(("_", "$")):
            yield from _texts(part, f"{path}#{key}" if path else str(key))


def written_folder(config: Mapping[str, Any]) -> str | os.PathLike[str] | None:
    """Return the folder that a run writes to; None of a dry run, which writes nothing."""
    folder = None if config.get("dry_run") else config.get("run_dir", config.get("output_dir"))
    return folder if isinstance(folder, (str, os.PathLike)) else None
