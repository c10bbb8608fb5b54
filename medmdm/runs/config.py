"""What MONAI's bundle runner does not do with a config: refuse unknown keys, and hand it to the run's record.

``monai.bundle run`` adds a mistyped override as a new key that nobody reads, and hands over ``--report false`` as a
text, which Python takes for true. The first ``initialize`` expression of our bundles calls :func:`start`, which reads
such texts as JSON does and compares what was merged (files and overrides) with the bundle as shipped.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from pydoc import locate
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent

from medmdm.errors import UserError, nearest, show_user_errors_as_sentences
from medmdm.resources import resource_folder
from medmdm.runs.config_kinds import check_device, check_kinds

__all__ = ["check_keys", "current_parser", "differing_keys", "merged", "read_json_words", "resolved", "start"]

# Keys that MONAI itself gives a meaning to.
_MONAI_KEYS = {"_target_", "_requires_", "_disabled_", "_desc_", "_mode_", "_meta_", "_wrap_"}
_JSON_WORDS = {"true": True, "false": False, "null": None}


def current_parser() -> ConfigParser:
    """Return the parser of the bundle workflow whose expression is being evaluated.

    An expression in a config cannot name the parser that evaluates it, but it runs below one: this looks up the stack.

    Raises:
        RuntimeError: if called from outside a config expression.
    """
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ConfigParser):
            found = frame.f_locals["self"]  # the outermost parser: the workflow's own
        frame = frame.f_back
    if found is None:
        raise RuntimeError("current_parser() works only inside an expression of a bundle's config.")
    return found


def merged() -> dict[str, Any]:
    """Return the config of the running bundle, all files and overrides merged, as JSON-able content.

    A data list given in place of its file's name may hold patient ids: it becomes its hash.
    """
    config = {k: v for k, v in current_parser().get().items() if k != "_meta_"}
    for key, value in config.items():
        if key.endswith("data_list") and isinstance(value, dict):
            content = json.dumps(value, sort_keys=True).encode()
            config[key] = f"given in the config, SHA-256 {hashlib.sha256(content).hexdigest()}"
    return json.loads(json.dumps(config, default=str))


def resolved(key: str) -> Any:
    """Return a part of the running config with its references and expressions evaluated, but nothing instantiated.

    Args:
        key: id of the part, for example ``"network_def"``.
    """
    parser = current_parser()

    def resolve(part: Any, path: str) -> Any:
        if isinstance(part, dict):
            return {k: resolve(v, f"{path}#{k}") for k, v in part.items()}
        if isinstance(part, list):
            return [resolve(v, f"{path}#{i}") for i, v in enumerate(part)]
        if isinstance(part, str) and part[:1] in "$@":
            return copy.deepcopy(parser.get_parsed_content(path))
        return part

    return resolve(parser[key], key)


def start() -> None:
    """Begin a bundle: user errors become sentences, JSON's words are read, unknown keys and wrong kinds are refused.

    Raises:
        UserError: naming the first unknown key and the nearest known one, or a value and the kind it must be of.
    """
    show_user_errors_as_sentences()
    parser = current_parser()
    read_json_words(parser)
    config = parser.get()
    name = config.get("bundle")
    path = resource_folder("bundles") / f"{name}.json"
    if not path.is_file():
        raise UserError(f"The config's `bundle` must name one of medmdm's bundles, got {name!r}.")
    known = json.loads(path.read_text())
    check_keys(config, known, config.get("extra_keys", ()))
    check_kinds(config, known)
    check_device(config.get("device"))


def read_json_words(parser: ConfigParser) -> None:
    """Replace the texts ``"true"``, ``"false"`` and ``"null"`` by what they mean in JSON.

    The command line knows only Python's spelling: ``--report false`` arrives as a text that counts as true, and MONAI
    drops ``--shots None``, so that ``--shots null`` is the way to say it. A data list given in place of its file's name
    stays as it is.

    Args:
        parser: of the running bundle; parsed again if a text was replaced.
    """
    words = {path: value for path, value in _leaves(parser.get()) if isinstance(value, str) and value in _JSON_WORDS}
    words = {path: value for path, value in words.items() if not path.split("#")[0].endswith("data_list")}
    for path, value in words.items():
        parser[path] = _JSON_WORDS[value]
    if words:
        parser.parse(reset=True)


def check_keys(config: dict[str, Any], known: dict[str, Any], extra: list[str] | tuple[str, ...] = ()) -> None:
    """Refuse keys that nothing reads.

    At the top and inside plain dictionaries a key must be in the bundle as shipped; inside a component (a dictionary
    with ``_target_``) it must be an argument of that class or function.

    Args:
        config: the merged config.
        known: the bundle's config as shipped; below its ``free_names`` any name is fine.
        extra: further top-level keys that are fine (the config's ``extra_keys``).

    Raises:
        UserError: naming the first unknown key, where it stands, and the nearest known one.
    """
    candidates = [k for k in known if k not in _MONAI_KEYS]
    for key in config:
        if key not in known and key not in extra and key not in _MONAI_KEYS:
            where = _paths_ending_in(key, known) or nearest(key, candidates)
            raise UserError(
                f"Unknown key {key!r} in the config{where}; a constant of your own must be listed in `extra_keys`."
            )
    free = known.get("free_names", ())  # dictionaries whose names the user chooses
    for key, part in config.items():
        if key not in _MONAI_KEYS:
            _check_part(part, None if key in free else known.get(key), key)


def _paths_ending_in(name: str, known: dict[str, Any]) -> str:
    """Suggest where a key that is known further down stands, for example ``optimizer#lr`` for ``lr``."""
    paths = [path for path, _ in _leaves(known) if path.split("#")[-1] == name]
    return f" (did you mean {paths[0]!r}?)" if paths else ""


def _check_part(part: Any, known: Any, path: str) -> None:
    if isinstance(part, list):
        for i, item in enumerate(part):
            _check_part(item, None, f"{path}#{i}")
    if not isinstance(part, dict):
        return
    if "_target_" in part:
        _check_component(part, path)
    elif isinstance(known, dict) and known and "_target_" not in known:
        for key in part:
            if key not in known and key not in _MONAI_KEYS:
                raise UserError(f"Unknown key {f'{path}#{key}'!r} in the config{nearest(key, known)}.")
    for key, item in part.items():
        if key not in _MONAI_KEYS:
            _check_part(item, known.get(key) if isinstance(known, dict) else None, f"{path}#{key}")


def _check_component(part: dict[str, Any], path: str) -> None:
    try:
        target = locate(ConfigComponent(part, path).resolve_module_name())
    except Exception as error:
        raise UserError(f"{path}#_target_ {part['_target_']!r} cannot be imported ({error}).") from error
    if not callable(target):
        raise UserError(f"{path}#_target_ {part['_target_']!r} cannot be found: check its spelling.")
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in part:
        if key not in parameters and key not in _MONAI_KEYS:
            raise UserError(
                f"Unknown key {f'{path}#{key}'!r} in the config: "
                f"{part['_target_']} has no such argument{nearest(key, parameters)}."
            )


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("a#b#0", value)`` for every value that is neither a dictionary nor a list, and for empty ones."""
    children = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    empty = True
    for key, part in children:
        empty = False
        yield from _leaves(part, f"{path}#{key}" if path else str(key))
    if empty and path:
        yield path, config


def differing_keys(a: dict[str, Any], b: dict[str, Any], ignored: tuple[str, ...] = ()) -> list[str]:
    """Return the paths (``optimizer#lr``) at which two configs differ, leaving out those below ``ignored`` keys."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    missing = object()
    return [
        path
        for path in {**left, **right}
        if path.split("#")[0] not in ignored and left.get(path, missing) != right.get(path, missing)
    ]
