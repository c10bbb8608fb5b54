"""Patients: held out whole for previews; in the names of files found by a pattern of the user's, or suspected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from medmdm.data.files.formats import volume_stem
from medmdm.errors import UserError, counted

_GROUP_AND_NUMBER = re.compile(r"^(.*[A-Za-z0-9])[_\-. ]+[A-Za-z]{0,6}\d+$")
_Item = TypeVar("_Item")
_SLAB_SHARE = 0.15  # of the slices of a volume
_MANY_GROUPS = 4  # `train` and `test` are no patients; so many names without a digit may be


def subject_pattern(text: str | None) -> re.Pattern[str] | None:
    """Return the pattern that ``--subject`` gives, ``None`` where it is not given.

    Raises:
        UserError: it is no regular expression.
    """
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        problem = f"--subject {text!r} is no regular expression ({error})"
        raise UserError(f"{problem}: give one such as 'patient[0-9]+'.") from error


def find_subject(path: str, pattern: re.Pattern[str]) -> str:
    """Return the patient that a pattern finds in a path: its first group if it has one, else all that it matches.

    Raises:
        UserError: it finds nothing.
    """
    found = pattern.search(path)
    subject = found and (found.group(1) if pattern.groups else found.group(0))
    if not subject:
        raise UserError(f"--subject {pattern.pattern!r} finds nothing in {path}: give one that fits every file.")
    return subject


def for_previews(
    items: Sequence[_Item], entry_of: Callable[[_Item], Mapping[str, Any]], seed: Sequence[int]
) -> tuple[list[_Item], list[_Item]]:
    """Return volumes or slides that train and those held out for previews: of a tenth of the patients, at most four.

    Of fewer than five patients none is held out.

    Args:
        items: what is divided.
        entry_of: gives the entry of a data list that an item is of; without ``patient_id`` it is a patient of its own.
        seed: of the draw.
    """
    patients = [entry_of(item).get("patient_id", entry_of(item)["image"]) for item in items]
    distinct = sorted(set(patients))
    wanted = min(4, max(1, len(distinct) // 10)) if len(distinct) >= 5 else 0
    chosen = {distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))[:wanted]}
    parts: tuple[list[_Item], list[_Item]] = [], []
    for item, patient in zip(items, patients, strict=True):
        parts[patient in chosen].append(item)
    return parts


def suspected_patients(paths: Sequence[str]) -> str | None:
    """Return a sentence where names look like ``patient_number``, or folders like patients; else ``None``.

    Args:
        paths: of images whose patients nobody has named, with ``/``.
    """
    stems = [_GROUP_AND_NUMBER.match(volume_stem(PurePosixPath(path))) for path in paths]
    candidates = (
        ([found.group(1) if found else "" for found in stems], r"([^/]+)[_. -][A-Za-z]*[0-9]+[.]", "names"),
        ([PurePosixPath(path).parent.name for path in paths], r"([^/]+)/[^/]*$", "folders"),
    )
    for groups, pattern, what in candidates:
        several = {group: count for group, count in Counter(groups).items() if group and count > 1}
        with_digits = all(re.search(r"\d", group) for group in several)
        enough = len(several) > 1 and 2 * sum(several.values()) >= len(paths)
        if enough and (with_digits or (what == "names" and len(several) >= _MANY_GROUPS)):
            first = next(i for i, group in enumerate(groups) if group in several)
            second = groups.index(groups[first], first + 1)
            look = "names look like group_number" if what == "names" else "folders look like groups"
            return (
                f"no patients are named, and {look} ({paths[first]}, {paths[second]}): if {groups[first]!r} is a "
                f"patient, give --subject '{pattern}', so that no patient is in two parts of a split"
            )
    return None


def hold_out_volumes(
    groups: Sequence[list[dict[str, Any]]], context: int, seed: int
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]], str]:
    """Take some volumes, or where there are few a slab of one, out of training.

    Args:
        groups: entries of :func:`medmdm.data.slice_entries`, a list for each volume.
        context: neighbours on each side that slices are read with.
        seed: of the draw.

    Returns:
        What trains, what is held out (of volumes that are read whole nothing where there are few), and what to say.
    """
    groups = list(filter(None, groups))
    training, held_out = for_previews(groups, lambda group: group[0], [seed, 4])
    if held_out:
        return training, held_out, f"{counted(len(held_out), 'volume')} held out for previews"
    if "slice" not in groups[0][0]:  # read whole
        return groups, [], "no volume is held out: there are too few"
    which = int(np.random.default_rng([seed, 4]).integers(len(groups)))
    group = groups[which]
    slab = max(1, round(len(group) * _SLAB_SHARE))
    first = (len(group) - slab) // 2
    bounds = group[first]["slice"], group[first + slab - 1]["slice"]
    # A slice that is read with its neighbours must not show the slab either.
    rest = [e for e in group if not bounds[0] - 2 * context <= e["slice"] <= bounds[1] + 2 * context]
    if not rest:
        return list(groups), [], "no slices are held out: there are too few"
    sentence = (
        f"{counted(slab, 'slice')} in the middle of a volume held out for previews; their neighbours train, so the "
        "previews flatter: name validation volumes in a data list for fair ones"
    )
    return [*groups[:which], rest, *groups[which + 1 :]], [group[first : first + slab]], sentence
