"""Dividing cases and data lists: patients stay whole, the seed decides, the order of the input never matters."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np

from medmdm.data.lists import SECTIONS, DataList, image_name, image_names
from medmdm.data.patients import find_subject, subject_pattern, suspected_patients
from medmdm.errors import UserError, counted, nearest
from medmdm.patients import patient_id

PAPERS = ("glas", "monuseg")
SUBSET_RULES = ("paper", "seeded")
_MOST_GROUPS_TO_SWAP = 300

Entry = dict[str, Any]
Sections = dict[str, list[Entry]]


def split_by_patient(
    entries: Sequence[Mapping[str, Any]], test: float = 0.2, stratify: str | None = None, seed: int = 0
) -> tuple[list[Entry], list[Entry]]:
    """Divide cases into a training and a test part that share no patient.

    Args:
        entries: of a data list; those without ``patient_id`` count as one patient per image.
        test: share of the cases for the test part, between 0 and 1; whole patients come as near as they can.
        stratify: column of the entries whose values shall have that share each (such as ``"grade"``).
        seed: whole number ≥ 0; seeds differ in their divisions as far as the patients leave a choice.

    Returns:
        (training, test), each in string order of the images.

    Raises:
        UserError: fewer than two patients, a share outside (0, 1), or an entry without the column.
    """
    if not 0 < test < 1:
        raise UserError(f"test is {test}: give a share between 0 and 1, such as 0.2.")
    return tuple(_divide(entries, (1 - test, test), stratify, seed))  # type: ignore[return-value]


def k_folds(
    entries: Sequence[Mapping[str, Any]], folds: int = 5, stratify: str | None = None, seed: int = 0
) -> list[list[Entry]]:
    """Divide cases into parts of about equal size that share no patient.

    Args:
        entries: of a data list; those without ``patient_id`` count as one patient per image.
        folds: number of parts, at least 2.
        stratify: column of the entries whose values shall be spread evenly.
        seed: whole number ≥ 0; seeds differ in their divisions as far as the patients leave a choice.

    Returns:
        The parts; fold ``k`` validates on part ``k`` and trains on the others.

    Raises:
        UserError: fewer patients than folds, or an entry without the column.
    """
    if folds < 2:
        raise UserError(f"folds is {folds}: give 2 or more.")
    return _divide(entries, (1 / folds,) * folds, stratify, seed)


def subset(entries: Sequence[Mapping[str, Any]], n: int, rule: str = "paper", seed: int = 0) -> list[Entry]:
    """Draw ``n`` cases for few-shot training.

    - ``"paper"``: the first ``n`` in string order of the file names ("train_1, train_10, train_11, …"), which is the
      one draw that Pan et al. report.
    - ``"seeded"``: a random draw by ``seed``. Draws of one seed are nested: 4 of them are among 8.

    Args:
        entries: of a data list, in any order.
        n: how many.
        rule: ``"paper"`` or ``"seeded"``.
        seed: whole number ≥ 0, for ``"seeded"``.

    Returns:
        The cases, in string order of the images.

    Raises:
        UserError: more cases than there are, or an unknown rule.
    """
    if rule not in SUBSET_RULES:
        raise UserError(f"the subset rule {rule!r} is unknown{nearest(rule, SUBSET_RULES)}: use paper or seeded.")
    _check_seed(seed)
    if not isinstance(n, Integral) or not 1 <= n <= len(entries):
        raise UserError(f"a subset of {n} cases was asked for, but there are {len(entries)}: give 1 to {len(entries)}.")
    ordered = sorted((dict(entry) for entry in entries), key=_identity)
    if rule == "seeded":
        ordered.sort(key=lambda entry: _shuffled(_identity(entry), seed))
    return sorted(ordered[:n], key=_identity)


def default_rule(name: str | None) -> str:
    """Return the rule of a data list by its name: ``"paper"`` for the paper's two sets, ``"seeded"`` for all others."""
    return "paper" if name in PAPERS else "seeded"


def patient_groups(entries: Sequence[Mapping[str, Any]]) -> list[list[Entry]]:
    """Group cases that must stay together.

    Cases of one patient do. So do the cases without ``patient_id`` of one image (its regions), together with the
    patients who are known to be on that image. Groups, and the cases of each, are in string order of the images.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def own(entry: Mapping[str, Any]) -> tuple[str, str]:
        patient = patient_id(entry.get("patient_id"))
        return ("image", image_name(entry)) if patient is None else ("patient", patient)

    without = {image_name(entry) for entry in entries if own(entry)[0] == "image"}
    for entry in entries:
        if own(entry)[0] == "patient" and image_name(entry) in without:
            parent[root(own(entry))] = root(("image", image_name(entry)))
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted((dict(entry) for entry in entries), key=_identity):
        groups[root(own(entry))].append(entry)
    return sorted(groups.values(), key=lambda group: _identity(group[0]))


def patient_numbers(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return of each case which of the :func:`patient_groups` it is in."""
    groups = patient_groups([{**entry, "number": number} for number, entry in enumerate(entries)])
    found = {entry["number"]: number for number, group in enumerate(groups) for entry in group}
    return [found[number] for number in range(len(entries))]


def _identity(entry: Mapping[str, Any]) -> str:
    return f"{image_name(entry)}\n{json.dumps(entry.get('region'), sort_keys=True)}"


def _shuffled(identity: str, seed: int) -> bytes:
    # No generator: the order of two cases never depends on which others there are, nor on NumPy's version.
    return hashlib.sha256(f"{seed}\n{identity}".encode()).digest()


def _check_seed(seed: int) -> None:
    if not isinstance(seed, Integral) or seed < 0:
        raise UserError(f"seed is {seed}: give a whole number of 0 or more.")


def _divide(
    entries: Sequence[Mapping[str, Any]], shares: Sequence[float], stratify: str | None, seed: int
) -> list[list[Entry]]:
    _check_seed(seed)
    for entry in entries:
        if stratify is not None and stratify not in entry:
            close = nearest(stratify, entry)
            raise UserError(f"{image_name(entry)} has no {stratify!r} to stratify by{close}: add it to every entry.")
    groups = patient_groups(entries)
    if len(groups) < len(shares):
        raise UserError(
            f"{counted(len(groups), 'patient')} cannot be divided into {len(shares)} parts without one being in two of "
            "them: ask for fewer parts or add patients."
        )
    groups.sort(key=lambda group: _shuffled(_identity(group[0]), seed))
    values = [Counter(json.dumps(entry[stratify]) for entry in group if stratify is not None) for group in groups]
    strata = sorted(set().union(*values))
    # The last column is all cases.
    counts = [[*(own[v] for v in strata), len(group)] for own, group in zip(values, groups, strict=True)]
    parts = _assign(np.array(counts), np.asarray(shares))
    divided: list[list[Entry]] = [[] for _ in shares]
    for group, part in zip(groups, parts, strict=True):
        divided[part].extend(group)
    return [sorted(part, key=_identity) for part in divided]


def _assign(counts: np.ndarray, shares: np.ndarray) -> list[int]:
    """Return the part of each group, ``counts`` being ``[groups, strata + 1]``: greedily, then by moves and swaps.

    What is kept small is the sum, over parts and strata and "all", of the squared distance to the cases it should have.
    """
    missing = np.outer(shares, counts.sum(axis=0))  # [parts, strata + 1]
    parts: list[int] = []
    for number in counts:
        cost = (number * (number - 2 * missing)).sum(axis=1)  # of adding it to each part
        part = int(np.argmin(np.round(cost, 9)))
        missing[part] -= number
        parts.append(part)
    # An empty part takes the group that leaves the others best off.
    for empty in set(range(len(shares))) - set(parts):
        movable = [g for g, part in enumerate(parts) if parts.count(part) > 1]
        best = min(movable, key=lambda g: round(_cost_of_moving(counts[g], missing[parts[g]], missing[empty]), 9))
        _move(best, empty, parts, counts, missing)
    while _improve_by_move(parts, counts, missing) or _improve_by_swap(parts, counts, missing):
        pass  # ends, for the sum falls every time
    return parts


def _improve_by_move(parts: list[int], counts: np.ndarray, missing: np.ndarray) -> bool:
    moved = False
    for g, number in enumerate(counts):
        costs = [_cost_of_moving(number, missing[parts[g]], part) for part in missing]
        costs[parts[g]] = 0.0
        target = int(np.argmin(np.round(costs, 9)))
        if costs[target] < -1e-6 and parts.count(parts[g]) > 1:
            _move(g, target, parts, counts, missing)
            moved = True
    return moved


def _improve_by_swap(parts: list[int], counts: np.ndarray, missing: np.ndarray) -> bool:
    """Exchange the two groups of which that helps most; among very many groups single moves suffice."""
    if len(parts) > _MOST_GROUPS_TO_SWAP:
        return False
    of_group = missing[parts]  # what the part of each group still misses
    more = counts[None] - counts[:, None]  # [g, h]: what the part of g gains
    costs = np.round((2 * more * (more - of_group[:, None] + of_group[None])).sum(axis=2), 9)
    g, h = np.unravel_index(int(np.argmin(costs)), costs.shape)
    if costs[g, h] > -1e-6:
        return False
    part = parts[g]
    _move(int(g), parts[h], parts, counts, missing)
    _move(int(h), part, parts, counts, missing)
    return True


def _cost_of_moving(number: np.ndarray, from_part: np.ndarray, to_part: np.ndarray) -> float:
    return float((number * (2 * number + 2 * from_part - 2 * to_part)).sum())


def _move(group: int, target: int, parts: list[int], counts: np.ndarray, missing: np.ndarray) -> None:
    missing[parts[group]] += counts[group]
    missing[target] -= counts[group]
    parts[group] = target


def split_data_list(
    data_list: DataList,
    test: float | None = None,
    folds: int | None = None,
    stratify: str | None = None,
    n: int | None = None,
    rule: str = "paper",
    seed: int = 0,
    subject: str | None = None,
) -> list[dict[str, Any]]:
    """Make new data lists from one.

    Args:
        data_list: the list; it stays as it is.
        test: pool all its cases and hold out this share as the new test set; ``None`` keeps the list's own.
        folds: divide what trains and validates into this many folds, one list for each; ``None``: one list.
        stratify: column whose values are spread evenly.
        n: number of training cases to keep, ``None``: all.
        rule: how they are chosen; see :func:`medmdm.data.subset`.
        seed: of the division and of ``rule="seeded"``.
        subject: regular expression that finds the patient in the path of an image, for the cases whose patient the list
            does not name; see :func:`medmdm.data.patients.find_subject`. It becomes their ``patient_id``.

    Returns:
        One content of a JSON file, or one per fold. They say that they are divided by patient only where the list names
        patients.

    Raises:
        UserError: nothing was asked for, or it cannot be had.
    """
    if test is None and folds is None and n is None:
        raise UserError("nothing to do: pass --test, --folds or --subset.")
    if stratify is not None and test is None and folds is None:
        raise UserError("--stratify concerns a division: pass --test or --folds with it.")
    information = dict(data_list.information)
    if data_list.unlabeled:
        information["unlabeled"] = list(data_list.unlabeled)
    pattern = subject_pattern(subject)
    sections: Sections = {
        section: [_with_patient(entry, pattern) for entry in getattr(data_list, section)] for section in SECTIONS
    }
    how = f"{divided_by([*chain(*sections.values())])}, seed {seed}" + (
        f", stratified by {stratify}" if stratify else ""
    )
    if test is not None:
        training, held_out = split_by_patient([*chain(*sections.values())], test, stratify, seed)
        sections = {"training": training, "validation": [], "test": held_out}
        information["split"] = f"{test:g} of the cases held out {how}"
    divided = [(information, sections)]
    if folds is not None:
        parts = k_folds([*sections["training"], *sections["validation"]], folds, stratify, seed)
        divided = []
        for k, part in enumerate(parts):
            others = sorted(chain(*(other for other in parts if other is not part)), key=image_name)
            fold = {**information, "fold": f"{k + 1} of {folds} {how}"}
            divided.append((fold, {**sections, "training": others, "validation": part}))
    lists = []
    for information, sections in divided:
        if n is not None:
            drawn = "first in string order (paper)" if rule == "paper" else f"drawn with seed {seed}"
            information["subset"] = f"{n} of {len(sections['training'])} training cases, {drawn}"
            sections["training"] = subset(sections["training"], n, rule, seed)
        kept = {section: entries for section, entries in sections.items() if entries}
        lists.append({"name": data_list.name, **information, **kept})
    return lists


def patients_unknown(data_list: DataList) -> str | None:
    """Return a sentence where a data list names no patients; ``None`` where it names some.

    It says so where the names of images look like ``patient_number``.
    """
    entries = [entry for section in SECTIONS for entry in getattr(data_list, section)]
    if any("patient_id" in entry for entry in entries):
        return None
    suspected = suspected_patients([image_names(entry)[0] for entry in entries])
    return suspected or "no patients are named, so the division is by image: images of one patient may be in two parts"


def _with_patient(entry: Entry, pattern: re.Pattern[str] | None) -> Entry:
    if pattern is None or "patient_id" in entry:
        return entry
    return {**entry, "patient_id": find_subject(image_names(entry)[0], pattern)}


def divided_by(entries: Sequence[Mapping[str, Any]], what: str = "image") -> str:
    """Return what cases are divided by, as far as patients are named: ``"by patient"``, or by ``what`` else."""
    named = sum("patient_id" in entry for entry in entries)
    if named == len(entries):
        return "by patient"
    if not named:
        return f"by {what} (no patients are named)"
    return f"by patient for the {named} of {len(entries)} cases that name one, else by {what}"


def summarise(content: Mapping[str, Any], stratify: str | None = None) -> str:
    """Return one line on the sections of a data list: cases, patients, and how often each value of a column occurs."""
    return "; ".join(f"{section} {_counts(content[section], stratify)}" for section in SECTIONS if content.get(section))


def _counts(entries: Sequence[Mapping[str, Any]], stratify: str | None) -> str:
    text = counted(len(entries), "case")
    if any("patient_id" in entry for entry in entries):
        text += f" of {counted(len(patient_groups(entries)), 'patient')}"
    if stratify is None:
        return text
    values = Counter(str(entry.get(stratify)) for entry in entries)
    return f"{text} ({', '.join(f'{count} {value}' for value, count in sorted(values.items()))})"
