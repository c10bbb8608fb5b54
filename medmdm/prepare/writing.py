"""Carrying out a preparation: case after case, each written whole, then the data lists and the table."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medmdm.data.added_labels import HISTORY
from medmdm.data.lists import SECTIONS, load_data_list
from medmdm.data.validity import size_text
from medmdm.errors import UserError, refuse_full_disk, when_interrupted
from medmdm.files import claim, sweep_temporaries, text_hash
from medmdm.labels import IGNORE
from medmdm.prepare.journal import Journal, write_if_changed
from medmdm.prepare.preparation import Preparation, SourceCase
from medmdm.progress import followed

LIST_NAME = "dataset.json"
_MAX_NOTES = 40


def carry_out(kind: str, plan: Preparation, dest: Path) -> str:
    """Prepare the cases of a plan in ``dest`` and return the summary; ``kind`` is that of the command line.

    What an earlier run finished, and what is unchanged since, is kept. Every file appears whole or not at all, and
    ``dataset.json`` comes last: where it is, everything is.

    Raises:
        UserError: a file cannot be used, two cases would have one name, or ``dest`` holds something else, or a list
            that labels were added to.
    """
    _refuse_clashes(plan)
    _refuse_added_labels(dest / LIST_NAME)
    journal = Journal(dest, kind)
    gone = sorted(set(journal.records) - {case.name for case in plan.cases})
    if gone:
        problem = f"{dest} holds {len(gone)} cases prepared before that the source no longer has (first: {gone[0]})"
        raise UserError(f"{problem}: give another folder, or put all parts of the release into one source.")
    with refuse_full_disk(dest):
        dest.mkdir(parents=True, exist_ok=True)
    claim(dest)
    for folder in (dest, *(path for path in dest.rglob("*") if path.is_dir())):
        sweep_temporaries(folder)
    when_interrupted(f"{dest} keeps the cases that are prepared; the same command goes on from there.")
    made = 0
    for case in followed(plan.cases, "preparing cases"):
        fingerprint = text_hash(case.recipe + "".join(source.sha256() for source in case.sources))
        if not journal.is_done(case, fingerprint):
            journal.write(case, fingerprint, case.make())
            made += 1
    journal.finish([case.name for case in plan.cases])
    for name, (information, unlisted) in plan.other_lists.items():
        _write_list(dest / name, {**plan.information, **information}, plan, journal, unlisted)
    _write_list(dest / LIST_NAME, plan.information, plan, journal)
    return _report(plan, journal, made)


def _refuse_clashes(plan: Preparation) -> None:
    if not any(case.section == "training" for case in plan.cases):
        problem = f"the source holds no training images of {plan.information['name']}, and a data list needs some"
        raise UserError(f"{problem}: put all parts of the release into one folder.")
    first: dict[str, SourceCase] = {}
    for case in plan.cases:
        other = first.setdefault(case.name.lower(), case)
        if other is not case:
            problem = f"{case.sources[0].shown} and {other.sources[0].shown} would both become images/{case.name}.png"
            raise UserError(f"{problem} where letter case does not count: rename one.")


def _refuse_added_labels(path: Path) -> None:
    # As text, for a damaged list is no reason to stop: it is written anew.
    if path.is_file() and f'"{HISTORY}": ' in path.read_text(encoding="utf-8", errors="replace"):
        problem = f"{path} has labels that add-labels put there, and preparing anew would drop them from the list"
        raise UserError(f"{problem}: prepare into another folder, or move the list away first.")


def _write_list(
    path: Path, information: Mapping[str, Any], plan: Preparation, journal: Journal, unlisted: str | None = None
) -> None:
    """Write a data list; ``unlisted`` is the section of cases that have none."""
    sections: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case in plan.cases:
        section = case.section or unlisted
        if section is not None:
            record = journal.records[case.name]
            sections[section].append({**record["files"], **case.columns, **record["columns"]})
    content = {**information, **{section: sections[section] for section in SECTIONS if section in sections}}
    load_data_list(content)  # what we write must be readable
    write_if_changed(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _report(plan: Preparation, journal: Journal, made: int) -> str:
    """Return the table, the classes and the notes."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in plan.cases:
        groups[case.row or case.section or ""].append(journal.records[case.name]["facts"])
    every = [facts for group in groups.values() for facts in group]
    if len(groups) > 1:
        groups["all"] = every
    table = pd.DataFrame([_row(name, group) for name, group in groups.items()]).dropna(axis="columns", how="all")
    if "objects" in table:
        table["objects"] = ["-" if pd.isna(number) else str(int(number)) for number in table["objects"]]
    lines = [f"{plan.information['name']}: {made} prepared, {len(plan.cases) - made} kept from before", ""]
    lines += [line.rstrip() for line in table.to_string(index=False, na_rep="-").splitlines()]
    pixels = _pixels(every)
    if pixels:
        classes = plan.information.get("labels", {}).items()
        shares = (
            f"{number} {name} {pixels[str(number)] / pixels.total():.1%}"
            for name, number in classes
            if number != IGNORE
        )
        lines += ["", "classes: " + ", ".join(shares)]
    outlined = [facts for facts in every if "regions" in facts]
    if outlined:
        regions, objects = (sum(facts[key] for facts in outlined) for key in ("regions", "objects"))
        lines.append(f"outlines: {regions} regions in {len(outlined)} files became {objects} objects")
    notes = [*plan.notices, *(note for case in plan.cases for note in journal.records[case.name]["notes"])]
    if notes:
        lines += ["", "notes:", *(f"- {note}" for note in notes[:_MAX_NOTES])]
    if len(notes) > _MAX_NOTES:
        lines.append(f"- and {len(notes) - _MAX_NOTES} more, in prepared.jsonl")
    return "\n".join([*lines, "", f"data list: {journal.dest / LIST_NAME}"])


def _row(name: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pixels = _pixels(group)
    objects = [facts["objects"] for facts in group if facts.get("objects") is not None]
    (commonest, number), *others = Counter(size_text(facts["shape"]) for facts in group).most_common()
    return {
        "split": name,
        "images": len(group),
        "labels": sum("pixels" in facts for facts in group),
        "objects": sum(objects) if objects else None,
        "size": commonest + (f", {len(group) - number} in {len(others)} others" if others else ""),
        "foreground": f"{1 - pixels['0'] / pixels.total():.1%}" if pixels else None,
    }


def _pixels(group: Iterable[Mapping[str, Any]]) -> Counter[str]:
    return sum((Counter(facts.get("pixels", {})) for facts in group), Counter[str]())
