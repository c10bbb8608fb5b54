"""Volumes: NIfTI, NRRD and MetaImage files with label volumes beside them, and DICOM series."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.data.files.dicom import order_slices, read_header, read_series, read_tag
from medmdm.data.files.formats import DICOM_SUFFIXES, VOLUME_SUFFIXES, begins_as_dicom, may_be_dicom, volume_stem
from medmdm.data.files.volumes import Volume, read_volume
from medmdm.data.folders import is_mask
from medmdm.data.splits import split_by_patient
from medmdm.data.validity import check_same_grid, label_numbers
from medmdm.data.writers import encode_nifti
from medmdm.errors import UserError
from medmdm.prepare.preparation import Made, Preparation, SourceCase
from medmdm.prepare.publisher_list import read_published
from medmdm.prepare.release import Release, SourceFile, open_release
from medmdm.prepare.writing import carry_out

_LABEL_ENDING = re.compile(r"[_\-. ](?:labels?|seg|segmentations?|masks?|gt|anno(?:tation)?)$", re.IGNORECASE)
_LABEL_BEGINNING = re.compile(r"^(?:labels?|seg|segmentations?|masks?)[_\-. ]", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net: case_0000, case_0001 are sequences of one patient
_BIDS_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+")
_MOST_CLASSES = 256


def prepare(source: Path, dest: Path, subject: str | None = None, test: float = 0.2, seed: int = 0) -> str:
    """Prepare volumes: NIfTI files as they are, other formats and DICOM series as NIfTI without patient data.

    Labels are found by name: the same name in a folder of labels (``labels``, ``labelsTr``), or ``case_seg.nii.gz``
    beside ``case.nii.gz``. ``dataset.json`` in the source, as the Medical Decathlon has it, gives split and classes;
    else whole patients are drawn for the test part by seed.

    Args:
        source: folder or zip file.
        dest: folder to write to.
        subject: regular expression that finds the patient in the path of a file, by its first group if it has one;
            ``None``: a folder ``sub-…`` (BIDS), else the volume's own name.
        test: share of the volumes for the test part where no split is published; 0 for none.
        seed: of that split.

    Raises:
        UserError: one sentence about the file that is in the way.
    """
    with open_release(source) as release, ExitStack() as stack:
        return carry_out(_plan(release, stack, _compiled(subject), test, seed), dest)


def _compiled(subject: str | None) -> re.Pattern[str] | None:
    try:
        return None if subject is None else re.compile(subject)
    except re.error as error:
        raise UserError(
            f"--subject {subject!r} is no regular expression ({error}): give one such as 'patient[0-9]+'."
        ) from error


def _plan(release: Release, stack: ExitStack, subject: re.Pattern[str] | None, test: float, seed: int) -> Preparation:
    files = [file for file in release.files if file.path.name.lower().endswith(VOLUME_SUFFIXES)]
    labels = [file for file in files if is_mask(file.path)]
    by_name = _by_name(labels)
    images = _by_case([file for file in files if not is_mask(file.path)])
    published = read_published(release)
    notices = [*release.notices, *published.notices]
    cases: list[SourceCase] = []
    used = set()
    names = _names({key: sequences[0] for key, sequences in images.items()})
    for key, sequences in images.items():
        label = _label_of(key[1], sequences[0], by_name)
        if label is not None:
            used.add(label)
        columns = {"patient_id": _subject(sequences[0].path, key[1], subject)}
        make = partial(_make_volume, names[key], sequences, label)
        sources = (*sequences, label) if label is not None else tuple(sequences)
        section = published.sections.get(sequences[0].path) or ("test" if _is_test(sequences[0].path) else "training")
        cases.append(SourceCase(names[key], section, sources, make, columns=columns))
    cases += _dicom_cases(release, stack, notices)
    if not cases:
        raise UserError(
            f"{release.source} holds no volume: it was searched for {', '.join(VOLUME_SUFFIXES)} and DICOM files"
            + (f" ({notices[-1]})." if notices else ".")
        )
    unused = [file for file in labels if file not in used]
    if unused:
        notices.append(f"{len(unused)} label files belong to no volume and are left out (first: {unused[0].path})")
    information = {
        "name": published.name or re.sub(r"\.zip$", "", release.name, flags=re.IGNORECASE),
        **published.information,
        "labels": published.labels or _labels_in([file for file in labels if file in used]),
        "label_type": "classes",
    }
    if not information["labels"]:
        del information["labels"]
    if published.has_split or any(case.section == "test" for case in cases):
        information["split"] = "official"
    else:
        cases, information["split"], sentence = _split(cases, test, seed)
        notices.append(sentence)
    return Preparation("volumes", information, tuple(cases), tuple(notices))


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


def _names(files: dict[Any, SourceFile]) -> dict[Any, str]:
    """Return a name for each case: the file's own, or where two share it with the folders before it."""
    count = Counter(key[1].lower() for key in files)
    return {
        key: key[1] if count[key[1].lower()] == 1 else "_".join((*file.path.parent.parts, key[1]))
        for key, file in files.items()
    }


def _by_name(labels: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Return label files by each name that their image may have."""
    found: dict[str, list[SourceFile]] = defaultdict(list)
    for file in labels:
        stem = volume_stem(file.path)
        for name in {stem, _LABEL_ENDING.sub("", stem), _LABEL_BEGINNING.sub("", stem)}:
            found[name].append(file)
    return found


def _label_of(stem: str, image: SourceFile, labels: dict[str, list[SourceFile]]) -> SourceFile | None:
    """Return the label of that name nearest to the image, by the folders that they share."""
    candidates = labels.get(stem, [])
    shared = [_shared_folders(file.path, image.path) for file in candidates]
    best = [file for file, depth in zip(candidates, shared, strict=True) if depth == max(shared)]
    if len(best) > 1:
        raise UserError(f"{best[0].shown} and {best[1].shown} could both label {image.shown}: keep one.")
    return best[0] if best else None


def _shared_folders(a: PurePosixPath, b: PurePosixPath) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a.parts[:-1], b.parts[:-1], strict=False)))


def _subject(path: PurePosixPath, stem: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is not None:
        found = pattern.search(path.as_posix())
        if found is None:
            raise UserError(f"--subject {pattern.pattern!r} finds nothing in {path}: give one that fits every file.")
        return found.group(1) if pattern.groups else found.group(0)
    for part in (*path.parts[:-1], stem):
        bids = _BIDS_SUBJECT.match(part)
        if bids:
            return bids.group(0)
    return stem


def _is_test(path: PurePosixPath) -> bool:
    return any(part.lower() in ("imagests", "test", "testing") for part in path.parent.parts)


def _make_volume(name: str, sequences: Sequence[SourceFile], label: SourceFile | None) -> Made:
    with ExitStack() as stack:
        paths = [_unpacked(file, stack) for file in sequences]
        volume = read_volume([str(path) for path in paths]) if len(paths) > 1 else read_volume(paths[0])
        if len(paths) == 1 and paths[0].name.lower().endswith((".nii", ".nii.gz")):
            suffix = ".nii.gz" if paths[0].name.lower().endswith(".gz") else ".nii"
            content = paths[0].read_bytes()
            notes = _header_notes(name, paths[0])
        else:
            suffix, content, notes = ".nii.gz", encode_nifti(_squeezed(volume.array), volume.affine), []
    files = {"image": (f"images/{name}{suffix}", content)}
    facts: dict[str, Any] = {"shape": list(volume.array.shape[1:])}
    if label is not None:
        array = _read_label(label, volume, sequences[0])
        files["label"] = (f"labels/{name}.nii.gz", encode_nifti(array, volume.affine))
        values, counts = np.unique(array, return_counts=True)
        facts["pixels"] = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    return Made(files, facts, notes=tuple(notes))


def _squeezed(array: np.ndarray) -> np.ndarray:
    return array[0] if len(array) == 1 else array


def _header_notes(name: str, path: Path) -> list[str]:
    header = nib.load(path).header
    if len(getattr(header, "extensions", ())):
        return [f"{name}: its NIfTI header has extensions, which may name the patient; they are kept as they are"]
    return []


def _read_label(file: SourceFile, volume: Volume, image: SourceFile) -> np.ndarray:
    with file.local() as path:
        label = read_volume(path)
    check_same_grid(label.grid, volume.grid, file.shown, f"its image {image.shown}")
    return _numbers(label, file)


def _numbers(label: Volume, file: SourceFile) -> np.ndarray:
    numbers = label_numbers(label.array, file.shown, MAX_INSTANCES)[0]
    return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)


def _labels_in(files: Sequence[SourceFile]) -> dict[str, int]:
    """Return names for the class numbers that occur where no list says what they mean."""
    found: set[int] = set()
    for file in tqdm(files, desc="reading labels", unit="case", disable=None, leave=False):
        with file.local() as path:
            found |= set(np.unique(_numbers(read_volume(path), file)).tolist())
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
    sentence = (
        f"no split is published: {len(chosen)} of {len(cases)} volumes are for test, whole patients (seed {seed})"
    )
    return divided, f"by patient, seed {seed}", sentence


def _dicom_cases(release: Release, stack: ExitStack, notices: list[str]) -> list[SourceCase]:
    """Return a case for each DICOM series; patients and series are numbered, names and ids stay behind."""
    groups: dict[tuple[str, PurePosixPath, str], list[tuple[SourceFile, Path]]] = defaultdict(list)
    left_out = 0
    for file in release.files:
        if file.path.name.lower().endswith(VOLUME_SUFFIXES) or not _is_dicom(file):
            continue
        path = _unpacked(file, stack)
        header = read_header(path)
        if header.localizer or header.frames > 1:
            left_out += 1
            continue
        # Files without a patient id: a study has one patient.
        patient = read_tag(path, "0010|0020") or read_tag(path, "0020|000d")
        groups[patient, file.path.parent, header.series_uid].append((file, path))
    if left_out:
        notices.append(f"{left_out} localisers or multi-frame DICOM files left out")
    patients = {key: i + 1 for i, key in enumerate(dict.fromkeys(patient for patient, _, _ in groups))}
    number: Counter[str] = Counter()
    cases = []
    for (patient, _, _), members in groups.items():
        subject = f"subject{patients[patient]:03}"
        number[subject] += 1
        name = f"{subject}_series{number[subject]:02}"
        sources = tuple(file for file, _ in members)
        make = partial(_make_series, name, [path for _, path in members], members[0][0])
        cases.append(SourceCase(name, "training", sources, make, columns={"patient_id": subject}))
    return cases


def _is_dicom(file: SourceFile) -> bool:
    if file.suffix in DICOM_SUFFIXES or not may_be_dicom(file.path):
        return file.suffix in DICOM_SUFFIXES
    with file.open() as opened:
        return begins_as_dicom(opened.read(132))


def _make_series(name: str, paths: Sequence[Path], first: SourceFile) -> Made:
    series = order_slices([read_header(path) for path in paths], first.shown)
    array = read_series(series)
    channels_first = array if array.ndim == 3 else np.moveaxis(array, 3, 0)
    # Names of folders and files, which may be the patient's, stay behind.
    notes = [f"{name}: {re.sub(r' [(]first: .*?[)]', '', warning.split(': ', 1)[-1])}" for warning in series.warnings]
    content = encode_nifti(channels_first, series.affine)
    return Made({"image": (f"images/{name}.nii.gz", content)}, {"shape": list(array.shape[:3])}, notes=tuple(notes))


def _unpacked(file: SourceFile, stack: ExitStack) -> Path:
    """Return where a file lies until ``stack`` is closed, in a folder of its own if it had to be unpacked."""
    if file.on_disk is not None:
        return file.on_disk
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medmdm-")))
    with file.local() as path:
        return Path(shutil.move(path, folder / path.name))
