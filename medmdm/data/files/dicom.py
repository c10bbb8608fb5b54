"""One DICOM file: what places it in space, and its pixels; nothing about the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.errors import UserError

__all__ = ["DicomSlice", "decode_slice", "read_header", "read_tag"]


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


def read_header(path: Path) -> DicomSlice:
    """Read what places one DICOM file in space.

    Raises:
        UserError: it is damaged or holds no pixels.
    """
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a readable DICOM image (damaged, truncated or without pixels): replace it or remove it"
        ) from error
    size, spacing = reader.GetSize(), reader.GetSpacing()
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
    )


def read_tag(path: Path, key: str) -> str:
    """Return one text of a file's header, such as ``"0018|0050"`` (slice thickness); empty where it is missing."""
    reader = _reader(path)
    reader.ReadImageInformation()
    return _tag(reader, key)


def decode_slice(path: Path) -> np.ndarray:
    """Decode one file: ``[rows, columns]`` or ``[rows, columns, channels]``.

    Slope and intercept are applied, and MONOCHROME1 is inverted so that larger is brighter (GDCM does both).

    Raises:
        UserError: it is damaged.
    """
    import SimpleITK as sitk  # noqa: N813

    reader = _reader(path)
    try:
        array: np.ndarray = sitk.GetArrayFromImage(reader.Execute())[0]
    except RuntimeError as error:
        raise UserError(f"{path} is a damaged or truncated DICOM file: replace it or remove it") from error
    return array


def _reader(path: Path) -> Any:
    import SimpleITK as sitk  # noqa: N813 - slow to import, and only volumes need it

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _tag(reader: Any, key: str) -> str:
    return str(reader.GetMetaData(key)).strip(" \0") if reader.HasMetaDataKey(key) else ""
