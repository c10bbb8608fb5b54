"""Refuse settings of the wrong kind before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medmdm.errors import UserError

__all__ = ["check_kinds"]


def check_kinds(config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a top-level setting of another kind than the bundle's own.

    Only settings that are true or false, a number or a list of numbers in the bundle as shipped; expressions and
    references pass, and null where it may mean something to the part that reads it.

    Args:
        config: the merged config.
        known: the bundle's config as shipped.

    Raises:
        UserError: naming the key, what it must be and what it is.
    """
    for key, value in config.items():
        default = known.get(key)
        if isinstance(value, str) and value[:1] in ("$", "@", "%"):
            continue
        if isinstance(default, list) and default and all(n is None or _number(n) for n in default):
            if not isinstance(value, list) or not all(n is None or _number(n) for n in value):
                example = json.dumps(default)
                raise UserError(f"{key} must be a list of numbers such as {example}, got {value!r}.")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{key} must be true or false, got {value!r}.")
        elif _number(default) and value is not None:
            whole = isinstance(default, int)
            if not _number(value) or (whole and not float(value).is_integer()):
                raise UserError(f"{key} must be a {'whole ' if whole else ''}number, got {value!r}.")
    seed: Any = config.get("seed")
    if _number(seed) and not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed}.")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
