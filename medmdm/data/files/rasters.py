"""What the file of a picture stores, before anyone says whether it is an image or a label; Pillow and SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medmdm.errors import UserError

_STRIP = 1 << 20  # pixels


def mask_colours() -> np.ndarray:
    """Return the colours that masks of ours are shown in, ``[256, 3]`` uint8: those of VOC, 0 being black.

    Neighbouring numbers differ in the highest bits of red, green and blue.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(3):  # the lowest three bits of what is left of the numbers are one bit of each colour
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


@dataclass(frozen=True)
class Raster:
    """The content of a picture's file, upright, in native byte order.

    Args:
        array: ``[H, W]`` or ``[H, W, C]`` without alpha; of a file with a palette its indices.
        palette: ``[n, 3]`` uint8, the colours of indices; ``None`` without one. Higher indices are shown black.
        alpha: ``[H, W]``, ``None`` without an alpha channel.
        lossy: whether JPEG compressed it, which changes values.
        white_is_zero: whether the file stores white as 0; the array has it turned around.
        pages: how many there are of this size.
    """

    array: np.ndarray
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    lossy: bool = False
    white_is_zero: bool = False
    pages: int = 1

    def colours(self) -> np.ndarray:
        """Return ``[H, W]`` or ``[H, W, C]`` as it is shown: of a file with a palette its colours.

        Masks that we wrote, whose palette is :func:`mask_colours`, stay numbers.
        """
        if self.palette is None or np.array_equal(self.palette, mask_colours()):
            return self.array
        shown = np.zeros((256, 3), np.uint8)
        shown[: len(self.palette)] = self.palette
        return shown[self.array]


def decode_with_pillow(path: Path, image: Image.Image) -> Raster:
    """Decode what Pillow holds in full."""
    lossy = image.format == "JPEG"
    is_png = image.format == "PNG"
    # Loading a TIFF applies its orientation and clears the tag, so that this never turns a picture twice.
    ImageOps.exif_transpose(image, in_place=True)
    mode = image.mode
    if mode == "1":
        return Raster(np.asarray(image.convert("L")) > 0)  # Pillow's own array of bilevel images has bytes of 255
    if mode in ("P", "PA"):
        indices = np.asarray(image)
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return Raster(indices if mode == "P" else indices[..., 0], palette)
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return Raster(np.asarray(image.convert("RGB")), lossy=lossy)
    if mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
        mode = image.mode
    array = _in_strips(image)
    if mode in ("L", "RGB", "F"):
        return Raster(array, lossy=lossy)
    if mode in ("LA", "RGBA"):
        return Raster(array[..., 0] if mode == "LA" else array[..., :3], alpha=array[..., -1])
    if mode.startswith("I;16"):
        return Raster(array)
    if mode == "I":  # older versions of Pillow hold 16-bit grey PNGs in 32 bits
        return Raster(array.astype(np.uint16) if is_png else array)
    raise UserError(f"{path} has the colour mode {mode!r}, which is not supported: convert it to RGB or grey.")


def _in_strips(image: Image.Image) -> np.ndarray:
    """Return ``np.asarray`` of a picture; of a large one Pillow would hold two copies more while it is made."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return np.asarray(image)
    bounds = [(first, min(first + rows, image.height)) for first in range(0, image.height, rows)]
    strips = (np.asarray(image.crop((0, first, image.width, end))) for first, end in bounds)
    strip = next(strips)
    array = np.empty((image.height, *strip.shape[1:]), strip.dtype)
    array[:rows] = strip
    for (first, end), strip in zip(bounds[1:], strips, strict=True):
        array[first:end] = strip
    return array


def decode_with_simpleitk(path: Path) -> np.ndarray:
    """Decode the first page of a file of several channels of more than 8 bits, alpha included: ``[H, W, C]``."""
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
    return array
