"""What the numbers in labels mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmdm.errors import UserError, nearest

IGNORE = 255  # pixels that losses and metrics leave out, unless the list declares a class of that number
LABEL_TYPES = ("classes", "instances")


def label_type(information: Mapping[str, Any]) -> str:
    """Return what ``label_type`` of a data list says: ``"classes"`` (the default) or ``"instances"``.

    Raises:
        UserError: it says something else.
    """
    kind = information.get("label_type", "classes")
    if kind not in LABEL_TYPES:
        raise UserError(f"'label_type' is {kind!r}{nearest(str(kind), LABEL_TYPES)}: use classes or instances.")
    return str(kind)


def label_classes(information: Mapping[str, Any]) -> frozenset[int] | None:
    """Return the numbers that ``labels`` of a data list declares, ``None`` where it has none.

    Both customs are understood: ``{"background": 0, "gland": 1}``, a name having one number or several, and the
    Decathlon's ``{"0": "background", "1": "gland"}``.

    Raises:
        UserError: it follows neither.
    """
    labels = information.get("labels")
    if labels is None:
        return None
    problem = UserError(f'\'labels\' is {labels!r}: name the classes as in {{"background": 0, "gland": 1}}.')
    if not isinstance(labels, dict) or not labels:
        raise problem
    if all(key.isdigit() and isinstance(value, str) for key, value in labels.items()):
        return frozenset(int(key) for key in labels)
    numbers = [n for value in labels.values() for n in (value if isinstance(value, list) else [value])]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise problem
    return frozenset(numbers)


def label_names(information: Mapping[str, Any]) -> dict[int, str]:
    """Return the name of each number that ``labels`` of a data list declares; ``{}`` where it has none.

    Numbers that share a name get it with their number behind it.

    Raises:
        UserError: as :func:`label_classes`.
    """
    if label_classes(information) is None:
        return {}
    names: dict[int, str] = {}
    for key, value in information["labels"].items():
        if isinstance(value, str):
            names[int(key)] = value
        elif isinstance(value, list):
            names |= {n: f"{key} {n}" if len(value) > 1 else key for n in value if n not in names}
        else:
            names[value] = key
    return names
