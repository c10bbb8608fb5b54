"""What ``bundles/schemas/`` says of each key of a bundle, its kind, default and meaning, and of an evaluation."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from medmdm.errors import UserError
from medmdm.files import resource_folder


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

    return expanded(files[f"{name}.json"], f"{name}.json")


def settings(name: str) -> dict[str, dict[str, Any]]:
    """Return key -> schema of what a user of a bundle sets, without its parts."""
    return {key: part for key, part in bundle_schema(name)["properties"].items() if not part.get("x-part")}


def may_change(name: str) -> set[str]:
    """Return the keys of a bundle that may change when a run goes on."""
    return {key for key, part in bundle_schema(name)["properties"].items() if part.get("x-resume")}


def check_evaluation(content: Mapping[str, Any], path: Path) -> None:
    """Check the values of an ``evaluation.json``, which other programs write too.

    Raises:
        UserError: one is of a wrong kind; the sentence names the file, the place and the value.
    """
    schema = json.loads((resource_folder("bundles") / "schemas" / "evaluation.json").read_text(encoding="utf-8"))
    error = best_match(Draft202012Validator(schema).iter_errors(content))
    if error is not None:
        at = error.json_path.removeprefix("$.")
        raise UserError(f"{path}: {at}: {error.message}: correct it, or evaluate again.")
