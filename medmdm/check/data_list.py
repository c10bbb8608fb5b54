"""Checking a whole data list: every case by itself, then all of them together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmdm.check.findings import Finding, Report, Row
from medmdm.check.inspection import Facts, ListedCase, inspect
from medmdm.check.sharing import clashing_names, identical_images, shared_patients
from medmdm.data.folders import FolderImages, find_images, image_files, label_files
from medmdm.data.lists import (
    IMAGE_SECTIONS,
    DataList,
    class_numbers,
    image_name,
    image_names,
    label_names,
    label_type,
    load_data_list,
)
from medmdm.data.meaning import contradiction, look_like_objects
from medmdm.data.threads import decoding_threads
from medmdm.data.transforms.spatial import with_spacing
from medmdm.errors import UserError, counted
from medmdm.files import expanded
from medmdm.labels import IGNORE
from medmdm.progress import followed

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
        progress: log how far it has come.

    Raises:
        UserError: the list itself cannot be used, or the folder is missing.
    """
    loaded = load_data_list(data_list)
    folder = _folder(loaded, dataset_dir)
    try:
        names = label_names(loaded.information)
        classes = frozenset(names) or None
        instances = label_type(loaded.information) == "instances"
        if not instances:
            class_numbers(names)
    except UserError as error:
        raise UserError(f"{loaded.title}: {error}") from error
    cases, findings = _find_files(loaded, folder)
    with decoding_threads(_THREADS) as pool:
        results = pool.imap(lambda case: inspect(case, classes, instances), cases)
        inspected = list(followed(results, "checking cases", len(cases), progress))
    findings += [finding for facts in inspected for finding in facts.findings]
    findings += _wrong_sizes(loaded)
    findings += identical_images(inspected)
    findings += shared_patients(loaded)
    findings += clashing_names(cases)
    findings += _odd_ones_out(inspected, loaded.information.get("channels"))
    findings += _labels_together(inspected, classes, instances)
    rows = tuple(_row(section, inspected) for section in IMAGE_SECTIONS if getattr(loaded, section))
    return Report(loaded.title, str(folder), rows, tuple(findings))


def _folder(data_list: DataList, dataset_dir: str | os.PathLike[str] | None) -> Path:
    if dataset_dir is not None:
        folder = expanded(dataset_dir)
        if not folder.is_dir():
            raise UserError(f"the folder {folder} does not exist: give --dataset_dir the folder of the images.")
        return folder
    if data_list.path is None or data_list.shipped:
        raise UserError(f"{data_list.title} does not say where its images are: pass --dataset_dir.")
    return data_list.path.parent


def _find_files(data_list: DataList, folder: Path) -> tuple[list[ListedCase], list[Finding]]:
    """Find images and labels as training does, and say which are missing."""
    # Files of a list that comes with medmdm may lie anywhere in the folder, in any format.
    present = find_images(folder, may_be_empty=True) if data_list.shipped else FolderImages(folder, (), (), {})
    cases, findings = [], []
    for section in IMAGE_SECTIONS:
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
    elif "\\" in name:
        advice = "write / in place of \\"
    else:
        advice = "correct the list or --dataset_dir"
    return Finding.error("missing-file", f"{name} in {section} does not exist: {advice}", name)


def _wrong_sizes(data_list: DataList) -> Iterator[Finding]:
    """Say which sizes of pixels are no numbers above 0, of the list or of an entry."""
    entries = [entry for section in IMAGE_SECTIONS for entry in getattr(data_list, section)]
    listed = [({"image": data_list.title}, data_list.information), *((entry, {}) for entry in entries)]
    for entry, information in listed:
        try:
            with_spacing(entry, information)
        except UserError as error:
            yield Finding.error("pixel-size", error, *([] if information else [image_name(entry)]))


def _odd_ones_out(inspected: Sequence[Facts], declared: Any) -> Iterator[Finding]:
    """Compare channels, types and dimensions of the images with what most have."""
    known = [(f.case.name, f.spatial_dims, f.kind[0], f.kind[2]) for f in inspected if f.kind is not None]
    if not known:
        return
    _, usual_dims, usual_channels, usual_dtype = (
        Counter(each).most_common(1)[0][0] for each in zip(*known, strict=True)
    )
    if isinstance(declared, dict) and declared:
        usual_channels = len(declared)
    for name, dims, channels, dtype in known:
        if dims != usual_dims:
            differs = f"{name} has {dims} dimensions and most images have {usual_dims}"
            yield Finding.error("dimensions-differ", f"{differs}: list pictures and volumes apart", name)
        elif channels != usual_channels:
            differs = f"{name} has {counted(channels, 'channel')} where {usual_channels} are expected"
            yield Finding.error("channels-differ", f"{differs}: convert it or leave it out", name)
        elif dtype != usual_dtype and dims == 2:
            differs = f"{name} is {dtype} and most images are {usual_dtype}: intensities are scaled by type"
            yield Finding.warning("types-differ", f"{differs}, so make sure that both cover their range", name)


def _labels_together(inspected: Sequence[Facts], classes: frozenset[int] | None, instances: bool) -> Iterator[Finding]:
    """Judge what only all labels together show."""
    labelled = [facts for facts in inspected if facts.pixels or facts.values]
    for facts in labelled:
        if not facts.foreground:
            name = str(facts.case.entry["label"])
            yield Finding.warning("empty-label", f"{name} holds no object: keep it if that is true", name)
    training = [facts.case for facts in inspected if facts.case.section == "training"]
    without = [case.name for case in training if "label" not in case.entry]
    if any("label" in facts.case.entry for facts in inspected) and without:
        sentence = f"{len(without)} of {len(training)} training cases have no label (first: {without[0]})"
        yield Finding.warning("no-label", sentence, *without)
    if not labelled:
        return
    values = {value for facts in labelled for value in facts.values or ()}
    yield from _white_masks(labelled)
    if look_like_objects((facts.values or {}, facts.parts) for facts in labelled if facts.parts is not None):
        sentence = f"the {len(values - {0, IGNORE})} numbers are in one piece in each label, as those of objects are"
        advice = 'if they number objects, write "label_type": "instances" and only "background" and one class'
        yield Finding.warning("objects-as-classes", f"{sentence}: {advice} in 'labels'")
    if not any(facts.foreground for facts in labelled):
        painted = (
            f", and {IGNORE} means pixels to ignore: write 1 where there is an object (python -m medmdm prepare folder "
            "does)"
            if IGNORE in values
            else ": paint the objects with the numbers of their classes"
        )
        yield Finding.error("no-foreground", f"none of the {len(labelled)} labels holds an object{painted}")
    elif instances:
        return
    elif classes is None:
        found = f"(found {', '.join(map(str, sorted(values)[:10]))})"
        sentence = f"the list does not declare 'labels', so values were not checked {found}"
        yield Finding.warning("no-classes", f'{sentence}: add "labels": {{"background": 0, ...}}')
    else:
        trained = {n for facts in labelled if facts.case.section == "training" for n in facts.values or ()}
        never = ", ".join(map(str, sorted(classes - trained - {IGNORE})))
        if trained and never:
            yield Finding.warning("class-not-trained", f"no training label holds the declared class {never}")


def _white_masks(labelled: Sequence[Facts]) -> Iterator[Finding]:
    """Say which labels have a white for class 1."""
    names = {facts.white: str(facts.case.entry["label"]) for facts in reversed(labelled) if facts.white is not None}
    for white, name in sorted(names.items()):
        number = sum(facts.white == white for facts in labelled)
        others = (
            "; others hold 1" if any(facts.white is None and 1 in (facts.values or ()) for facts in labelled) else ""
        )
        sentence = f"{counted(number, 'label')} of {len(labelled)} of 0 and {white} (first: {name}{others})"
        yield Finding.warning("white-labels", f"{sentence}: {white} is read as class 1", name)
    ignoring = (f for f in labelled if f.white is None and {1, IGNORE} <= set(f.values or ()))
    mixed = next((str(facts.case.entry["label"]) for facts in ignoring), None)
    problem = contradiction(names.get(IGNORE), mixed)
    if problem is not None:
        yield Finding.error("white-labels", problem, str(names[IGNORE]), str(mixed))


def _row(section: str, inspected: Sequence[Facts]) -> Row:
    own = [facts for facts in inspected if facts.case.section == section]
    patients = {facts.case.entry["patient_id"] for facts in own if "patient_id" in facts.case.entry}
    pixels = sum(facts.pixels for facts in own)
    values: Counter[int] = Counter()
    for facts in own:
        values.update(facts.values or {})
    objects = [facts.instances for facts in own if facts.instances is not None]
    return Row(
        section=section,
        cases=len(own),
        labels=sum("label" in facts.case.entry for facts in own),
        patients=len(patients) or None,
        images=Counter(facts.kind for facts in own if facts.kind is not None),
        values={value: count / values.total() for value, count in values.items()},
        instances=sum(objects) if objects else None,
        foreground=sum(facts.foreground for facts in own) / pixels if pixels else None,
    )
