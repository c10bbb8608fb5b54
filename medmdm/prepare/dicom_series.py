"""DICOM series as NIfTI volumes, without what the headers say of the patient."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from medmdm.data.files.dicom import read_header, read_tag
from medmdm.data.files.formats import DICOM_SUFFIXES, VOLUME_SUFFIXES, begins_as_dicom, may_be_dicom
from medmdm.data.files.series import order_slices, read_series
from medmdm.data.writers import encode_nifti
from medmdm.prepare.preparation import Made, SourceCase
from medmdm.prepare.release import Release, SourceFile

__all__ = ["dicom_cases", "unpacked"]


def dicom_cases(release: Release, stack: ExitStack, notices: list[str]) -> list[SourceCase]:
    """Return a case for each DICOM series; patients and series are numbered, names and ids stay behind."""
    groups: dict[tuple[str, PurePosixPath, str], list[tuple[SourceFile, Path]]] = defaultdict(list)
    left_out = 0
    for file in release.files:
        if file.path.name.lower().endswith(VOLUME_SUFFIXES) or not _is_dicom(file):
            continue
        path = unpacked(file, stack)
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


def unpacked(file: SourceFile, stack: ExitStack) -> Path:
    """Return where a file lies until ``stack`` is closed, in a folder of its own if it had to be unpacked."""
    if file.on_disk is not None:
        return file.on_disk
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medmdm-")))
    with file.local() as path:
        return Path(shutil.move(path, folder / path.name))
