"""DICOM: which files of a folder are the slices of one volume, and their order, place and pixels."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.data.files.dicom_header import DicomSlice, dicom_reader, read_header, read_tag
from medmdm.data.files.formats import is_dicom, may_be_dicom
from medmdm.errors import UserError, counted

_NAMED = 5  # series listed in a message
_BESIDE = 1.0  # pixels by which a slice may lie beside the line of the others
_SAME_PLACE = 1e-3  # mm between slices at one position


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in the order of their position along the normal.

    Args:
        slices: headers in order.
        affine: ``[4, 4]``, (column, row, slice) → mm in RAS.
        warnings: sentences on files left out and on missing slices.
    """

    slices: tuple[DicomSlice, ...]
    affine: np.ndarray
    warnings: tuple[str, ...] = ()


def choose_series(folder: str | os.PathLike[str], series_uid: str | None = None) -> Series:
    """Choose one series of a folder and put its slices in order.

    Localisers by their image type, kinds of DICOM files without an image (RTSTRUCT) and empty files are left out, with
    a warning, before the number of series is counted.

    Args:
        folder: where the files are; what lies deeper does not count.
        series_uid: which one, if there are several.

    Raises:
        UserError: the folder is missing or holds no DICOM file, one is damaged, there are several series and none is
            named (the sentence lists them), there is none of that name, or its slices do not make a volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist: check the path.")
    found, warnings = _series_in(folder)
    if not found:
        beside = f" ({'; '.join(warning.split(': ', 1)[1] for warning in warnings)})" if warnings else ""
        raise UserError(f"{folder} holds no DICOM image{beside}: give the folder that holds the slices of a series.")
    if series_uid is not None:
        if series_uid not in found:
            raise UserError(f"{folder} holds no series {series_uid}: it holds {_listing(found)}.")
        series = order_slices(found[series_uid], folder)
        return dataclasses.replace(series, warnings=(*warnings, *series.warnings))
    proper = {uid: files for uid, files in found.items() if not all(file.localizer for file in files)}
    candidates = proper or found
    if len(candidates) > 1:
        raise UserError(
            f"{folder} holds {len(candidates)} series: choose one by its UID (series_uid in the data list, or a folder "
            f"for each): {_listing(candidates)}."
        )
    series = order_slices(next(iter(candidates.values())), folder)
    left_out = sum(len(files) for uid, files in found.items() if uid not in candidates)
    if left_out:
        warnings.append(f"{folder}: {counted(left_out, 'file')} of localisers left out")
    return dataclasses.replace(series, warnings=(*warnings, *series.warnings))


def _series_in(folder: Path) -> tuple[dict[str, list[DicomSlice]], list[str]]:
    """Return the headers of a folder's images by series, and sentences on what is none."""
    found: dict[str, list[DicomSlice]] = defaultdict(list)
    empty, without = [], []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not may_be_dicom(path):
            continue
        if not path.stat().st_size:
            empty.append(path.name)
        elif is_dicom(path):
            header = read_header(path)
            found[header.series_uid].append(header)
        elif is_dicom(path, pixels=False):
            without.append(path.name)
    warnings = []
    if without:
        files = f"{counted(len(without), 'file')} without pixels"
        warnings.append(f"{folder}: {files} left out, such as structures or reports (first: {without[0]})")
    if empty:
        files = counted(len(empty), "empty file")
        warnings.append(f"{folder}: {files} left out, so that slices may be missing (first: {empty[0]})")
    return found, warnings


def order_slices(files: Sequence[DicomSlice], folder: str | os.PathLike[str]) -> Series:
    """Put the files of one series in order, leaving out those that are no slices of its volume, and copies of slices.

    Args:
        files: headers of one series.
        folder: its name in messages.

    Raises:
        UserError: multi-frame files, no orientation that most files share, files at one position that differ, slices
            that do not lie in one line, or values that only some of them rescale.
    """
    stacks: dict[Any, list[DicomSlice]] = defaultdict(list)
    for file in files:
        orientation = tuple(np.round(file.direction.ravel(), 2) + 0.0)
        stacks[file.frames > 1, file.localizer, file.size, tuple(np.round(file.spacing, 3)), orientation].append(file)
    stack = max(stacks.values(), key=len)
    if stack[0].frames > 1:
        raise UserError(
            f"{stack[0].path} is a multi-frame DICOM file ({stack[0].frames} frames), whose frames may be time or "
            "space: export it as single-frame files, or convert it to NIfTI (dcm2niix does)."
        )
    odd = len(files) - len(stack)
    if odd >= len(stack):
        raise UserError(
            f"{folder}: the {len(files)} files of series {stack[0].series_uid} have {len(stacks)} different sizes, "
            "spacings or orientations and are no single volume: give each its own folder."
        )
    warnings = []
    if odd:
        names = sorted(file.path.name for file in files if all(file is not other for other in stack))
        warnings.append(
            f"{folder}: {counted(odd, 'file')} of {len(files)} left out, because size, spacing or orientation differ "
            f"from the other slices or because they are multi-frame files or localisers (first: {names[0]})"
        )
    normal = stack[0].direction[:, 2]
    # Of copies the one with the shortest name stays: "IM4.dcm" rather than "IM4 (1).dcm".
    stack = sorted(stack, key=lambda file: (float(file.origin @ normal), len(file.path.name), file.path.name))
    stack, copies = _without_copies(stack)
    if copies:
        which = f"{counted(len(copies), 'file')} of {len(files)} left out, since the same slice is there twice"
        warnings.append(f"{folder}: {which} (first: {copies[0]})")
    if not all(file.sized for file in stack):
        warnings.append(f"{folder}: the headers do not say how large pixels are, so that 1 mm is taken")
    if len({file.rescaled for file in stack}) > 1:
        odd_one = next(file for file in stack if not file.rescaled)
        raise UserError(
            f"{odd_one.path} has no RescaleSlope or RescaleIntercept, which other slices of its series have, so that "
            "its values cannot be compared with theirs: correct the header or remove the file."
        )
    if len(stack) == 1:
        step = normal
        with suppress(ValueError):  # slice thickness in mm, where the header gives it
            step = normal * (float(read_tag(stack[0].path, "0018|0050")) or 1.0)
    else:
        step = (stack[-1].origin - stack[0].origin) / (len(stack) - 1)
        if not all(file.placed for file in stack):
            say = "do not say how slices lie in the patient, so that axial ones are taken"
            warnings.append(f"{folder}: the headers {say}: left and right, or the axes, may be swapped")
        warnings += _check_gaps(np.array([file.origin @ normal for file in stack]), folder)
        _check_line(stack, folder)
    affine = np.eye(4)
    affine[:3, :2] = stack[0].direction[:, :2] * stack[0].spacing
    affine[:3, 2] = step  # not the normal: with a tilted gantry slices are shifted as they go
    affine[:3, 3] = stack[0].origin
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's LPS → RAS
    return Series(tuple(stack), affine, tuple(warnings))


def read_series(series: Series) -> np.ndarray:
    """Decode the slices of a series.

    Slope and intercept of each file are applied, and MONOCHROME1 is inverted so that larger is brighter (by GDCM).

    Returns:
        ``[columns, rows, slices]``, or with a last axis of channels for colour; the type holds all slices' values.

    Raises:
        UserError: a file is damaged.
    """
    return np.swapaxes(np.stack([_pixels(file) for file in series.slices]), 0, 2)


def _pixels(file: DicomSlice) -> np.ndarray:
    import SimpleITK as sitk  # noqa: N813

    with dicom_reader(file.path) as reader:
        array: np.ndarray = sitk.GetArrayFromImage(reader.Execute())[0]
        return array


def _without_copies(stack: Sequence[DicomSlice]) -> tuple[list[DicomSlice], list[str]]:
    """Return the slices, in order, without those that have place and pixels of another, and the names of these."""
    kept: list[DicomSlice] = []
    copies = []
    normal = stack[0].direction[:, 2]
    for file in stack:
        here = []
        for other in reversed(kept):
            apart = file.origin - other.origin
            if apart @ normal >= 2 * _SAME_PLACE:
                break
            here += [other] * bool(np.abs(apart).max() < _SAME_PLACE)
        if here and any(np.array_equal(_pixels(other), _pixels(file)) for other in here):
            copies.append(file.path.name)
        else:
            kept.append(file)
    return kept, copies


def _check_gaps(positions: np.ndarray, folder: str | os.PathLike[str]) -> list[str]:
    gaps = np.diff(positions)
    if gaps.min() < _SAME_PLACE:
        raise UserError(
            f"{folder}: the series has several images at one position (several echoes or points in time, or no "
            "ImagePositionPatient?): give each volume its own folder, with the position of each image."
        )
    step = float(np.median(gaps))
    uneven = np.abs(gaps - step) > max(0.01 * step, 0.05)
    if not uneven.any():
        return []
    missing = int(sum(round(gap / step) - 1 for gap in gaps[uneven]))
    where = int(np.argmax(uneven)) + 1
    if missing > 0 and np.allclose(gaps / step, np.round(gaps / step), atol=0.05):
        return [
            f"{folder}: {counted(missing, 'slice')} seem{'s' if missing == 1 else ''} to be missing "
            f"(first gap after slice {where} of {len(positions)}: {gaps[where - 1]:.2f} mm instead of {step:.2f} mm), "
            "so distances across slices are not right"
        ]
    return [
        f"{folder}: the slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart, so distances across slices are right "
        "on average only"
    ]


def _check_line(stack: Sequence[DicomSlice], folder: str | os.PathLike[str]) -> None:
    """Refuse slices that are shifted against each other in their plane, other than evenly as of a tilted gantry."""
    origins = np.array([file.origin for file in stack])
    along = origins @ stack[0].direction[:, 2]
    share = (along - along[0]) / (along[-1] - along[0])
    beside = np.linalg.norm(origins - (origins[0] + share[:, None] * (origins[-1] - origins[0])), axis=1)
    worst = int(beside.argmax())
    if beside[worst] > _BESIDE * min(stack[0].spacing):
        raise UserError(
            f"{folder}: the slices do not lie in one line ({stack[worst].path.name} lies {beside[worst]:.3g} mm beside "
            "that from the first to the last), so that they make no volume: give each part its own folder."
        )


def _listing(found: dict[str, list[DicomSlice]]) -> str:
    shown = [
        f"{uid} ({files[0].description + ', ' if files[0].description else ''}{counted(len(files), 'file')})"
        for uid, files in list(found.items())[:_NAMED]
    ]
    more = len(found) - _NAMED
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
