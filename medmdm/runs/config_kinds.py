"""Refuse settings of the wrong kind before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from medmdm.errors import UserError

__all__ = ["check_device", "check_kinds"]

_MAY_BE_NULL = ("max_grad_norm", "min_foreground", "probe_shots")  # numbers that null switches off


def check_kinds(config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a top-level setting of another kind than the bundle's own.

    Only settings that are true or false, a number or a list of numbers in the bundle as shipped, none of which is
    negative; expressions and references pass.

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
        elif _number(default) and not (value is None and key in _MAY_BE_NULL):
            whole = isinstance(default, int)
            if not _number(value) or (whole and not float(value).is_integer()) or not value >= 0:
                kind = "a whole number" if whole else "a number"
                raise UserError(f"{key} must be {kind} of 0 or more, got {'null' if value is None else repr(value)}.")
    seed: Any = config.get("seed")
    if _number(seed) and not seed < 2**32:
        raise UserError(f"seed must be less than {2**32}, got {seed}.")


def check_device(device: Any) -> None:
    """Refuse a device, given by its name, that PyTorch cannot use here.

    Raises:
        UserError: with PyTorch's first sentence on why.
    """
    if isinstance(device, str) and device[:1] not in ("$", "@", "%"):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
