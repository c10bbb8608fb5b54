"""Decoding whatever a data list names, so that everything after it is one kind of array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from medmdm.data.files.aperio import draw_regions, read_aperio
from medmdm.data.files.dicom import choose_series
from medmdm.data.files.formats import IMAGE_SUFFIXES, VOLUME_SUFFIXES, is_volume
from medmdm.data.files.pictures import read_image, read_mask
from medmdm.data.files.volumes import Volume, read_volume, volume_hash
from medmdm.data.validity import ImageGrid, size_text, turned_onto
from medmdm.errors import UserError
from medmdm.files import pixel_hash


@dataclass(frozen=True)
class Decoded:
    """The content of a file.

    Args:
        array: ``[C, *spatial]``.
        affine: of a volume, from voxel indices to millimetres; ``None`` for pictures.
        warnings: what its reader has to say.
        certain: see :class:`medmdm.data.validity.ImageGrid`.
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    certain: bool = True

    @property
    def size(self) -> str:
        """The size as people write it: ``522x775``."""
        return size_text(self.array.shape[1:])

    @property
    def grid(self) -> ImageGrid:
        """Where its pixels lie."""
        return ImageGrid(self.array.shape[1:], self.affine, self.certain)

    def hash(self) -> str:
        """SHA-256 of the decoded pixels."""
        return pixel_hash(self.array) if self.affine is None else volume_hash(Volume(self.array, self.affine))


def decode(path: Path | list[Path], series_uid: str | None = None) -> Decoded:
    """Decode a picture, a volume, or several sequences that are the channels of one volume.

    Raises:
        UserError: it cannot be read.
    """
    if not isinstance(path, list):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return Decoded(read_image(path))
        if not is_volume(path):
            what = "a folder without DICOM files" if path.is_dir() else "no file that can be read"
            suffixes = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
            raise UserError(f"{path} is {what}: give one of {suffixes}, or a folder of DICOM files.")
    volume = read_volume(path, series_uid)
    warnings = () if isinstance(path, list) or not path.is_dir() else choose_series(path, series_uid).warnings
    return Decoded(volume.array, volume.affine, warnings, volume.certain)


def decode_label(path: Path, image: ImageGrid | None) -> Decoded:
    """Decode a label, or what was predicted for an image.

    Of pictures these are the numbers, not the colours (:func:`medmdm.data.files.pictures.read_mask`). Outlines of an
    Aperio XML file become the instance mask that ``prepare`` makes of them. A volume whose axes run in another order or
    direction than its image's is turned onto it: no voxel changes its value or its place in space.

    Args:
        path: picture, volume or outlines.
        image: grid of the whole image that it labels; ``None``: not known, so that it is taken as it is.

    Raises:
        UserError: it cannot be read, or would be turned by a place that a header contradicts.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Decoded(read_mask(path))
    if path.suffix.lower() != ".xml":
        label = decode(path)
        if image is None:
            return label
        grid, turn = turned_onto(label.grid, image, str(path))
        if turn is None:
            return label
        array = nib.apply_orientation(np.moveaxis(label.array, 0, -1), turn)
        return Decoded(np.ascontiguousarray(np.moveaxis(array, -1, 0)), grid.affine, label.warnings)
    if image is None or image.affine is not None:
        raise UserError(f"{path} holds outlines, which label pictures, not volumes: give a label volume.")
    return Decoded(draw_regions(read_aperio(path).regions, image.shape).mask[None])
