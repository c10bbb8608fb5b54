"""Which keys and kinds of values a config may have: by its bundle's schema, and by the arguments of its components."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, validators
from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.bundle.utils import DEFAULT_HANDLERS_ID, DEFAULT_MLFLOW_SETTINGS

from medmdm.errors import nearest
from medmdm.files import resource_folder, text_hash
from medmdm.schemas import bundle_schema

#: Keys that MONAI itself gives a meaning to.
MONAI_KEYS = frozenset({"_target_", "_requires_", "_disabled_", "_desc_", "_mode_", "_meta_", "_wrap_"})
#: What ``--tracking mlflow`` adds to a config besides a handler.
_TRACKING_KEYS = frozenset(DEFAULT_MLFLOW_SETTINGS["configs"]) - frozenset(DEFAULT_HANDLERS_ID)
_TRACKED_BY = {"is_not_rank0", "save_execute_config"}  # of these, keys that nobody types
_FINITE = Draft202012Validator.TYPE_CHECKER.redefine(
    "number", lambda _, value: type(value) in (int, float) and math.isfinite(value)
)
_Validator = validators.extend(Draft202012Validator, type_checker=_FINITE)


class Fault(NamedTuple):
    """A key or value of a config that is wrong.

    Args:
        path: where, such as ``"optimizer#lr"``.
        sentence: what is wrong with it.
        unknown: whether nothing reads that key.
    """

    path: str
    sentence: str
    unknown: bool = False


def faults(config: Mapping[str, Any], schema: Mapping[str, Any], places: Sequence[str] = ()) -> Iterator[Fault]:
    """Yield each unknown key and each value that is not of its kind.

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
                    place = "#".join([*path, key])
                    yield Fault(place, f"Unknown key {place!r} in the config{hint}{more}.", unknown=True)
        else:
            shown = "null" if error.instance is None else repr(error.instance)
            choices = [str(word) for option in error.schema.get("anyOf", ()) for word in option.get("enum", ())]
            hint = nearest(str(error.instance), choices)
            place = "#".join(path)
            if error.validator == "required" and error.instance:
                inner = f"{place}#{next(iter(error.instance))}"
                hint = f"; in a file it replaces the whole part, and {inner!r} as a key changes one argument"
            yield Fault(place, f"{place} must be {error.schema.get('title', error.message)}, got {shown}{hint}.")


def config_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield each key that nothing reads, and each value of another kind than the bundle's schema says.

    At the top and inside plain dictionaries a key must be in the schema; inside a component (a dictionary with
    ``_target_``) it must be an argument of that class or function. Expressions pass: they are checked once they are
    evaluated.

    Args:
        config: the merged config; its ``bundle`` names the schema, its ``extra_keys`` further keys that are fine.

    Raises:
        UserError: there is no such bundle.
    """
    schema = bundle_schema(str(config.get("bundle")))
    if config.keys() >= _TRACKED_BY and "handlers" not in schema["properties"] and "train" not in schema["properties"]:
        followed = "pretrain, segment, evaluate and infer"
        yield Fault("", f"--tracking follows {followed}, but not {config['bundle']}: leave it out.")
    extra = config.get("extra_keys")
    own = {key: part for key, part in untracked(config).items() if not (isinstance(extra, list) and key in extra)}
    yield from faults(own, schema, [path for path, _ in leaves(shipped(str(config["bundle"])))])
    for key, part in config.items():
        yield from _component_faults(part, key)
    yield from _expression_faults(untracked(config))


def shipped(bundle: str) -> dict[str, Any]:
    """Return the config of a bundle as it comes with medmdm."""
    return json.loads((resource_folder("bundles") / f"{bundle}.json").read_text(encoding="utf-8"))


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a merged config as a run's record has it, JSON-able.

    A data list given in place of its file's name may hold patient ids: it becomes its hash. Tracking (``--tracking
    mlflow``) is left out: a run goes on with or without it.
    """
    kept = {k: v for k, v in untracked(config).items() if k not in ("_meta_", "$schema")}
    for key, value in kept.items():
        if key.endswith("data_list") and isinstance(value, dict):
            kept[key] = f"given in the config, SHA-256 {text_hash(json.dumps(value, sort_keys=True))}"
    return json.loads(json.dumps(kept, default=str))


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


def is_expression(leaf: Any) -> bool:
    """Whether MONAI's parser evaluates a value."""
    return isinstance(leaf, str) and leaf.startswith(("$", "@", "%"))


def _component_faults(part: Any, path: str) -> Iterator[Fault]:
    """Yield each component that cannot be found and each key that is none of its arguments."""
    if isinstance(part, dict) and "_target_" in part:
        name = part["_target_"]
        try:
            # MONAI looks through all its modules for a name without dots.
            target = locate(name if "." in str(name) else ConfigComponent(part, path).resolve_module_name())
        except Exception as error:
            yield Fault(path, f"{path}#_target_ {name!r} cannot be imported ({error}).")
            return
        if not callable(target):
            yield Fault(path, f"{path}#_target_ {name!r} cannot be found: check its spelling.")
            return
        known = arguments(target)
        for key in part:
            if known is not None and key not in known and key not in MONAI_KEYS:
                hint = nearest(key, known)
                place = f"{path}#{key}"
                said = f"Unknown key {place!r} in the config: {name} has no such argument{hint}."
                yield Fault(place, said, unknown=True)
    for key, item in children(part):
        if key not in MONAI_KEYS:
            yield from _component_faults(item, f"{path}#{key}")


def _expression_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield each reference to what is not there, and each expression that is no Python."""
    plain = ConfigParser(copy.deepcopy(dict(config)))
    plain.resolve_macro_and_relative_ids()
    for path, text in leaves(plain.get()):
        if not is_expression(text) or path.startswith("imports#"):
            continue
        for name in ReferenceResolver.match_refs_pattern(text):
            place = name.replace(ReferenceResolver.sep, "#")
            if name and place not in plain:
                hint = nearest(place, config)
                yield Fault(path, f"{path} refers to @{place}, which the config does not have{hint}.")
        if ConfigExpression.is_expression(text):
            code = ReferenceResolver.id_matcher.sub("_", ReferenceResolver.normalize_id(text[1:]))
            try:
                ast.parse(code.strip(), mode="exec" if ConfigExpression.is_import_statement(text) else "eval")
            except SyntaxError as error:
                yield Fault(path, f"{path} is no Python expression, {text!r}: {error.msg}.")


def arguments(target: Any) -> Collection[str] | None:
    """Return the arguments of a class or function; None where any will do, or it does not say."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return None
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters.values()) else parameters


def children(part: Any) -> Iterable[tuple[Any, Any]]:
    """Return (key, value) of a dictionary, (index, value) of a list, nothing of anything else."""
    return part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("a#b#0", value)`` for every value that is neither a dictionary nor a list, and for empty ones."""
    if path and not (isinstance(config, (dict, list)) and config):
        yield path, config
    for key, part in children(config):
        yield from leaves(part, f"{path}#{key}" if path else str(key))


def differing_keys(a: dict[str, Any], b: dict[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """Return the paths (``optimizer#lr``) at which two configs differ, leaving out those below ``ignored`` keys."""
    left, right, missing = dict(leaves(a)), dict(leaves(b)), object()
    paths = [path for path in {**left, **right} if path.split("#")[0] not in ignored]
    return [path for path in paths if left.get(path, missing) != right.get(path, missing)]
