"""Volumes: NIfTI, NRRD and MetaImage files with label volumes beside them, and DICOM series."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.data.files.dicom import order_slices, read_header, read_series, read_tag
from medmdm.data.files.formats import (
    DICOM_SUFFIXES,
    NIFTI_SUFFIXES,
    VOLUME_SUFFIXES,
    begins_as_dicom,
    may_be_dicom,
    volume_stem,
)
from medmdm.data.files.volumes import read_volume
from medmdm.data.folders import is_mask
from medmdm.data.splits import split_by_patient
from medmdm.data.validity import ImageGrid, check_same_grid, label_numbers
from medmdm.data.writers import encode_nifti
from medmdm.errors import UserError
from medmdm.prepare.preparation import Made, Preparation, SourceCase
from medmdm.prepare.publisher_list import read_published
from medmdm.prepare.release import Release, SourceFile
from medmdm.progress import followed

_LABEL_ENDING = re.compile(r"[_\-. ](?:labels?|seg|segmentations?|masks?|gt|anno(?:tation)?)$", re.IGNORECASE)
_LABEL_BEGINNING = re.compile(r"^(?:labels?|seg|segmentations?|masks?)[_\-. ]", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net: case_0000, case_0001 are sequences of one patient
_BIDS_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+")
_MOST_CLASSES = 256
_TEST_FOLDERS = {"imagests", "test", "testing"}


def plan(release: Release, subject: str | None = None, test: float = 0.2, seed: int = 0) -> Preparation:
    """Plan volumes: NIfTI files as they are, other formats and DICOM series as NIfTI without patient data.

    Labels are found by name: the same name in a folder of labels (``labels``, ``labelsTr``), or ``case_seg.nii.gz``
    beside ``case.nii.gz``. ``dataset.json`` in the source, as the Medical Decathlon has it, gives split and classes;
    else whole patients are drawn for the test part by seed.

    Args:
        release: the volumes.
        subject: regular expression that finds the patient in the path of a file, by its first group if it has one;
            ``None``: a folder ``sub-…`` (BIDS), else the volume's own name.
        test: share of the volumes for the test part where no split is published; 0 for none.
        seed: of that split.

    Raises:
        UserError: one sentence about the file that is in the way.
    """
    try:
        pattern = None if subject is None else re.compile(subject)
    except re.error as error:
        problem = f"--subject {subject!r} is no regular expression ({error})"
        raise UserError(f"{problem}: give one such as 'patient[0-9]+'.") from error
    files = [file for file in release.files if file.path.name.lower().endswith(VOLUME_SUFFIXES)]
    labels = [file for file in files if is_mask(file.path)]
    by_name = _by_name(labels)
    images = _by_case([file for file in files if not is_mask(file.path)])
    published, sections, notices = read_published(release)
    notices = [*release.notices, *notices]
    cases: list[SourceCase] = []
    used: set[SourceFile] = set()
    alike = Counter(stem.lower() for _, stem in images)
    for (folder, stem), sequences in images.items():
        name = stem if alike[stem.lower()] == 1 else "_".join((*folder.parts, stem))
        path, label = sequences[0].path, _label_of(stem, sequences[0], by_name)
        used.update(label)
        for_test = any(part.lower() in _TEST_FOLDERS for part in folder.parts)
        section = sections.get(path) or ("test" if for_test else "training")
        columns = {"patient_id": _subject(path, stem, pattern)}
        make = partial(_make_volume, name, sequences, label)
        cases.append(SourceCase(name, section, (*sequences, *label), make, columns=columns))
    cases += _dicom_cases(release, notices)
    if not cases:
        raise UserError(
            f"{release.source} holds no volume: it was searched for {', '.join(VOLUME_SUFFIXES)} and DICOM files"
            + (f" ({notices[-1]})." if notices else ".")
        )
    unused = [file for file in labels if file not in used]
    if unused:
        notices.append(f"{len(unused)} label files belong to no volume and are left out (first: {unused[0].path})")
    information = {"name": None, **published}
    information["name"] = information["name"] or re.sub(r"\.zip$", "", release.name, flags=re.IGNORECASE)
    classes = information.get("labels") or _labels_in([file for file in labels if file in used])
    information |= {"labels": classes} if classes else {}
    information["label_type"] = "classes"
    if {*sections.values()} - {"training"} or any(case.section == "test" for case in cases):
        information["split"] = "official"
    else:
        cases, information["split"], sentence = _split(cases, test, seed)
        notices.append(sentence)
    return Preparation(information, tuple(cases), tuple(notices))


def _by_case(files: Sequence[SourceFile]) -> dict[tuple[PurePosixPath, str], list[SourceFile]]:
    """Group the sequences of a case; most have one."""
    cases: dict[tuple[PurePosixPath, str], list[SourceFile]] = defaultdict(list)
    in_folder = Counter(file.path.parent for file in files if _CHANNEL.search(volume_stem(file.path)))
    for file in files:
        stem = volume_stem(file.path)
        # "x_0000" names a sequence only where all files of the folder are named so, else it may be a number.
        channels = in_folder[file.path.parent] == sum(other.path.parent == file.path.parent for other in files)
        cases[file.path.parent, _CHANNEL.sub("", stem) if channels else stem].append(file)
    return cases


def _by_name(labels: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Return label files by each name that their image may have."""
    found: dict[str, list[SourceFile]] = defaultdict(list)
    for file in labels:
        stem = volume_stem(file.path)
        for name in {stem, _LABEL_ENDING.sub("", stem), _LABEL_BEGINNING.sub("", stem)}:
            found[name].append(file)
    return found


def _label_of(stem: str, image: SourceFile, labels: dict[str, list[SourceFile]]) -> list[SourceFile]:
    """Return the label of that name nearest to the image, by the folders that they share; an empty list without one."""
    by_depth: dict[int, list[SourceFile]] = defaultdict(list)
    for file in labels.get(stem, []):
        by_depth[len({*file.path.parents} & {*image.path.parents})].append(file)
    best = by_depth[max(by_depth, default=0)]
    if len(best) > 1:
        raise UserError(f"{best[0].shown} and {best[1].shown} could both label {image.shown}: keep one.")
    return best


def _subject(path: PurePosixPath, stem: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is not None:
        found = pattern.search(path.as_posix())
        if found is None:
            raise UserError(f"--subject {pattern.pattern!r} finds nothing in {path}: give one that fits every file.")
        return found.group(1) if pattern.groups else found.group(0)
    found = next(filter(None, map(_BIDS_SUBJECT.match, (*path.parent.parts, stem))), None)
    return stem if found is None else found.group(0)


def _make_volume(name: str, sequences: Sequence[SourceFile], labels: Sequence[SourceFile]) -> Made:
    notes = []
    with ExitStack() as stack:
        paths = [stack.enter_context(file.local()) for file in sequences]
        volume = read_volume([str(path) for path in paths]) if len(paths) > 1 else read_volume(paths[0])
        if len(paths) == 1 and paths[0].name.lower().endswith(NIFTI_SUFFIXES):
            suffix = ".nii.gz" if paths[0].name.lower().endswith(".gz") else ".nii"
            content = paths[0].read_bytes()
            if len(getattr(nib.load(paths[0]).header, "extensions", ())):
                sentence = "its NIfTI header has extensions, which may name the patient; they are kept as they are"
                notes.append(f"{name}: {sentence}")
        else:
            array = volume.array[0] if len(volume.array) == 1 else volume.array
            suffix, content = ".nii.gz", encode_nifti(array, volume.affine)
    files = {"image": (f"images/{name}{suffix}", content)}
    facts: dict[str, Any] = {"shape": list(volume.array.shape[1:])}
    for label in labels:
        numbers, grid = _read_label(label)
        check_same_grid(grid, volume.grid, label.shown, f"its image {sequences[0].shown}")
        files["label"] = (f"labels/{name}.nii.gz", encode_nifti(numbers, volume.affine))
        values, counts = np.unique(numbers, return_counts=True)
        facts["pixels"] = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    return Made(files, facts, notes=tuple(notes))


def _read_label(file: SourceFile) -> tuple[np.ndarray, ImageGrid]:
    with file.local() as path:
        label = read_volume(path)
    numbers = label_numbers(label.array, file.shown, MAX_INSTANCES)[0]
    return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16), label.grid


def _labels_in(files: Sequence[SourceFile]) -> dict[str, int]:
    """Return names for the class numbers that occur where no list says what they mean."""
    found: set[int] = set()
    for file in followed(files, "reading labels"):
        found.update(np.unique(_read_label(file)[0]).tolist())
        if len(found) > _MOST_CLASSES:
            raise UserError(f"{file.shown} and the labels before it hold more than {_MOST_CLASSES} class numbers.")
    return {"background" if number == 0 else f"class {number}": number for number in sorted(found)}


def _split(cases: list[SourceCase], test: float, seed: int) -> tuple[list[SourceCase], str, str]:
    """Return the cases with their sections, what the data list says of them, and a sentence."""
    patients = {case.columns["patient_id"] for case in cases}
    if test == 0 or len(patients) < 2:
        return cases, "none", "no split is published and none was made: all volumes are for training"
    entries = [{"image": case.name, **case.columns} for case in cases]
    _, held_out = split_by_patient(entries, test, seed=seed)
    chosen = {entry["image"] for entry in held_out}
    divided = [dataclasses.replace(case, section="test" if case.name in chosen else "training") for case in cases]
    sentence = f"{len(chosen)} of {len(cases)} volumes are for test, whole patients (seed {seed})"
    return divided, f"by patient, seed {seed}", f"no split is published: {sentence}"


def _dicom_cases(release: Release, notices: list[str]) -> list[SourceCase]:
    """Return a case for each DICOM series; patients and series are numbered, names and ids stay behind."""
    groups: dict[tuple[str, PurePosixPath, str], list[SourceFile]] = defaultdict(list)
    left_out = 0
    for file in release.files:
        if file.path.name.lower().endswith(VOLUME_SUFFIXES) or not _is_dicom(file):
            continue
        with file.local() as path:
            header = read_header(path)
            # Files without a patient id: a study has one patient.
            patient = read_tag(path, "0010|0020") or read_tag(path, "0020|000d")
        if header.localizer or header.frames > 1:
            left_out += 1
        else:
            groups[patient, file.path.parent, header.series_uid].append(file)
    if left_out:
        notices.append(f"{left_out} localisers or multi-frame DICOM files left out")
    patients: dict[str, int] = {}
    number: Counter[str] = Counter()
    cases = []
    for (patient, _, _), members in groups.items():
        subject = f"subject{patients.setdefault(patient, len(patients) + 1):03}"
        number[subject] += 1
        name = f"{subject}_series{number[subject]:02}"
        make = partial(_make_series, name, members)
        cases.append(SourceCase(name, "training", tuple(members), make, columns={"patient_id": subject}))
    return cases


def _is_dicom(file: SourceFile) -> bool:
    if file.suffix in DICOM_SUFFIXES or not may_be_dicom(file.path):
        return file.suffix in DICOM_SUFFIXES
    with file.open() as opened:
        return begins_as_dicom(opened.read(132))


def _make_series(name: str, files: Sequence[SourceFile]) -> Made:
    with ExitStack() as stack:
        headers = [read_header(stack.enter_context(file.local())) for file in files]
        series = order_slices(headers, files[0].shown)
        array = read_series(series)
    channels_first = array if array.ndim == 3 else np.moveaxis(array, 3, 0)
    # Names of folders and files, which may be the patient's, stay behind.
    notes = [f"{name}: {re.sub(r' [(]first: .*?[)]', '', warning.split(': ', 1)[-1])}" for warning in series.warnings]
    content = encode_nifti(channels_first, series.affine)
    return Made({"image": (f"images/{name}.nii.gz", content)}, {"shape": list(array.shape[:3])}, notes=tuple(notes))
