"""What is to be prepared: the cases of a plan and what is made of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medmdm.prepare.release import SourceFile

__all__ = ["Case", "Made", "Plan"]


@dataclass(frozen=True)
class Made:
    """What one case becomes.

    Args:
        files: path below DEST and content, by the key that it has in the data list (``image``, ``label``).
        facts: for the table, as JSON values: ``shape``; ``objects`` where they are numbered; ``regions`` where the
            source lists outlines; ``pixels``, the number of pixels by class without the ignored ones.
        columns: what the files say beyond what the plan knew, for the data list (such as ``spacing``).
        notes: sentences for the end of the table.
    """

    files: Mapping[str, tuple[str, bytes]]
    facts: Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One image with whatever belongs to it.

    Args:
        name: of the outputs, unique in the plan also where letter case does not count.
        section: ``training``, ``validation`` or ``test``; ``None`` for a case that ``dataset.json`` does not list.
        sources: the files that it is made from; a change in one makes it anew.
        make: reads them and returns the outputs.
        row: the row of the table that it counts in; default the section.
        columns: for its entry in the data list.
        recipe: what ``make`` depends on besides the sources.
    """

    name: str
    section: str | None
    sources: tuple[SourceFile, ...]
    make: Callable[[], Made]
    row: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)  # holds patient ids
    recipe: str = ""


@dataclass(frozen=True)
class Plan:
    """A data set to prepare.

    Args:
        kind: as on the command line.
        information: the data list without its sections.
        cases: in the order of the data list.
        notices: what is missing or was decided, for the end of the table.
        other_lists: further data lists by file name: what differs in their information, and the section that each
            case has in them.
    """

    kind: str
    information: Mapping[str, Any]
    cases: tuple[Case, ...]
    notices: tuple[str, ...] = ()
    other_lists: Mapping[str, tuple[Mapping[str, Any], Callable[[Case], str | None]]] = field(default_factory=dict)
