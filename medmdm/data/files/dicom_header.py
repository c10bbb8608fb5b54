"""DICOM: what one file says of itself: its place in space, its series and the size of its pixels.

Nothing about the patient is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.errors import UserError

# Pixel spacing, imager pixel spacing, nominal scanned pixel spacing.
_PIXEL_SIZES = ("0028|0030", "0018|1164", "0018|2010")
_DIRECTIONS, _RESCALE = "0020|0037", ("0028|1052", "0028|1053")
_SKEW = 0.01  # by which directions may miss a length of 1 and a right angle: headers round them


@dataclass(frozen=True)
class DicomSlice:
    """The header of one file, without anything about the patient.

    Args:
        path: the file.
        series_uid: SeriesInstanceUID.
        description: SeriesDescription, may be empty.
        frames: number of frames, 1 for a slice.
        localizer: whether the image type says so.
        size: (columns, rows).
        spacing: mm between columns and between rows.
        origin: centre of the first pixel, mm, LPS.
        direction: ``[3, 3]``, columns: unit vectors along a row, along a column, and the normal, LPS.
        sized: whether the header says how large pixels are; they are 1 mm where it does not.
        placed: whether it says in which directions rows and columns run; they run as those of axial slices where not.
        rescaled: whether it says how stored values become others (RescaleSlope or RescaleIntercept).
    """

    path: Path
    series_uid: str
    description: str
    frames: int
    localizer: bool
    size: tuple[int, int]
    spacing: tuple[float, float]
    origin: np.ndarray
    direction: np.ndarray
    sized: bool = True
    placed: bool = True
    rescaled: bool = False


def read_header(path: Path) -> DicomSlice:
    """Read what places one DICOM file in space.

    Raises:
        UserError: it is damaged or holds no pixels, or its rows and columns run in directions that cannot be.
    """
    with dicom_reader(path) as reader:
        reader.ReadImageInformation()
    size, spacing = reader.GetSize(), reader.GetSpacing()
    directions = _numbers(_tag(reader, _DIRECTIONS))
    if directions and not _are_directions(directions):
        given = f"the ImageOrientationPatient {_tag(reader, _DIRECTIONS)}"
        raise UserError(f"{path} has {given}, no two directions at right angles: correct it.")
    return DicomSlice(
        path=path,
        series_uid=_tag(reader, "0020|000e"),
        # Header text is in any encoding; what cannot be shown is replaced.
        description=_tag(reader, "0008|103e").encode("ascii", "replace").decode(),
        frames=int(size[2]) if len(size) > 2 else 1,
        localizer="LOCALIZER" in _tag(reader, "0008|0008").upper().split("\\"),
        size=(int(size[0]), int(size[1])),
        spacing=(float(spacing[0]), float(spacing[1])),
        origin=np.array(reader.GetOrigin()[:3], dtype=np.float64),
        direction=np.array(reader.GetDirection(), dtype=np.float64).reshape(len(size), -1)[:3, :3],
        sized=any((sizes := _numbers(_tag(reader, key))) and min(sizes) > 0 for key in _PIXEL_SIZES),
        placed=bool(directions),
        rescaled=any(_tag(reader, key) for key in _RESCALE),
    )


def _numbers(text: str) -> list[float]:
    """Return the numbers of a tag, none where one of them is no number."""
    try:
        return [float(part) for part in text.split("\\")] if text else []
    except ValueError:
        return []


def _are_directions(numbers: Sequence[float]) -> bool:
    if len(numbers) != 6:
        return False
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    return bool(abs(row @ column) < _SKEW and all(abs(np.linalg.norm(one) - 1) < _SKEW for one in (row, column)))


def read_tag(path: Path, key: str) -> str:
    """Return one text of a file's header, such as ``"0018|0050"`` (slice thickness); empty where it is missing."""
    with dicom_reader(path) as reader:
        reader.ReadImageInformation()
    return _tag(reader, key)


@contextmanager
def dicom_reader(path: Path) -> Iterator[Any]:
    """Give SimpleITK's reader of one file; what it stumbles over becomes a sentence."""
    import SimpleITK as sitk  # noqa: N813 - slow to import, and only volumes need it

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        yield reader
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a readable DICOM image (damaged, truncated or without pixels): replace it or remove it."
        ) from error


def _tag(reader: Any, key: str) -> str:
    return str(reader.GetMetaData(key)).strip(" \0") if reader.HasMetaDataKey(key) else ""
