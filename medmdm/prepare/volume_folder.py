"""Volumes: NIfTI, NRRD and MetaImage files with label volumes beside them, and DICOM series."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.data.files.decoding import decode_label
from medmdm.data.files.dicom import order_slices, read_series
from medmdm.data.files.dicom_header import read_header, read_tag
from medmdm.data.files.formats import (
    DICOM_START,
    DICOM_SUFFIXES,
    NIFTI_SUFFIXES,
    VOLUME_SUFFIXES,
    begins_as_dicom,
    may_be_dicom,
    volume_stem,
    without_pixels,
)
from medmdm.data.files.volumes import Volume, read_volume
from medmdm.data.mask_names import is_mask
from medmdm.data.meaning import Meaning, meaning_of, with_ones
from medmdm.data.patients import subject_pattern, suspected_patients
from medmdm.data.splits import divided_by, patient_groups, split_by_patient
from medmdm.data.validity import ImageGrid, check_same_grid, label_numbers
from medmdm.data.writers import encode_nifti
from medmdm.errors import UserError, counted
from medmdm.labels import IGNORE
from medmdm.prepare.classes import Classes
from medmdm.prepare.preparation import Made, Preparation, SourceCase
from medmdm.prepare.publisher_list import read_published
from medmdm.prepare.release import Release, SourceFile
from medmdm.prepare.volume_pairs import label_names_of, pair_labels, patients
from medmdm.progress import followed

_CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net: case_0000, case_0001 are sequences of one patient
_TEST_FOLDERS = {"imagests", "test", "testing"}
_Series = tuple[str, PurePosixPath, str]  # patient, folder, SeriesInstanceUID


def plan(
    release: Release,
    subject: str | None = None,
    test: float = 0.2,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Preparation:
    """Plan volumes: NIfTI files as they are, other formats and DICOM series as NIfTI without patient data.

    Labels are found by name: the same name in a folder of labels (``labels``, ``labelsTr``), or ``case_seg.nii.gz``
    beside ``case.nii.gz``; else by number or folder, see :func:`medmdm.prepare.volume_pairs.pair_labels`. They may lie
    in another order of axes than their image, and are written on its grid. ``dataset.json`` in the source, as the
    Medical Decathlon has it, gives split and classes; else whole patients are drawn for the test part by seed.

    Args:
        release: the volumes.
        subject: regular expression that finds the patient in the path of a file, by its first group if it has one;
            ``None``: a folder ``sub-…`` (BIDS) or ``case_…``, or the folder where several volumes have one name; of
            others the patient is not known.
        test: share of the volumes for the test part where no split is published; 0 for none.
        seed: of that split.
        classes: names of classes and what becomes them; see :class:`medmdm.prepare.classes.Classes`. Names of the
            source are those of its ``dataset.json``. ``None``: labels keep their numbers.

    Raises:
        UserError: one sentence about the file or option that is in the way.
    """
    pattern, chosen = subject_pattern(subject), None if classes is None else Classes.parse(classes)
    files = [file for file in release.files if file.path.name.lower().endswith(VOLUME_SUFFIXES)]
    published, sections, named, notices = read_published(release)
    listed = {*named.values()}
    labels = {file: None for file in files if is_mask(file.path) or file.path in listed}
    images, said = _by_case([file for file in files if file not in labels], labels, sections)
    notices = [*release.notices, *notices, *said]
    series = _dicom_series(release, notices)
    places = {folder / stem: sequences[0] for (folder, stem), sequences in images.items()}
    folders = {folder: files[0] for (_, folder, _), files in series.items()}
    paired, sentences = pair_labels(list(labels), places | folders, named)
    subjects, from_folders = patients({place: file.path for place, file in places.items()}, pattern)
    notices += [*sentences, *from_folders]
    known = dict(published.get("labels", {}))
    if chosen is not None and not paired:
        raise UserError(f"--classes is given, but no volume of {release.source} has a label: leave it out.")
    if chosen is not None:
        chosen.numbers(known)  # refused before anything is written
    meaning = _meaning_of(list(paired.values())) if chosen is None and not known and paired else Meaning(known)
    notices += meaning.notices
    read = _Labels(chosen, known, meaning.whites)
    cases: list[SourceCase] = []
    alike = Counter(stem.lower() for _, stem in images)
    for ((folder, stem), sequences), patient in zip(images.items(), subjects, strict=True):
        name = stem if alike[stem.lower()] == 1 else "_".join((*folder.parts, stem))
        label = paired.get(folder / stem)
        for_test = any(part.lower() in _TEST_FOLDERS for part in folder.parts)
        section = sections.get(sequences[0].path) or ("test" if for_test else "training")
        make = partial(_make_volume, name, sequences, label, read)
        sources = (*sequences, *([] if label is None else [label]))
        columns = {} if patient is None else {"patient_id": patient}
        cases.append(SourceCase(name, section, sources, make, columns=columns, recipe=read.recipe))
    cases += _dicom_cases(series, paired, read)
    if not cases:
        raise UserError(
            f"{release.source} holds no volume: it was searched for {', '.join(VOLUME_SUFFIXES)} and DICOM files"
            + (f" ({notices[-1]})." if notices else ".")
        )
    information = {"name": None, **published}
    information["name"] = information["name"] or re.sub(r"\.zip$", "", release.name, flags=re.IGNORECASE)
    if paired or known:
        information["labels"] = dict(meaning.classes) if chosen is None else chosen.labels
    information["label_type"] = "classes"
    if {*sections.values()} - {"training"} or any(case.section == "test" for case in cases):
        information["split"] = "official"
    else:
        cases, information["split"], sentence = _split(cases, test, seed)
        notices.append(sentence)
    unnamed = [s[0].path.as_posix() for s, patient in zip(images.values(), subjects, strict=True) if patient is None]
    suspicion = suspected_patients(unnamed)
    return Preparation(information, tuple(cases), (*notices, *([suspicion] if suspicion else [])))


def _by_case(
    files: Sequence[SourceFile], labels: Iterable[SourceFile], listed: Container[PurePosixPath]
) -> tuple[dict[tuple[PurePosixPath, str], list[SourceFile]], list[str]]:
    """Group the sequences of a case, of which most have one; return them and a sentence where there are several.

    ``x_0000`` and ``x_0001`` are sequences of x (nnU-Net) where all files of the folder are named so, each case has the
    same numbers, and none is a case of its own: by the publisher's list, or by a label of its whole name.
    """
    names = {name for file in labels for name in label_names_of(file)}
    by_folder: dict[PurePosixPath, dict[str, SourceFile]] = defaultdict(dict)
    for file in files:
        other = by_folder[file.path.parent].setdefault(volume_stem(file.path), file)
        if other is not file:
            raise UserError(f"{other.shown} and {file.shown} have one name, and only one can be the image: keep one.")
    cases: dict[tuple[PurePosixPath, str], list[SourceFile]] = {}
    several = 0
    for folder, by_stem in by_folder.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for stem in by_stem:
            groups[_CHANNEL.sub("", stem)].append(stem)
        own = any(file.path in listed or stem in names for stem, file in by_stem.items())
        if own or not all(map(_CHANNEL.search, by_stem)):
            groups = {stem: [stem] for stem in by_stem}
        elif any(len(stems) > 1 for stems in groups.values()):
            _check_sequences(folder, groups, names)
            several += len(groups)
        elif len({stems[0][-4:] for stems in groups.values()}) > 1:  # one number each: a_0003, b_0007
            groups = {stem: [stem] for stem in by_stem}
        cases |= {(folder, name): [by_stem[stem] for stem in stems] for name, stems in groups.items()}
    said = f"files whose names end in _0000, _0001 and so on are the sequences of {counted(several, 'volume')}"
    return cases, [said] if several else []


def _check_sequences(folder: PurePosixPath, groups: Mapping[str, Sequence[str]], names: Container[str]) -> None:
    """Refuse what could as well be patients with numbers as the sequences of patients."""
    (first, stems), *others = groups.items()
    numbers = [stem[-4:] for stem in stems]
    for name, its in others:
        if [stem[-4:] for stem in its] != numbers:
            raise UserError(
                f"{folder / first} has the numbers {', '.join(numbers)} and {folder / name} others: sequences of "
                "patients (x_0000, x_0001) must be the same for all, and patients must be named otherwise (x0000)."
            )
    if not others and first not in names and folder.name != first:
        raise UserError(
            f"{folder / stems[0]} to {stems[-1]} may be {len(stems)} patients or as many sequences of one: name "
            f"patients otherwise ({first}{numbers[0]}), or put the sequences of one into a folder {first}."
        )


def _make_volume(name: str, sequences: Sequence[SourceFile], label: SourceFile | None, read: _Labels) -> Made:
    notes, copied = [], None
    with ExitStack() as stack:
        paths = [stack.enter_context(file.local()) for file in sequences]
        volume = read_volume([str(path) for path in paths]) if len(paths) > 1 else read_volume(paths[0])
        if len(paths) == 1 and paths[0].name.lower().endswith(NIFTI_SUFFIXES):
            copied = (".nii.gz" if paths[0].name.lower().endswith(".gz") else ".nii", paths[0].read_bytes())
            if len(getattr(nib.load(paths[0]).header, "extensions", ())):
                sentence = "its NIfTI header has extensions, which may name the patient; they are kept as they are"
                notes.append(f"{name}: {sentence}")
    numbers = None if label is None else read(label, volume.grid, f"its image {sequences[0].shown}")
    return _made(name, volume, numbers, copied, notes)


@dataclass(frozen=True)
class _Labels:
    """How the numbers of labels are read.

    Args:
        classes: as the user has them.
        known: numbers of the source by name.
        whites: numbers that stand for 1.
    """

    classes: Classes | None = None
    known: Mapping[str, int] = field(default_factory=dict)
    whites: tuple[int, ...] = ()

    @property
    def recipe(self) -> str:
        """What the label files depend on besides the sources."""
        chosen = [] if self.classes is None else [dict(self.classes.sources), dict(self.known)]
        return " ".join(map(str, [*chosen, *self.whites]))

    def __call__(self, file: SourceFile, image: ImageGrid | None = None, image_name: str = "") -> np.ndarray:
        """Return the numbers of a label, ``[i, j, k]``, where its image is given on that grid."""
        with file.local() as path:
            label = read_volume(path) if image is None else decode_label(path, image)
        if image is not None:
            check_same_grid(label.grid, image, file.shown, image_name)
        numbers = label_numbers(label.array, file.shown, MAX_INSTANCES)[0]
        if self.classes is not None:
            numbers = self.classes.renumber(numbers, self.known, file.shown)
        numbers = with_ones(numbers, self.whites)
        return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)


def _meaning_of(files: Sequence[SourceFile]) -> Meaning:
    """Find out what the numbers that occur mean, where no list says it."""
    values: dict[str, dict[int, int]] = {}
    for file in followed(files, "reading labels"):
        found, counts = np.unique(_Labels()(file), return_counts=True)
        values[file.shown] = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return meaning_of(values)


def _split(cases: list[SourceCase], test: float, seed: int) -> tuple[list[SourceCase], str, str]:
    """Return the cases with their sections, what the data list says of them, and a sentence."""
    entries = [{"image": case.name, **case.columns} for case in cases]
    if test == 0 or len(patient_groups(entries)) < 2:
        return cases, "none", "no split is published and none was made: all volumes are for training"
    _, held_out = split_by_patient(entries, test, seed=seed)
    chosen = {entry["image"] for entry in held_out}
    divided = [replace(case, section="test" if case.name in chosen else "training") for case in cases]
    how = f"{divided_by(entries, 'volume')}, seed {seed}"
    sentence = f"no split is published: {len(chosen)} of {len(cases)} volumes are for test, {how}"
    if not all(case.columns for case in cases):
        sentence += "; give --subject if a patient has several"
    return divided, how, sentence


def _dicom_series(release: Release, notices: list[str]) -> dict[_Series, list[SourceFile]]:
    """Return the files of each DICOM series."""
    groups: dict[_Series, list[SourceFile]] = defaultdict(list)
    left_out = 0
    empty, without = [], []
    for file in release.files:
        if file.path.name.lower().endswith(VOLUME_SUFFIXES) or not may_be_dicom(file.path):
            continue
        with file.open() as opened:
            start = opened.read(DICOM_START)
        if without_pixels(start):
            without.append(file)
            continue
        if not start and file.suffix in DICOM_SUFFIXES:
            empty.append(file)
        if not start or not (file.suffix in DICOM_SUFFIXES or begins_as_dicom(start)):
            continue
        with file.local() as path:
            header = read_header(path)
            # Files without a patient id: a study has one patient.
            patient = read_tag(path, "0010|0020") or read_tag(path, "0020|000d")
        if header.localizer or header.frames > 1:
            left_out += 1
        else:
            groups[patient, file.path.parent, header.series_uid].append(file)
    notices += _in_several_folders(groups)
    if left_out:
        notices.append(f"{left_out} localisers or multi-frame DICOM files left out")
    if without:
        files = f"{counted(len(without), 'DICOM file')} without pixels"
        notices.append(f"{files} left out, such as structures or reports")
    if empty:
        notices.append(f"{counted(len(empty), 'empty DICOM file')} left out, so that slices may be missing")
    return groups


def _in_several_folders(series: Iterable[_Series]) -> Iterator[str]:
    """Yield a sentence for each series whose files lie in several folders."""
    where: dict[str, list[PurePosixPath]] = defaultdict(list)
    for _, folder, uid in series:
        where[uid].append(folder)
    for uid, folders in where.items():
        if len(folders) > 1:
            yield (
                f"series {uid} lies in {len(folders)} folders ({', '.join(map(str, folders[:3]))}), each of which is "
                "taken for a volume of its own: where they are parts of one, put them into one folder"
            )


def _dicom_cases(
    series: Mapping[_Series, Sequence[SourceFile]],
    labels: Mapping[PurePosixPath, SourceFile],
    read: _Labels,
) -> list[SourceCase]:
    """Return a case for each DICOM series; patients and series are numbered, names and ids stay behind."""
    patients: dict[str, int] = {}
    number: Counter[str] = Counter()
    in_folder = Counter(folder for _, folder, _ in series)
    cases = []
    for (patient, folder, _), members in series.items():
        subject = f"subject{patients.setdefault(patient, len(patients) + 1):03}"
        number[subject] += 1
        name = f"{subject}_series{number[subject]:02}"
        label = labels.get(folder)
        if label is not None and in_folder[folder] > 1:
            several = f"any of the {in_folder[folder]} series in {folder}"
            raise UserError(f"{label.shown} could label {several}: give each series a folder of its own.")
        make = partial(_make_series, name, members, label, read)
        sources = (*members, *([] if label is None else [label]))
        cases.append(SourceCase(name, "training", sources, make, columns={"patient_id": subject}, recipe=read.recipe))
    return cases


def _make_series(name: str, files: Sequence[SourceFile], label: SourceFile | None, read: _Labels) -> Made:
    with ExitStack() as stack:
        headers = [read_header(stack.enter_context(file.local())) for file in files]
        series = order_slices(headers, files[0].shown)
        array = read_series(series)
    channels_first = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    # Names of folders and files, which may be the patient's, stay behind.
    notes = [f"{name}: {re.sub(r' [(]first: .*[)]', '', warning.split(': ', 1)[-1])}" for warning in series.warnings]
    volume = Volume(channels_first, series.affine)
    numbers = None if label is None else read(label, volume.grid, f"its image {files[0].shown}")
    return _made(name, volume, numbers, None, notes)


def _made(
    name: str, volume: Volume, numbers: np.ndarray | None, copied: tuple[str, bytes] | None, notes: list[str]
) -> Made:
    """Return the files of a case: the image as it was ``copied`` (suffix, bytes) or as NIfTI, and its label."""
    array = volume.array[0] if len(volume.array) == 1 else volume.array
    suffix, content = copied or (".nii.gz", encode_nifti(array, volume.affine))
    files = {"image": (f"images/{name}{suffix}", content)}
    facts: dict[str, Any] = {"shape": list(volume.array.shape[1:])}
    if numbers is not None:
        files["label"] = (f"labels/{name}.nii.gz", encode_nifti(numbers, volume.affine))
        values, counts = np.unique(numbers, return_counts=True)
        pixels = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
        facts["pixels"] = {value: count for value, count in pixels.items() if value != str(IGNORE)}
    return Made(files, facts, notes=tuple(notes))
