"""Carrying out a preparation: case after case, each written whole, then the data lists and the table."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from medmdm.data.lists import SECTIONS, load_data_list
from medmdm.data.validity import size_text
from medmdm.errors import UserError, refuse_full_disk
from medmdm.files import claim, sweep_temporaries
from medmdm.prepare.journal import Journal, fingerprint_of, write_if_changed
from medmdm.prepare.preparation import Preparation, SectionOf, SourceCase

LIST_NAME = "dataset.json"
_MAX_NOTES = 40


def carry_out(plan: Preparation, dest: Path) -> str:
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
            "another folder, or put all parts of the release into one source."
        )
    with refuse_full_disk(dest):
        dest.mkdir(parents=True, exist_ok=True)
    claim(dest)
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


def _refuse_clashes(plan: Preparation) -> None:
    if not any(case.section == "training" for case in plan.cases):
        raise UserError(
            f"the source holds no training images of {plan.information['name']}, and a data list needs some: put all "
            "parts of the release into one folder."
        )
    first: dict[str, SourceCase] = {}
    for case in plan.cases:
        other = first.setdefault(case.name.lower(), case)
        if other is not case:
            raise UserError(
                f"{case.sources[0].shown} and {other.sources[0].shown} would both become images/{case.name}.png "
                "where letter case does not count: rename one."
            )


def _write_list(
    path: Path, information: Mapping[str, Any], plan: Preparation, section_of: SectionOf, journal: Journal
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


def _report(plan: Preparation, journal: Journal, made: int) -> str:
    rows = [(case.row or case.section or "", journal[case.name]["facts"]) for case in plan.cases]
    notes = [*plan.notices, *(note for case in plan.cases for note in journal[case.name]["notes"])]
    kept = len(plan.cases) - made
    head = f"{plan.information['name']}: {made} prepared, {kept} kept from before"
    table = summary(rows, plan.information.get("labels", {}), notes)
    return f"{head}\n\n{table}\n\ndata list: {journal.dest / LIST_NAME}"


def summary(rows: Sequence[tuple[str, Mapping[str, Any]]], labels: Mapping[str, int], notes: Sequence[str]) -> str:
    """Return the table, the classes and the notes.

    Args:
        rows: of each case the row that it counts in and its facts (see ``Made``).
        labels: name and value of each class.
        notes: sentences for the end, in order.
    """
    names = list(dict.fromkeys(row for row, _ in rows))
    groups = {name: [facts for row, facts in rows if row == name] for name in names}
    if len(names) > 1:
        groups["all"] = [facts for _, facts in rows]
    table = pd.DataFrame([_row(name, group) for name, group in groups.items()]).dropna(axis="columns", how="all")
    if "objects" in table:
        table["objects"] = table["objects"].astype("Int64")
    text = table.to_string(index=False, na_rep="-")
    lines = [line.rstrip() for line in text.splitlines()]
    pixels = _sum(facts["pixels"] for _, facts in rows if "pixels" in facts)
    if pixels:
        shares = (f"{n} {name} {pixels[str(n)] / pixels.total():.1%}" for name, n in labels.items())
        lines += ["", "classes: " + ", ".join(shares)]
    outlined = [facts for _, facts in rows if "regions" in facts]
    if outlined:
        regions, objects = (sum(facts[key] for facts in outlined) for key in ("regions", "objects"))
        lines.append(f"outlines: {regions} regions in {len(outlined)} files became {objects} objects")
    if notes:
        lines += ["", "notes:", *(f"- {note}" for note in notes[:_MAX_NOTES])]
    if len(notes) > _MAX_NOTES:
        lines.append(f"- and {len(notes) - _MAX_NOTES} more, in prepared.jsonl")
    return "\n".join(lines)


def _row(name: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pixels = _sum(facts["pixels"] for facts in group if "pixels" in facts)
    objects = [facts["objects"] for facts in group if facts.get("objects") is not None]
    return {
        "split": name,
        "images": len(group),
        "labels": sum("pixels" in facts for facts in group),
        "objects": sum(objects) if objects else None,
        "size": _sizes([size_text(facts["shape"]) for facts in group]),
        "foreground": f"{1 - pixels['0'] / pixels.total():.1%}" if pixels else None,
    }


def _sizes(sizes: Sequence[str]) -> str:
    """Return the commonest size (rows x columns) and how many images have others."""
    (commonest, number), *others = Counter(sizes).most_common()
    return f"{commonest}" + (f", {len(sizes) - number} in {len(others)} others" if others else "")


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total
