"""Carrying out a plan: case after case, each written whole, then the data lists and the table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medmdm.data.lists import SECTIONS, load_data_list
from medmdm.errors import UserError
from medmdm.files import sweep_temporaries
from medmdm.prepare.cases import Case, Plan
from medmdm.prepare.journal import Journal, fingerprint_of, write_if_changed
from medmdm.prepare.table import summary

__all__ = ["LIST_NAME", "carry_out"]

LIST_NAME = "dataset.json"


def carry_out(plan: Plan, dest: Path) -> str:
    """Prepare the cases of a plan in ``dest`` and return the summary.

    What an earlier run finished, and what is unchanged since, is kept. Every file appears whole or not at all, and
    ``dataset.json`` comes last: where it is, everything is.

    Raises:
        UserError: a file cannot be used, two cases would have one name, or ``dest`` holds something else.
    """
    _refuse_clashes(plan)
    journal = Journal(dest, plan.kind)
    gone = sorted(set(journal.names) - {case.name for case in plan.cases})
    if gone:
        raise UserError(
            f"{dest} holds {len(gone)} cases prepared before that the source no longer has (first: {gone[0]}): give "
            "another folder, or put all parts of the release into one source"
        )
    for folder in (dest, *(path for path in dest.rglob("*") if path.is_dir())):
        sweep_temporaries(folder)
    made = 0
    for case in tqdm(plan.cases, desc=f"prepare {plan.kind}", unit="case", disable=None):
        fingerprint = fingerprint_of(case)
        if not journal.is_done(case, fingerprint):
            journal.write(case, fingerprint, case.make())
            made += 1
    journal.finish([case.name for case in plan.cases])
    for name, (information, section_of) in plan.other_lists.items():
        _write_list(dest / name, {**plan.information, **information}, plan, section_of, journal)
    _write_list(dest / LIST_NAME, plan.information, plan, lambda case: case.section, journal)
    return _report(plan, journal, made)


def _refuse_clashes(plan: Plan) -> None:
    if not any(case.section == "training" for case in plan.cases):
        raise UserError(
            f"the source holds no training images of {plan.information['name']}, and a data list needs some: put all "
            "parts of the release into one folder"
        )
    first: dict[str, Case] = {}
    for case in plan.cases:
        other = first.setdefault(case.name.lower(), case)
        if other is not case:
            raise UserError(
                f"{case.sources[0].shown} and {other.sources[0].shown} would both become images/{case.name}.png "
                "where letter case does not count: rename one"
            )


def _write_list(
    path: Path,
    information: Mapping[str, Any],
    plan: Plan,
    section_of: Callable[[Case], str | None],
    journal: Journal,
) -> None:
    sections: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case in plan.cases:
        section = section_of(case)
        if section is not None:
            record = journal[case.name]
            sections[section].append({**record["files"], **case.columns, **record["columns"]})
    content = {**information, **{section: sections[section] for section in SECTIONS if section in sections}}
    load_data_list(content)  # what we write must be readable
    write_if_changed(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _report(plan: Plan, journal: Journal, made: int) -> str:
    rows = [(case.row or case.section or "", journal[case.name]["facts"]) for case in plan.cases]
    notes = [*plan.notices, *(note for case in plan.cases for note in journal[case.name]["notes"])]
    kept = len(plan.cases) - made
    return "\n".join(
        [
            f"{plan.information['name']}: {made} prepared, {kept} kept from before",
            "",
            summary(rows, plan.information.get("labels", {}), notes),
            "",
            f"data list: {journal.dest / LIST_NAME}",
        ]
    )
