"""What cases have in common and should not: pixels, patients, names.

:func:`quick_check` is the part that is cheap enough for every start of a training.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from medmdm.check.findings import Finding
from medmdm.check.inspection import Facts, ListedCase
from medmdm.data.files.formats import volume_stem
from medmdm.data.lists import IMAGE_SECTIONS, DataList, image_name, image_names, regions_overlap
from medmdm.data.patients import suspected_patients
from medmdm.data.selection import Selection
from medmdm.errors import UserError

_NAMED = 4  # patients described one by one
_SAMPLE = 4096  # bytes in the middle of a file that tell most files of one size apart
_T = TypeVar("_T")


def identical_images(inspected: Sequence[Facts]) -> Iterator[Finding]:
    """Find cases with the same pixels: errors between sections, warnings within one.

    Parts of one image that do not overlap are different cases.
    """
    known = [facts for facts in inspected if facts.whole_hash is not None]
    pairs: dict[tuple[int, int], tuple[ListedCase, ListedCase]] = {}
    for key, parts in (("whole_hash", True), ("case_hash", False)):
        for group in _groups(known, attrgetter(key)):
            for case, other in _first_in_sections([facts.case for facts in group], parts):
                pairs.setdefault((id(case), id(other)), (case, other))
    for case, other in pairs.values():
        names = (other.name, case.name)
        if case.section == other.section:
            sentence = f"{case.name} and {other.name}, both in {case.section}, hold the same pixels: remove one"
            yield Finding.warning("duplicate-image", sentence, *names)
        else:
            same = f"{other.name} in {other.section} and {case.name} in {case.section} hold the same pixels"
            advice = "remove one, for a score on an image that was trained on says nothing"
            if {case.section, other.section} == {"training", "unlabeled"}:
                advice = "remove the one in unlabeled, for it is labelled"
            yield Finding.error("image-in-two-sections", f"{same}: {advice}", *names)


def _first_in_sections(group: Sequence[ListedCase], parts: bool) -> Iterator[tuple[ListedCase, ListedCase]]:
    """Pair each case with the first like it in each section, so that a thousand copies are a thousand pairs."""
    for i, case in enumerate(group):
        met: set[str] = set()
        for other in group[:i]:
            # Where the whole images have the same pixels, only overlapping parts of them are alike.
            alike = not parts or regions_overlap(case.entry.get("region"), other.entry.get("region"))
            if other.section not in met and alike:
                met.add(other.section)
                yield case, other


def shared_patients(data_list: DataList) -> Iterator[Finding]:
    """Find patients in two sections: a warning for a publisher's split, an error for any other.

    Where the list names none, names that look like ``patient_number`` are a warning. Unlabelled images train too. Of
    the patients in training there may be some, of which a warning says what follows.
    """
    official = data_list.information.get("split") == "official"
    sections = {section: getattr(data_list, section) for section in IMAGE_SECTIONS}
    cases: dict[str, dict[str, list[str]]] = {section: defaultdict(list) for section in IMAGE_SECTIONS}
    number: dict[str, int] = {}  # in the order of the list, stands for a patient: ids identify people
    for section, entries in sections.items():
        for entry in entries:
            if "patient_id" in entry:
                cases[section][entry["patient_id"]].append(image_name(entry))
                number.setdefault(entry["patient_id"], len(number) + 1)
    if not number and not official and sum(map(bool, sections.values())) > 1:
        names = [image_names(entry)[0] for entries in sections.values() for entry in entries]
        suspected = suspected_patients(names)
        if suspected:
            yield Finding.warning("patients-unknown", f"{suspected} (python -m medmdm split)")
    for a, b in combinations(IMAGE_SECTIONS, 2):
        shared = [patient for patient in number if patient in cases[a] and patient in cases[b]]
        if not shared:
            continue
        affected = [name for patient in shared for name in cases[b][patient]]
        described = ", ".join(
            f"patient {number[p]} of {len(number)} ({len(cases[a][p])} + {len(cases[b][p])} cases)"
            for p in shared[:_NAMED]
        )
        more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
        advice = (
            "this is the publisher's split, so scores on it are for new images of known patients: say so, or make a "
            "split by patient (python -m medmdm split)"
            if official
            else 'make a split by patient (python -m medmdm split), or add "split": "official" to the list if it is '
            "the publisher's"
        )
        sentence = f"{len(affected)} of {len(sections[b])} {b} cases are of patients who are also in {a}"
        make = Finding.warning if official else Finding.error
        if b == "unlabeled" and a == "training":
            advice = (
                "scores by cross-validation of a head that learns from unlabelled images are of known patients then"
            )
            yield Finding.warning("patient-labelled-in-part", f"{sentence}: {described}{more}; {advice}", *affected)
            continue
        if b == "unlabeled":
            make, advice = Finding.error, "take them out of 'unlabeled', for what is there trains too"
        yield make("patient-in-two-sections", f"{sentence}: {described}{more}; {advice}", *affected)


def clashing_names(cases: Sequence[ListedCase]) -> Iterator[Finding]:
    """Find file names that would get into each other's way."""
    images = list(dict.fromkeys(case.name for case in cases))
    labels: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if "label" in case.entry:
            labels[str(case.entry["label"])].add(case.name)
    for label, of in labels.items():
        if label in images:
            sentence = f"{label} is listed as an image and as a label: correct the list"
            yield Finding.error("label-is-image", sentence, label)
        elif len(of) > 1:
            names = sorted(of)
            shared = f"{label} is the label of {len(names)} images ({_two(names)})"
            yield Finding.warning("shared-label", f"{shared}: correct the list unless that is meant", label, *names)
    by_case = _groups(dict.fromkeys([*images, *labels]), str.casefold)
    for group in by_case:
        alike = f"{' and '.join(group[:3])} differ in letter case only"
        sentence = f"{alike} and are one file on Windows and macOS: rename one"
        yield Finding.warning("names-differ-in-case", sentence, *group)
    apart = {name for group in by_case for name in group}
    rest = [name for name in images if name not in apart]
    for group in _groups(rest, lambda name: volume_stem(PurePosixPath(name)).casefold()):
        alike = f"{len(group)} images have the file name {PurePosixPath(group[0]).name} up to letter case and suffix"
        sentence = f"{alike} ({_two(group)}): masks named after them would overwrite each other"
        yield Finding.warning("same-file-name", sentence, *group)


def _two(names: Sequence[str]) -> str:
    return f"{names[0]}, {names[1]}{', …' if names[2:] else ''}"


def _groups(things: Iterable[_T], key: Callable[[_T], Hashable]) -> list[list[_T]]:
    """Return the things that share their key with another one."""
    groups: dict[Hashable, list[_T]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return [group for group in groups.values() if len(group) > 1]


def quick_check(selection: Selection) -> list[str]:
    """Compare what trains with what validates and tests, without decoding anything.

    Copies of a file are found under any name; a picture that was saved again in another format is found by
    ``python -m medmdm check`` only.

    Args:
        selection: the images of a pre-training. Where it is transductive, only missing files are looked for.

    Returns:
        Warnings, one sentence each.

    Raises:
        UserError: an image is missing, or one that trains is held out too.
    """
    training, validation, test = map(_files, (selection.training, selection.validation, selection.test))
    for path in (path for paths, _ in (*training, *validation) for path in paths):
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist any more: restore it, or correct the data list.")
    if selection.transductive or selection.data_list is None:
        return []
    if validation or test:
        by_look: dict[tuple[int, bytes], list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
        for paths, region in training:
            by_look[_look(paths[0])].append((paths, region))
        for section, entries in (("validation", validation), ("test", test)):
            for paths, region in entries:
                for others, trained in by_look.get(_look(paths[0]), ()):
                    # One path in two sections: parts of a picture, which the list keeps apart, or slices of a volume.
                    apart = paths == others or not regions_overlap(region, trained) or len(paths) != len(others)
                    if not apart and all(map(_same, paths, others)):
                        raise UserError(
                            f"{paths[0]} is in {section} and a copy of it, {others[0]}, in training: remove one from "
                            "the data list, or pass --transductive true to train on both knowingly."
                        )
    shared = shared_patients(selection.data_list)
    return [finding.message for finding in shared if finding.check == "patient-in-two-sections"]


def _files(entries: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, ...], Any]]:
    """Return the (files, region) that are decoded for some entries: the slices of a volume share one file."""
    found = {f"{e['image']} {e.get('region')}": (tuple(image_names(e)), e.get("region")) for e in entries}
    return list(found.values())


def _look(image: str) -> tuple[int, bytes]:
    """Return the size of a file and a sample of it; ``(-1, path)`` for a folder of DICOM files."""
    path = Path(image)
    if path.is_dir():
        return -1, os.fsencode(path.resolve())
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size // 2 - _SAMPLE // 2))
        return size, file.read(_SAMPLE)


def _same(a: str, b: str) -> bool:
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)
