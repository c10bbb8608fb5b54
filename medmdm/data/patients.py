"""Patients in the names of files: found by a pattern of the user's, or suspected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from medmdm.data.files.formats import volume_stem
from medmdm.errors import UserError

_GROUP_AND_NUMBER = re.compile(r"^(.*[A-Za-z0-9])[_\-. ]+[A-Za-z]{0,6}\d+$")
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
