"""Reading two-dimensional pictures: every common mode, every bit the file has, channels first, rows before columns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple
from PIL import Image, ImageOps, UnidentifiedImageError

from medmdm.data.files.formats import IMAGE_SUFFIXES, errors_as_sentences
from medmdm.data.validity import size_text
from medmdm.errors import UserError, warn_once

# Only these decoders may open a file: Pillow goes by content, and some of its other formats start programs.
_FORMATS = ("PNG", "TIFF", "BMP", "JPEG")
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 274, 258, 262, 284, 339


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG, TIFF, BMP or JPEG file with the values and the bit depth that it has.

    - One channel stays one channel and RGB three; alpha is dropped; palettes and CMYK become RGB.
    - 16-bit colour keeps its 16 bits (Pillow would cut it to 8, so SimpleITK reads it).
    - The orientation tag is honoured, so rows and columns are those an image viewer shows (16-bit colour files that
      have one are refused).
    - Of a file of several pages (stacks, pyramids) the first is read, and a warning says so.

    Args:
        path: the file.

    Returns:
        ``[C, H, W]``, C-contiguous, native byte order: ``bool`` (bilevel), ``uint8``, ``uint16``, and for TIFFs
        that hold them ``int32``, ``uint32`` or ``float32``.

    Raises:
        UserError: the file is missing, empty, damaged or no such image; the sentence names it.
    """
    path = Path(path)
    with errors_as_sentences(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                if pages > 1:
                    warn_once(f"{path} has {pages} pages; only the first is used")
                array = _read_deep_colour(path, image) if _is_deep_colour(path, image) else _array(path, image)
        except UnidentifiedImageError:
            with open(path, "rb") as file:
                if file.read(2) not in (b"II", b"MM"):  # no TIFF
                    raise
            array = _read_with_simpleitk(path)  # TIFFs that Pillow has no mode for, such as float colour
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()  # tensors cannot share Pillow's read-only memory


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (rows, columns) of an image as :func:`read_image` would give it, from the header where possible."""
    path = Path(path)
    with errors_as_sentences(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.getexif().get(_ORIENTATION, 1) == 1:
                    return image.height, image.width
        except UnidentifiedImageError:
            pass
    return read_image(path).shape[1:]


class RasterReader(ImageReader):
    """MONAI reader of PNG, TIFF, BMP and JPEG files, for ``LoadImaged(reader=...)``; see :func:`read_image`.

    Arrays are ``[C, H, W]`` (``original_channel_dim`` 0), so with ``ensure_channel_first=True`` rows come before
    columns, unlike MONAI's default for pictures. The metadata entry ``original_dtype`` keeps the file's type, which
    MONAI's conversion to tensors can widen (16-bit values become 32-bit integers). Several files given together
    become the channels of one image, in their order.
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
        return array, {"original_channel_dim": 0, "spatial_shape": shape, "original_dtype": array.dtype.name}


def _array(path: Path, image: Image.Image) -> np.ndarray:
    """Decode what Pillow holds in full: ``[H, W]`` or ``[H, W, C]``."""
    photometric = image.tag_v2.get(_PHOTOMETRIC) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    unsigned = image.format == "TIFF" and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1  # type: ignore[attr-defined]
    is_png = image.format == "PNG"
    # Loading a TIFF applies its orientation and clears the tag, so that this never turns a picture twice.
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode == "1":
        return np.asarray(image.convert("L")) > 0  # Pillow's own array of bilevel images has bytes of 255 as True
    if mode in ("P", "PA", "CMYK", "YCbCr", "RGBX", "RGBa", "La"):
        return np.asarray(image.convert("L" if mode == "La" else "RGB"))
    array = np.asarray(image)
    if mode in ("L", "RGB", "F"):
        return array
    if mode in ("LA", "RGBA"):
        return array[..., 0] if mode == "LA" else array[..., :3]
    if mode.startswith("I;16"):  # Pillow turns "white is zero" around for 8 bits but not for 16
        return 65535 - array if photometric == 0 else array
    if mode == "I":
        if is_png:  # older versions of Pillow hold 16-bit grey PNGs in 32 bits
            return array.astype(np.uint16)
        return array.view(np.uint32) if unsigned else array
    raise UserError(f"{path} has the colour mode {mode!r}, which is not supported: convert it to RGB or grey.")


def _is_deep_colour(path: Path, image: Image.Image) -> bool:
    """Whether the file has several channels of 16 bits, which Pillow would cut to 8."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PNG" and image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        with open(path, "rb") as file:
            return file.read(25)[24] == 16  # the header chunk's bit depth
    return False


def _read_deep_colour(path: Path, image: Image.Image) -> np.ndarray:
    if image.format == "TIFF" and image.tag_v2.get(_PLANAR, 1) == 2:  # type: ignore[attr-defined]
        raise UserError(f"{path} stores its 16-bit channels as separate planes: save it with interleaved channels.")
    if image.getexif().get(_ORIENTATION, 1) != 1:  # SimpleITK ignores the tag or cuts to 8 bits
        raise UserError(
            f"{path} has 16-bit colours and an orientation tag, which cannot be read together: save it upright."
        )
    return _read_with_simpleitk(path)


def _read_with_simpleitk(path: Path) -> np.ndarray:
    """Decode the first page through SimpleITK, alpha dropped: ``[H, W]`` or ``[H, W, C]`` of more than 8 bits."""
    import SimpleITK as sitk  # noqa: N813 - slow to import, and few images need it

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        columns, rows, *pages = reader.GetSize()
        if columns * rows > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
            raise Image.DecompressionBombError
        if pages:
            reader.SetExtractSize([columns, rows, 0])
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise UserError(
            f"{path} is damaged or has a pixel layout that cannot be read: save it as RGB or grey of 8 or 16 bits."
        ) from error
    if array.dtype == np.uint8:  # SimpleITK's last resort, which loses bits
        raise UserError(f"{path} has a pixel layout that cannot be read in full: save it as RGB or grey PNG or TIFF.")
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] == 2 else array[..., :3]
    return array
