"""Reading two-dimensional pictures: every common mode, every bit the file has, channels first, rows before columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader, PILWriter, register_writer, resolve_writer
from monai.utils import ensure_tuple
from PIL import Image, UnidentifiedImageError

from medmdm.data.files.formats import IMAGE_SUFFIXES, errors_as_sentences
from medmdm.data.files.png import decode_large_png, is_upright_png, refuse_damaged_png
from medmdm.data.files.rasters import Raster, decode_with_pillow, decode_with_simpleitk
from medmdm.data.files.tiff import TIFF_MAGIC, decode_tiff
from medmdm.data.validity import size_text
from medmdm.errors import UserError, counted, warn_once

# Only these decoders may open a file: Pillow goes by content, and some of its other formats start programs.
_FORMATS = ("PNG", "TIFF", "BMP", "JPEG")
_ORIENTATION = 274
_ROWS_FIRST = "rows_first"  # entry of the metadata


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG, TIFF, BMP or JPEG file with the values and the bit depth that it has.

    - One channel stays one channel and RGB three; further channels of a TIFF stay; alpha is dropped; palettes and CMYK
      become RGB.
    - 16-bit colour keeps its 16 bits (Pillow would cut it to 8, so tifffile or SimpleITK reads it).
    - The orientation tag is honoured, so rows and columns are those an image viewer shows (PNGs of 16-bit colour that
      have one are refused).
    - Where 0 is white, values are turned around, as viewers do.
    - Of a file of several pages (stacks, pyramids) the first is read, and a warning says so.
    - A TIFF whose arrangement of samples is not understood is refused: what is read is what tifffile reads.

    Args:
        path: the file.

    Returns:
        ``[C, H, W]``, C-contiguous, native byte order: ``bool`` (bilevel), ``uint8``, ``uint16``, and for TIFFs
        that hold them ``int32``, ``uint32``, ``float32`` or ``float64`` (narrower ones get 32 bits).

    Raises:
        UserError: the file is missing, empty, damaged or no such image; the sentence names it.
    """
    raster = _decode(Path(path))
    array = raster.colours()
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()  # tensors cannot share Pillow's read-only memory


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG, TIFF, BMP or JPEG file as a label: numbers, not colours.

    - Of a palette the indices are the numbers, as VOC and labelme have it. Where another index than 0 is shown black,
      or greys fall, numbers and colours contradict each other, and the file is refused.
    - Equal channels are one. An alpha channel is dropped where it is the same everywhere, or shows the same objects;
      it is the label where the colours are the same everywhere (drawing programs leave such masks).
    - A TIFF that stores white as 0 is refused, one with several pages of one size, and JPEG, which changes numbers,
      but for 0 and 255.

    Args:
        path: the file.

    Returns:
        ``[1, H, W]``, or ``[C, H, W]`` where channels differ, in the types of :func:`read_image`.

    Raises:
        UserError: as :func:`read_image`, and where it cannot be told which number a pixel has.
    """
    path, raster = Path(path), _decode(Path(path))
    refuse_damaged_png(path)
    if raster.white_is_zero:
        raise UserError(
            f"{path} is a label that stores white as 0, as inverting look-up tables do, so that its numbers and what a "
            "viewer shows contradict each other: save it with 0 as black."
        )
    if raster.pages > 1:
        raise UserError(
            f"{path} is a label of {raster.pages} pages, and its image has one: save one page that holds all objects "
            "(a stack is a volume: save image and label as NIfTI)."
        )
    channels = raster.array[..., None] if raster.array.ndim == 2 else raster.array
    if (channels == channels[..., :1]).all():
        channels = channels[..., :1]
    if raster.palette is not None:
        _refuse_contrary_palette(path, raster.array, raster.palette)
    if raster.alpha is not None and raster.alpha.min() != raster.alpha.max():
        channels = _with_alpha(path, channels, raster.alpha)
    if raster.lossy and not np.isin(channels, (0, 255)).all():
        raise UserError(
            f"{path} is a label compressed as JPEG, which has changed its numbers (it holds "
            f"{', '.join(map(str, np.unique(channels)[:6]))}, …): make it again as PNG, or threshold it at 128 if "
            "it is a mask of 0 and 255."
        )
    return np.array(np.moveaxis(channels, -1, 0), channels.dtype.newbyteorder("="), order="C")


def _refuse_contrary_palette(path: Path, indices: np.ndarray, palette: np.ndarray) -> None:
    used = np.unique(indices)
    if used[-1] >= len(palette):
        raise UserError(
            f"{path} is a label with a palette of {counted(len(palette), 'colour')}, but holds {used[-1]}: its numbers "
            "were cut when it was written (Pillow does so to mode P without a palette): save it as grey."
        )
    colours = palette[used].astype(int)
    black, grey = (colours == 0).all(axis=1), (colours == colours[:, :1]).all()
    first_is_black = used[0] != 0 or black[0]
    if (not first_is_black and black.any()) or (grey and (np.diff(colours[:, 0]) < 0).any()):
        raise UserError(
            f"{path} is a label whose palette shows 0 lighter than other numbers (an inverted look-up table, or one "
            "that was sorted anew), so that its numbers and its colours contradict each other: save it without palette."
        )


def _with_alpha(path: Path, channels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the channels of a label whose alpha is not the same everywhere."""
    if (channels == channels[:1, :1]).all():
        warn_once(f"{path.parent}: alpha channels are read as the labels, for the colours are the same everywhere")
        return alpha[..., None]
    if channels.shape[2] > 1 or ((channels[..., 0] > 0) != (alpha > 0)).any():
        raise UserError(
            f"{path} is a label whose colours and alpha channel show different things: save it as grey without alpha."
        )
    return channels


def turned_apart(path: str | os.PathLike[str], mask: str | os.PathLike[str]) -> bool:
    """Whether an orientation tag turns a picture and not its mask, or otherwise: programs differ in honouring tags."""
    return _turn(Path(path)) != _turn(Path(mask))


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether an orientation tag turns a picture, which some programs do not look at."""
    return _turn(Path(path)) != 1


def _turn(path: Path) -> int:
    with errors_as_sentences(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return 1 if is_upright_png(path) else int(image.getexif().get(_ORIENTATION, 1))
        except UnidentifiedImageError:
            return 1


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (rows, columns) of an image as :func:`read_image` would give it, from the header where possible."""
    path = Path(path)
    with errors_as_sentences(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if is_upright_png(path) or image.getexif().get(_ORIENTATION, 1) == 1:
                    return image.height, image.width
        except UnidentifiedImageError:
            pass
    return read_image(path).shape[1:]


class RasterReader(ImageReader):
    """MONAI reader of PNG, TIFF, BMP and JPEG files, for ``LoadImaged(reader=...)``; see :func:`read_image`.

    Arrays are ``[C, H, W]`` (``original_channel_dim`` 0), so with ``ensure_channel_first=True`` rows come before
    columns, unlike MONAI's default for pictures (``SaveImaged`` knows: see :class:`RowsFirstWriter`). The metadata
    entry ``original_dtype`` keeps the file's type, which MONAI's conversion to tensors can widen (16-bit values become
    32-bit integers). Several files given together become the channels of one image, in their order.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(str(name).lower().endswith(IMAGE_SUFFIXES) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> tuple[Path, ...]:
        # Decoding waits for `get_data`: when `read` fails, LoadImage goes on to MONAI's other readers, which would
        # hide our sentence and could return a picture cut to 8 bits.
        return tuple(Path(name) for name in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        arrays = [read_image(path) for path in img]
        kinds = [f"{size_text(array.shape[1:])} {array.dtype.name}" for array in arrays]
        for path, kind in zip(img, kinds, strict=True):
            if kind != kinds[0]:
                raise UserError(
                    f"{path} is {kind} but {img[0]} is {kinds[0]}: files given as channels of one image must agree in "
                    "size and type."
                )
        array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        shape = np.asarray(array.shape[1:])
        meta = {"original_channel_dim": 0, "spatial_shape": shape, "original_dtype": array.dtype.name}
        return array, {**meta, _ROWS_FIRST: True}


class RowsFirstWriter(PILWriter):
    """MONAI's writer of pictures, which knows that images of :class:`RasterReader` have rows before columns.

    ``SaveImaged`` takes it for PNG, TIFF, BMP and JPEG files, so that they lie as those that were read. Images of other
    readers are written as before.
    """

    rows_first = False

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        self.rows_first = bool((meta_dict or {}).get(_ROWS_FIRST, False))
        super().set_metadata(meta_dict, resample, **options)

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("reverse_indexing", not self.rows_first)
        super().write(filename, verbose, **kwargs)


resolve_writer(".png")  # MONAI registers its own at the first question, if none is registered by then
for _suffix in IMAGE_SUFFIXES:
    register_writer(_suffix, RowsFirstWriter)


def _decode(path: Path) -> Raster:
    with errors_as_sentences(path):
        with open(path, "rb") as file:
            start = file.read(26)
        if start[:4] in TIFF_MAGIC:
            return decode_tiff(path)
        with Image.open(path, formats=_FORMATS) as image:
            colours = image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16")
            # The header chunk's bit depth: Pillow would cut 16 bits to 8.
            if image.format != "PNG" or not colours or start[24] != 16:
                large = decode_large_png(path) if image.format == "PNG" else None
                if large is not None:
                    return Raster(large[..., 0] if image.mode == "L" else large)
                return decode_with_pillow(path, image)
            if image.getexif().get(_ORIENTATION, 1) != 1:  # SimpleITK ignores the tag
                raise UserError(
                    f"{path} has 16-bit colours and an orientation tag, which cannot be read together: save it upright."
                )
        array = decode_with_simpleitk(path)
        # Grey or RGB, with alpha where there is one sample more.
        alpha = array[..., -1] if array.ndim == 3 and array.shape[2] in (2, 4) else None
        return Raster(array if alpha is None else array[..., :-1], alpha=alpha)
