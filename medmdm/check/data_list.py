"""Checking a whole data list: every case by itself, then all of them together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medmdm.check.findings import Finding, Report, Row
from medmdm.check.inspection import Facts, ListedCase, inspect
from medmdm.check.sharing import clashing_names, identical_images, shared_patients
from medmdm.data.folders import FolderImages, find_images, image_files, label_files
from medmdm.data.lists import SECTIONS, DataList, image_names, load_data_list
from medmdm.errors import UserError, counted
from medmdm.labels import IGNORE, label_classes, label_type

__all__ = ["check"]

_THREADS = 4  # each holds an image and its label


def check(
    data_list: str | os.PathLike[str] | Mapping[str, Any],
    dataset_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Decode every file of a data list and look for what spoils a training or its test.

    Args:
        data_list: a JSON file, the name of a list that comes with medmdm, or the content as a dictionary.
        dataset_dir: folder of the images; ``None``: the folder of the list.
        progress: show a bar (on a terminal only).

    Raises:
        UserError: the list itself cannot be used, or the folder is missing.
    """
    loaded = load_data_list(data_list)
    folder = _folder(loaded, dataset_dir)
    try:
        classes, instances = label_classes(loaded.information), label_type(loaded.information) == "instances"
    except UserError as error:
        raise UserError(f"{loaded.title}: {error}") from error
    sections = {section: getattr(loaded, section) for section in SECTIONS}
    cases, findings = _find_files(loaded, folder)
    with ThreadPool(min(_THREADS, os.cpu_count() or 1)) as pool:
        results = pool.imap(lambda case: inspect(case, classes, instances), cases)
        facts = list(tqdm(results, total=len(cases), desc="check", unit="case", disable=None if progress else True))
    findings += [finding for fact in facts for finding in fact.findings]
    findings += identical_images(cases, facts)
    findings += shared_patients(sections, loaded.information.get("split") == "official")
    findings += clashing_names(cases)
    findings += _odd_ones_out(cases, facts, loaded.information.get("channels"))
    findings += _labels_together(cases, facts, classes, instances)
    rows = tuple(_row(section, cases, facts) for section in SECTIONS if sections[section])
    return Report(loaded.title, str(folder), rows, tuple(findings))


def _folder(data_list: DataList, dataset_dir: str | os.PathLike[str] | None) -> Path:
    if dataset_dir is not None:
        folder = Path(dataset_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"the folder {folder} does not exist: give --dataset_dir the folder of the images")
        return folder
    if data_list.path is None or data_list.shipped:
        raise UserError(f"{data_list.title} does not say where its images are: pass --dataset_dir")
    return data_list.path.parent


def _find_files(data_list: DataList, folder: Path) -> tuple[list[ListedCase], list[Finding]]:
    """Find images and labels as training does, and say which are missing."""
    # Files of a list that comes with medmdm may lie anywhere in the folder, in any format.
    present = find_images(folder, may_be_empty=True) if data_list.shipped else FolderImages(folder, (), (), {})
    cases, findings = [], []
    for section in SECTIONS:
        files = zip(
            getattr(data_list, section),
            image_files(data_list, section, present),
            label_files(data_list, section, present),
            strict=True,
        )
        for entry, image, label in files:
            lost = [name for name in image_names(entry) if image is None and not (folder / name).exists()]
            if image is None and not lost:
                image = folder / entry["image"]  # a folder without DICOM files, which decoding explains
            lost += [entry["label"]] if "label" in entry and label is None else []
            findings += [_missing(folder / name, name, section) for name in lost]
            cases.append(ListedCase(section, entry, image, label))
    return cases, findings


def _missing(path: Path, name: str, section: str) -> Finding:
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    similar = [sibling for sibling in siblings if sibling.casefold() == path.name.casefold()]
    if os.path.lexists(path):
        advice = "it is a link to nowhere, mend it"
    elif similar:
        advice = f"there is {similar[0]}, correct the letter case"
    else:
        advice = "correct the list or --dataset_dir"
    return Finding("error", "missing-file", f"{name} in {section} does not exist: {advice}", (name,))


def _odd_ones_out(cases: Sequence[ListedCase], facts: Sequence[Facts], channels: Any) -> Iterator[Finding]:
    """Compare channels, types and dimensions of the images with what most have."""
    known = [(case.name, fact) for case, fact in zip(cases, facts, strict=True) if fact.channels is not None]
    if not known:
        return
    usual: dict[str, Any] = {
        key: Counter(getattr(fact, key) for _, fact in known).most_common(1)[0][0]
        for key in ("channels", "spatial_dims", "dtype")
    }
    if isinstance(channels, dict) and channels:
        usual["channels"] = len(channels)
    for name, fact in known:
        if fact.spatial_dims != usual["spatial_dims"]:
            yield Finding(
                "error",
                "dimensions-differ",
                f"{name} has {fact.spatial_dims} dimensions and most images have {usual['spatial_dims']}: list "
                "pictures and volumes apart",
                (name,),
            )
        elif fact.channels != usual["channels"]:
            yield Finding(
                "error",
                "channels-differ",
                f"{name} has {counted(fact.channels or 0, 'channel')} where {usual['channels']} are expected: convert "
                "it or leave it out",
                (name,),
            )
        elif fact.dtype != usual["dtype"] and fact.spatial_dims == 2:
            yield Finding(
                "warning",
                "types-differ",
                f"{name} is {fact.dtype} and most images are {usual['dtype']}: intensities are scaled by type, so make "
                "sure that both cover their range",
                (name,),
            )


def _labels_together(
    cases: Sequence[ListedCase], facts: Sequence[Facts], classes: frozenset[int] | None, instances: bool
) -> Iterator[Finding]:
    """Judge what only all labels together show."""
    labelled = [(case, fact) for case, fact in zip(cases, facts, strict=True) if fact.pixels or fact.values]
    for case, fact in labelled:
        if not fact.foreground:
            name = str(case.entry["label"])
            yield Finding("warning", "empty-label", f"{name} holds no object: keep it if that is true", (name,))
    without = [c.name for c in cases if c.section == "training" and "label" not in c.entry]
    if any("label" in case.entry for case in cases) and without:
        total = sum(case.section == "training" for case in cases)
        yield Finding(
            "warning",
            "no-label",
            f"{len(without)} of {total} training cases have no label (first: {without[0]})",
            tuple(without),
        )
    if not labelled:
        return
    values = {value for _, fact in labelled for value in fact.values or ()}
    if not any(fact.foreground for _, fact in labelled):
        painted = (
            f", and {IGNORE} means pixels to ignore: write 1 where there is an object (python -m medmdm prepare folder "
            "does)"
            if IGNORE in values
            else ": paint the objects with the numbers of their classes"
        )
        yield Finding("error", "no-foreground", f"none of the {len(labelled)} labels holds an object{painted}")
    elif not instances and classes is None:
        shown = ", ".join(map(str, sorted(values)[:10]))
        yield Finding(
            "warning",
            "no-classes",
            f"the list does not declare 'labels', so values were not checked (found {shown}): add "
            '"labels": {"background": 0, ...}',
        )
    elif not instances and classes is not None:
        trained = {value for case, fact in labelled if case.section == "training" for value in fact.values or ()}
        never = sorted(classes - trained) if trained else []
        if never:
            shown = ", ".join(map(str, never))
            yield Finding("warning", "class-not-trained", f"no training label holds the declared class {shown}")


def _row(section: str, cases: Sequence[ListedCase], facts: Sequence[Facts]) -> Row:
    own = [(case, fact) for case, fact in zip(cases, facts, strict=True) if case.section == section]
    patients = {case.entry["patient_id"] for case, _ in own if "patient_id" in case.entry}
    pixels = sum(fact.pixels for _, fact in own)
    values: Counter[int] = Counter()
    for _, fact in own:
        values.update(fact.values or {})
    counted = [fact.instances for _, fact in own if fact.instances is not None]
    return Row(
        section=section,
        cases=len(own),
        labels=sum("label" in case.entry for case, _ in own),
        patients=len(patients) or None,
        images=Counter(fact.kind for _, fact in own if fact.kind is not None),
        values={value: count / values.total() for value, count in values.items()},
        instances=sum(counted) if counted else None,
        foreground=sum(fact.foreground for _, fact in own) / pixels if pixels else None,
    )
