"""The settings of a bundle, as the JSON Schema beside it says: what there is, of what kind, and what it is for.

A schema's keywords are JSON Schema's (2020-12) and two of ours: ``x-resume``, the setting may change when a run goes
on; ``x-part``, the key is a component, or computed from settings, rather than a setting. The ``title`` of a value's
schema completes the sentence "... must be".
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator, validators

from medmdm.errors import UserError, nearest
from medmdm.resources import resource_folder

__all__ = ["MONAI_KEYS", "bundle_schema", "faults", "may_change", "settings"]

#: Keys that MONAI itself gives a meaning to.
MONAI_KEYS = frozenset({"_target_", "_requires_", "_disabled_", "_desc_", "_mode_", "_meta_", "_wrap_"})


def _finite(checker: Any, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_Validator = validators.extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _finite)
)


@functools.cache
def bundle_schema(name: str) -> dict[str, Any]:
    """Return the schema of a bundle, what it refers to put in place.

    Raises:
        UserError: there is no such bundle.
    """
    folder = resource_folder("bundles") / "schemas"
    if not (folder / f"{name}.json").is_file() or name == "common":
        names = ", ".join(sorted(path.stem for path in folder.glob("mdm_*.json")))
        raise UserError(f"The config's `bundle` must name one of medmdm's bundles ({names}), got {name!r}.")

    files = {file: json.loads((folder / file).read_text(encoding="utf-8")) for file in ("common.json", f"{name}.json")}

    def expanded(part: Any, file: str) -> Any:
        if isinstance(part, list):
            return [expanded(item, file) for item in part]
        if not isinstance(part, dict):
            return part
        own = {key: expanded(item, file) for key, item in part.items() if key != "$ref"}
        if "$ref" in part:
            other, _, pointer = part["$ref"].partition("#/")
            target = functools.reduce(lambda found, key: found[key], pointer.split("/"), files[other or file])
            own = {**expanded(target, other or file), **own}
        return own

    schema: dict[str, Any] = expanded(files[f"{name}.json"], f"{name}.json")
    return schema


def settings(name: str) -> dict[str, dict[str, Any]]:
    """Return key -> schema of what a user of a bundle sets, without its parts."""
    return {key: part for key, part in bundle_schema(name)["properties"].items() if not part.get("x-part")}


def may_change(name: str) -> set[str]:
    """Return the keys of a bundle that may change when a run goes on."""
    return {key for key, part in bundle_schema(name)["properties"].items() if part.get("x-resume")}


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
                    yield _unknown(key, path, known, places)
        else:
            shown = "null" if error.instance is None else repr(error.instance)
            choices = [str(word) for option in error.schema.get("anyOf", ()) for word in option.get("enum", ())]
            hint = nearest(str(error.instance), choices)
            yield f"{'#'.join(path)} must be {error.schema.get('title', error.message)}, got {shown}{hint}."


def _unknown(key: str, path: list[str], known: Mapping[str, Any], places: Sequence[str]) -> str:
    where = [] if path else [place for place in places if place.split("#")[-1] == key]
    hint = f" (did you mean {where[0]!r}?)" if where else nearest(key, known)
    more = "" if path else "; a constant of your own must be listed in `extra_keys`"
    return f"Unknown key {'#'.join([*path, key])!r} in the config{hint}{more}."
