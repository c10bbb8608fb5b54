"""What MONAI's bundle runner does not do with a config: refuse unknown keys, and hand it to the run's record.

``monai.bundle run`` adds a mistyped override as a new key that nobody reads, and hands over ``--report false`` as a
text, which Python takes for true. The first ``initialize`` expression of our bundles calls :func:`start`, which reads
such texts as JSON does and holds what was merged (files and overrides) against the bundle's schema.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any

import torch
from jsonschema import Draft202012Validator, validators
from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent
from monai.bundle.utils import DEFAULT_HANDLERS_ID, DEFAULT_MLFLOW_SETTINGS

from medmdm.components import moved, to_config
from medmdm.errors import UserError, nearest, show_user_errors_as_sentences, when_interrupted
from medmdm.files import claim, resource_folder, text_hash
from medmdm.runs.command_line import restore, written_folder
from medmdm.runs.log import begin_log
from medmdm.runs.memory import keep_freed_memory
from medmdm.runs.threads import choose as set_threads
from medmdm.schemas import bundle_schema, settings

logger = logging.getLogger(__name__)

#: Keys that MONAI itself gives a meaning to.
MONAI_KEYS = frozenset({"_target_", "_requires_", "_disabled_", "_desc_", "_mode_", "_meta_", "_wrap_"})
#: What ``--tracking mlflow`` adds to a config besides a handler.
_TRACKING_KEYS = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"]) - frozenset(DEFAULT_HANDLERS_ID)
_JSON_WORDS = {"true": True, "false": False, "null": None}
_FINITE = Draft202012Validator.TYPE_CHECKER.redefine(
    "number", lambda _, value: type(value) in (int, float) and math.isfinite(value)
)
_Validator = validators.extend(Draft202012Validator, type_checker=_FINITE)


def faults(config: Mapping[str, Any], schema: Mapping[str, Any], places: Sequence[str] = ()) -> Iterator[str]:
    """Yield a sentence for each unknown key and each value that is not of its kind.

    Args:
        config: a merged config, or part of one; what JSON cannot hold counts as an expression does.
        schema: of the bundle, see :func:`bundle_schema`.
        places: paths such as ``optimizer#lr`` that are known beyond the schema, to suggest for a mistyped key.
    """
    plain = json.loads(json.dumps(config, default=lambda v: str(v) if isinstance(v, os.PathLike) else f"${v!r}"))
    for error in _Validator(schema).iter_errors(plain):
        path = [str(key) for key in error.absolute_path]
        if error.validator == "additionalProperties" and error.validator_value is False:
            known = error.schema["properties"]
            for key in error.instance:
                if key not in known and key not in MONAI_KEYS:
                    where = [] if path else [place for place in places if place.split("#")[-1] == key]
                    hint = f" (did you mean {where[0]!r}?)" if where else nearest(key, known)
                    more = "" if path else "; a constant of your own must be listed in `extra_keys`"
                    yield f"Unknown key {'#'.join([*path, key])!r} in the config{hint}{more}."
        else:
            shown = "null" if error.instance is None else repr(error.instance)
            choices = [str(word) for option in error.schema.get("anyOf", ()) for word in option.get("enum", ())]
            hint = nearest(str(error.instance), choices)
            yield f"{'#'.join(path)} must be {error.schema.get('title', error.message)}, got {shown}{hint}."


def current_parser() -> ConfigParser:
    """Return the parser of the bundle workflow whose expression is being evaluated.

    An expression in a config cannot name the parser that evaluates it, but it runs below one: this looks up the stack.

    Raises:
        RuntimeError: if called from outside a config expression.
    """
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(sys._getframe(1))]
    parsers = [caller for caller in callers if isinstance(caller, ConfigParser)]
    if not parsers:
        raise RuntimeError("current_parser() works only inside an expression of a bundle's config.")
    return parsers[-1]  # the outermost: the workflow's own


def merged() -> dict[str, Any]:
    """Return the config of the running bundle, all files and overrides merged, as JSON-able content.

    A data list given in place of its file's name may hold patient ids: it becomes its hash. Tracking (``--tracking
    mlflow``) is left out: a run goes on with or without it.
    """
    found = current_parser().get()
    config = {k: v for k, v in untracked(found).items() if k not in ("_meta_", "$schema")}
    for key, value in config.items():
        if key.endswith("data_list") and isinstance(value, dict):
            config[key] = f"given in the config, SHA-256 {text_hash(json.dumps(value, sort_keys=True))}"
    return json.loads(json.dumps(config, default=str))


def untracked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what ``--tracking mlflow`` added to it; the handler is what shows that it did."""
    plain = ConfigParser(copy.deepcopy(dict(config)))
    tracks = False
    for place in {engine["handlers"] for engine in DEFAULT_HANDLERS_ID.values()}:
        handlers = plain.get(place)
        if isinstance(handlers, list):
            kept = [one for one in handlers if not _is_tracker(one)]
            tracks = tracks or len(kept) < len(handlers)
            plain[place] = kept
    added = _TRACKING_KEYS - set(bundle_schema(str(config.get("bundle")))["properties"]) if tracks else ()
    return {key: value for key, value in plain.get().items() if key not in added}


def _is_tracker(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("_target_")).endswith("MLFlowHandler")


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


def described(key: str) -> dict[str, Any]:
    """Return what a component of the running config is made of, so that it can be made again.

    What it says of itself, defaults included (:func:`medmdm.components.to_config`); of a stranger, such as a network
    of MONAI's, its part of the config.

    Args:
        key: id of the part, for example ``"network_def"``.
    """
    try:
        return to_config(current_parser().get_parsed_content(key))
    except UserError:
        return resolved(key)


def start() -> None:
    """Begin a bundle: user errors become sentences, the config is normalised and checked, its folder is claimed.

    The log is taken down for ``run.log``, and the number of threads is set (:mod:`medmdm.runs.threads`).

    Raises:
        UserError: with a sentence for each unknown key and each value that is not of its kind, or another process
            writes to the folder.
    """
    show_user_errors_as_sentences()
    when_interrupted("nothing is written yet; the same command starts anew.")
    begin_log()
    parser = current_parser()
    if restore(parser, settings(str(parser.get("bundle")))):
        parser.parse(reset=True)
    normalise(parser)
    config = parser.get()
    check(config)
    known = settings(config["bundle"])
    late = [key for key in known if key in config and any(_is_expression(leaf) for _, leaf in _leaves([config[key]]))]
    given = {key: parser.get_parsed_content(key) for key in late}
    _refuse(faults(given, {"properties": known}))
    check_device(config.get("device"))
    given = {**config, **given}
    if given.get("keep_freed_memory"):
        keep_freed_memory()
    folder = written_folder(given)
    if folder is not None:  # another process is named before hours of reading
        claim(folder)
        logger.info("%s writes to %s", config["bundle"], folder)
    on_cpu, has_workers = str(given.get("device")) == "cpu", given.get("scheduler") is not None
    set_threads(given.get("threads"), folder, on_cpu, has_workers)


def normalise(parser: ConfigParser) -> None:
    """Read texts as JSON does, and find components of earlier versions under their new names.

    The command line knows only Python's spelling: ``--report false`` arrives as a text that counts as true, and MONAI
    drops ``--shots None``, so that ``--shots null`` is the way to say it. A data list given in place of its file's name
    stays as it is.

    Args:
        parser: of the running bundle; parsed again if something was replaced.
    """
    replaced: dict[str, Any] = {}
    for path, value in _leaves(parser.get()):
        if isinstance(value, str) and not path.split("#")[0].endswith("data_list"):
            meant = moved(value) if path.split("#")[-1] == "_target_" else _JSON_WORDS.get(value, value)
            if meant != value:
                replaced[path] = meant
    if (head := _former_head(parser.get())) is not None:
        replaced["head"] = head
    for path, meant in replaced.items():
        parser[path] = meant
    if replaced:
        parser.parse(reset=True)


def _former_head(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the default head of 0.1 with arguments that were given for it, as 0.1's commands do; else None."""
    head, folder = config.get("head"), resource_folder("bundles")
    if config.get("bundle") != "mdm_segment" or not isinstance(head, dict):
        return None
    shipped = json.loads((folder / "mdm_segment.json").read_text(encoding="utf-8"))["head"]
    former = json.loads((folder / "overlays" / "frozen_segment.json").read_text(encoding="utf-8"))["head"]
    given = {key: value for key, value in head.items() if key not in shipped}
    known = _arguments(locate(former["_target_"]))
    if not given or {**shipped, **given} != head or known is None or not given.keys() <= {*known}:
        return None
    logger.warning(
        "%s: arguments of the pixel classifier on frozen features, the default head of 0.1, which is therefore taken "
        "(overlays/frozen_segment.json chooses it).", ", ".join(f"head#{key}" for key in given),
    )  # fmt: skip
    return {**former, **given}


def check(config: Mapping[str, Any]) -> None:
    """Refuse keys that nothing reads and values of another kind than the bundle's schema says.

    At the top and inside plain dictionaries a key must be in the schema; inside a component (a dictionary with
    ``_target_``) it must be an argument of that class or function. Expressions pass: they are checked once they are
    evaluated.

    Args:
        config: the merged config; its ``bundle`` names the schema, its ``extra_keys`` further keys that are fine.

    Raises:
        UserError: with a sentence for each fault.
    """
    schema = bundle_schema(str(config.get("bundle")))
    shipped = json.loads((resource_folder("bundles") / f"{config['bundle']}.json").read_text(encoding="utf-8"))
    extra = config.get("extra_keys")
    own = {key: part for key, part in untracked(config).items() if not (isinstance(extra, list) and key in extra)}
    found = list(faults(own, schema, [path for path, _ in _leaves(shipped)]))
    _refuse([*found, *(fault for key, part in config.items() for fault in _component_faults(part, key))])


def _refuse(sentences: Iterable[str]) -> None:
    found = list(dict.fromkeys(sentences))
    if found:
        raise UserError("\n".join(found))


def _is_expression(leaf: Any) -> bool:
    return isinstance(leaf, str) and leaf.startswith(("$", "@", "%"))


def _component_faults(part: Any, path: str) -> Iterator[str]:
    """Yield a sentence for each component that cannot be found and each key that is none of its arguments."""
    if isinstance(part, dict) and "_target_" in part:
        name = part["_target_"]
        try:
            target = locate(ConfigComponent(part, path).resolve_module_name())
        except Exception as error:
            yield f"{path}#_target_ {name!r} cannot be imported ({error})."
            return
        if not callable(target):
            yield f"{path}#_target_ {name!r} cannot be found: check its spelling."
            return
        known = _arguments(target)
        for key in part:
            if known is not None and key not in known and key not in MONAI_KEYS:
                hint = nearest(key, known)
                yield f"Unknown key {f'{path}#{key}'!r} in the config: {name} has no such argument{hint}."
    for key, item in _children(part):
        if key not in MONAI_KEYS:
            yield from _component_faults(item, f"{path}#{key}")


def _arguments(target: Any) -> Collection[str] | None:
    """Return the arguments of a class or function; None where any will do, or it does not say."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return None
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters.values()) else parameters


def check_device(device: Any) -> None:
    """Refuse a device, given by its name, that PyTorch cannot use here.

    Raises:
        UserError: with PyTorch's first sentence on why.
    """
    if isinstance(device, str) and not _is_expression(device):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def _children(part: Any) -> Iterable[tuple[Any, Any]]:
    return part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("a#b#0", value)`` for every value that is neither a dictionary nor a list, and for empty ones."""
    if path and not (isinstance(config, (dict, list)) and config):
        yield path, config
    for key, part in _children(config):
        yield from _leaves(part, f"{path}#{key}" if path else str(key))


def differing_keys(a: dict[str, Any], b: dict[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """Return the paths (``optimizer#lr``) at which two configs differ, leaving out those below ``ignored`` keys."""
    left, right, missing = dict(_leaves(a)), dict(_leaves(b)), object()
    paths = [path for path in {**left, **right} if path.split("#")[0] not in ignored]
    return [path for path in paths if left.get(path, missing) != right.get(path, missing)]
