"""New data lists from one: divided by patient, in folds, or with a few training cases only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.data.lists import SECTIONS, DataList, image_name
from medmdm.data.splits import k_folds, patient_groups, split_by_patient, subset
from medmdm.errors import UserError

__all__ = ["split_data_list", "summarise"]

Sections = dict[str, list[dict[str, Any]]]


def split_data_list(
    data_list: DataList,
    test: float | None = None,
    folds: int | None = None,
    stratify: str | None = None,
    n: int | None = None,
    rule: str = "paper",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Make new data lists from one.

    Args:
        data_list: the list; it stays as it is.
        test: pool all its cases and hold out this share as the new test set; ``None`` keeps the list's own.
        folds: divide what trains and validates into this many folds, a list each; ``None``: one list.
        stratify: column whose values are spread evenly.
        n: number of training cases to keep, ``None``: all.
        rule: how they are chosen; see :func:`medmdm.data.subset`.
        seed: of the division and of ``rule="seeded"``.

    Returns:
        One content of a JSON file, or one a fold.

    Raises:
        UserError: nothing was asked for, or it cannot be had.
    """
    if test is None and folds is None and n is None:
        raise UserError("nothing to do: pass --test, --folds or --subset")
    if stratify is not None and test is None and folds is None:
        raise UserError("--stratify concerns a division: pass --test or --folds with it")
    information = dict(data_list.information)
    sections: Sections = {section: list(getattr(data_list, section)) for section in SECTIONS}
    how = f"seed {seed}" + (f", stratified by {stratify}" if stratify else "")
    if test is not None:
        pooled = [entry for section in SECTIONS for entry in sections[section]]
        training, held_out = split_by_patient(pooled, test, stratify, seed)
        sections = {"training": training, "validation": [], "test": held_out}
        information["split"] = f"{test:g} of the cases held out by patient, {how}"
    if folds is None:
        return [_content(data_list.name, information, sections, n, rule, seed)]
    parts = k_folds([*sections["training"], *sections["validation"]], folds, stratify, seed)
    lists = []
    for k, part in enumerate(parts):
        others = [entry for other in parts if other is not part for entry in other]
        own = {**sections, "training": sorted(others, key=image_name), "validation": part}
        fold = {"fold": f"{k + 1} of {folds} by patient, {how}"}
        lists.append(_content(data_list.name, {**information, **fold}, own, n, rule, seed))
    return lists


def _content(
    name: str, information: Mapping[str, Any], sections: Sections, n: int | None, rule: str, seed: int
) -> dict[str, Any]:
    information = dict(information)
    if n is not None:
        total = len(sections["training"])
        sections = {**sections, "training": subset(sections["training"], n, rule, seed)}
        drawn = "first in string order (paper)" if rule == "paper" else f"drawn with seed {seed}"
        information["subset"] = f"{n} of {total} training cases, {drawn}"
    return {"name": name, **information, **{section: entries for section, entries in sections.items() if entries}}


def summarise(content: Mapping[str, Any], stratify: str | None = None) -> str:
    """Return one line on the sections of a data list: cases, patients, and how often each value of a column occurs."""
    return "; ".join(f"{section} {_counts(content[section], stratify)}" for section in SECTIONS if content.get(section))


def _counts(entries: Sequence[Mapping[str, Any]], stratify: str | None) -> str:
    cases = f"{len(entries)} {'case' if len(entries) == 1 else 'cases'}"
    patients = len(patient_groups(entries)) if any("patient_id" in entry for entry in entries) else None
    text = cases if patients is None else f"{cases} of {patients} {'patient' if patients == 1 else 'patients'}"
    if stratify is None:
        return text
    values = Counter(str(entry.get(stratify)) for entry in entries)
    return f"{text} ({', '.join(f'{count} {value}' for value, count in sorted(values.items()))})"
