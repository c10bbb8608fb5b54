"""Reading TIFF files: every accepted file gives the numbers that it stores, and what is not understood is refused.

tifffile decodes what is stored plainly or deflated, in any arrangement of samples. Of the compressions that it leaves
to a package of its own, Pillow and SimpleITK (libtiff) decode those arrangements that they are known to get right.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from medmdm.data.files.rasters import Raster, decode_with_pillow, decode_with_simpleitk
from medmdm.errors import UserError, warn_once

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two are BigTIFF's
PLAIN_OR_DEFLATE = (1, 8, 32773, 32946)  # and PackBits: what tifffile decodes by itself
_NO_PREDICTOR, _DIFFERENCES = 1, 2  # that of floats is not among tifffile's own
_WITH_PREDICTOR = (1, 5, 8, 32946, 34925, 50000)  # plain, LZW, deflate, LZMA, Zstandard
_JPEG = (6, 7)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # formats of samples
_PHOTOMETRIC, _ORIENTATION, _COLOUR_MAP = 262, 274, 320
_ALPHA = (1, 2)  # kinds of extra samples; the others are channels
_COLOURS = {_RGB: 3, _CMYK: 4, _YCBCR: 3}
# Exact, and what the rest of the package, PNG and torch know.
_WIDER = {"int8": "int32", "int16": "int32", "float16": "float32"}
_MOST_CHANNELS = 8  # of a picture of Pillow's largest size


def decode_tiff(path: Path) -> Raster:
    """Decode the first page of a TIFF file; 8- and 16-bit signed integers get 32 bits, half floats become single.

    Raises:
        UserError: the arrangement of the samples is not understood, or pixels are missing.
        Exception: whatever a decoder raises on damaged bytes.
    """
    with tifffile.TiffFile(path) as file:
        page, pages = file.pages.first, len(file.pages)
        if pages > 1:
            warn_once(f"{path} has {pages} pages; only the first is used")
        _refuse_incomplete(path, page)
        strange = _strange(page)
        if strange is not None:
            raise UserError(
                f"{path} has {strange}, which cannot be read without loss: save it as RGB or grey of 8 or 16 bits, "
                "not compressed or with deflate."
            )
        known = {
            "lossy": page.compression in _JPEG,
            "white_is_zero": page.photometric == _WHITE_IS_ZERO,
            "pages": sum(other.shape[:2] == page.shape[:2] for other in file.pages) if pages > 1 else 1,
        }
        if _for_pillow(page):
            with Image.open(path, formats=("TIFF",)) as image:
                return dataclasses.replace(_by_pillow(path, page, image), **known)
        if _for_tifffile(page):
            array = page.asarray(maxworkers=1)
            if page.planarconfig == 2 and page.samplesperpixel > 1:
                array = np.moveaxis(array.reshape(-1, page.imagelength, page.imagewidth), 0, -1)
        else:
            array = decode_with_simpleitk(path)
    array = _upright(array.reshape(page.imagelength, page.imagewidth, -1), page)
    array = _of_known_type(path, array)
    if page.photometric == _WHITE_IS_ZERO:
        array = np.iinfo(array.dtype).max - array
    alpha = _alpha(page)
    kept = [channel for channel in range(array.shape[2]) if channel not in alpha]
    colours = array if len(kept) == array.shape[2] else array[..., kept]  # an index would copy
    return Raster(colours, alpha=array[..., alpha[0]] if alpha else None, **known)


def _refuse_incomplete(path: Path, page: Any) -> None:
    """Refuse a page that is too large for memory, or that lacks pixels, which tifffile would make 0."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if page.imagelength * page.imagewidth > limit or page.size > _MOST_CHANNELS * limit:
        raise Image.DecompressionBombError
    offsets, counts = page.dataoffsets, page.databytecounts
    if not page.size or not counts or not min(offsets) or not min(counts):
        raise UserError(f"{path} lacks some or all of its pixels: save it again in full.")
    if max(map(sum, zip(offsets, counts, strict=True))) > path.stat().st_size:
        raise UserError(f"{path} is truncated or damaged (it ends before its pixels do): replace it or remove it.")


def _strange(page: Any) -> str | None:
    """Return what makes a page one that no decoder is known to get right."""
    bits, photometric, samples = page.bitspersample, page.photometric, page.samplesperpixel
    unsigned = page.sampleformat == _UNSIGNED
    if page.imagedepth != 1:
        return "a volume in one page"
    if page.dtype is None or not isinstance(bits, int) or page.sampleformat not in (_UNSIGNED, _SIGNED, _FLOAT):
        return "samples of several or unknown types"
    colours = _strange_colours(page)
    if colours is not None or photometric in (_PALETTE, _CMYK, _YCBCR):
        return colours
    if samples < _COLOURS.get(photometric, 1):
        return f"{samples} samples for RGB colours"
    if bits not in (1, 8, 12, 16, 32, 64) or (bits in (1, 12) and (samples > 1 or not unsigned)):
        return f"{samples} x {bits} bits"
    if page.predictor != _NO_PREDICTOR and page.compression not in _WITH_PREDICTOR:
        return f"a predictor where {getattr(page.compression, 'name', page.compression)} has none"
    if not (_for_pillow(page) or _for_tifffile(page) or _for_simpleitk(page)):
        return f"{samples} x {bits} bits compressed by {getattr(page.compression, 'name', page.compression)}"
    return None


def _strange_colours(page: Any) -> str | None:
    """Return what makes the colours of a page unknown, or not those of its samples."""
    bits, photometric, samples = page.bitspersample, page.photometric, page.samplesperpixel
    unsigned = page.sampleformat == _UNSIGNED
    if _PHOTOMETRIC not in page.tags:
        return "no entry that says which number is white"
    if photometric == _WHITE_IS_ZERO and (samples > 1 or not unsigned or bits not in (1, 8, 16)):
        return "0 for white, and other values than one channel of 1, 8 or 16 bits"
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR):
        return f"the colour space {getattr(photometric, 'name', photometric)}"
    if photometric == _PALETTE:
        if samples > 1 or bits not in (1, 2, 4, 8) or not unsigned or _COLOUR_MAP not in page.tags:
            return f"a palette for {samples} x {bits} bits"
        brightest = np.max(page.tags.valueof(_COLOUR_MAP))
        return "a palette of 8-bit colours, which TIFF has of 16 bits" if 0 < brightest < 256 else None
    if photometric in (_CMYK, _YCBCR):
        if bits == 8 and unsigned and samples == _COLOURS[photometric] and page.planarconfig == 1:
            return None if photometric == _CMYK or page.compression in _JPEG else "YCBCR colours without JPEG"
        return f"{photometric.name} colours other than interleaved ones of 8 bits"
    return None


def _for_tifffile(page: Any) -> bool:
    """Whether tifffile decodes a page by itself; what Pillow decodes goes before."""
    return page.compression in PLAIN_OR_DEFLATE and page.predictor in (_NO_PREDICTOR, _DIFFERENCES)


def _for_pillow(page: Any) -> bool:
    """Whether Pillow is the one to decode a page that is not strange otherwise."""
    bits, photometric, samples = page.bitspersample, page.photometric, page.samplesperpixel
    if bits in (1, 12) or photometric in (_PALETTE, _CMYK, _YCBCR):
        return True
    if _for_tifffile(page):
        return False
    if samples == 1:
        # Of compressed files that are not little-endian Pillow swaps the bytes of other types once too often.
        little = page.parent.byteorder == "<"
        kinds = {8: (_UNSIGNED,), 16: (_UNSIGNED, _SIGNED)[: 1 + little], 32: (_UNSIGNED, _SIGNED, _FLOAT) * little}
        return page.sampleformat in kinds.get(bits, ())
    alpha_only = samples == 3 or (samples == 4 and len(_alpha(page)) == 1)
    return photometric == _RGB and bits == 8 and page.sampleformat == _UNSIGNED and alpha_only


def _for_simpleitk(page: Any) -> bool:
    """Whether SimpleITK is the one to decode a compressed page: upright, interleaved, of more than 8 bits."""
    kind = page.sampleformat, page.bitspersample
    interleaved = page.planarconfig == 1 and page.samplesperpixel in (3, 4) and not page.is_tiled
    return page.photometric == _RGB and interleaved and _orientation(page) == 1 and kind in ((1, 16), (3, 32))


def _by_pillow(path: Path, page: Any, image: Image.Image) -> Raster:
    raster = decode_with_pillow(path, image)
    array = raster.array
    if array.dtype.kind == "i" and page.sampleformat == _UNSIGNED:
        array = array.view(np.uint32)
    if page.photometric == _WHITE_IS_ZERO and array.dtype.itemsize == 2:  # Pillow turns those of 8 bits only
        array = 65535 - array
    return dataclasses.replace(raster, array=array)


def _alpha(page: Any) -> list[int]:
    """Return which samples are alpha; so is a fourth one of RGB of which the file says nothing."""
    colours = _COLOURS.get(page.photometric, 1)
    if page.photometric == _RGB and page.samplesperpixel == 4 and not page.extrasamples:
        return [3]
    return [colours + number for number, kind in enumerate(page.extrasamples) if int(kind) in _ALPHA]


def _orientation(page: Any) -> int:
    return int(page.tags.valueof(_ORIENTATION, 1))


def _upright(array: np.ndarray, page: Any) -> np.ndarray:
    """Turn rows and columns as the orientation tag says."""
    turned = _orientation(page)
    if turned not in range(1, 9):
        turned = 1
    array = array[:: -1 if turned in (3, 4, 6, 7) else 1, :: -1 if turned in (2, 3, 7, 8) else 1]
    return array.swapaxes(0, 1) if turned > 4 else array


def _of_known_type(path: Path, array: np.ndarray) -> np.ndarray:
    """Return the numbers in a type that the rest of the package knows."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        narrow = array.astype(np.int32)
        if not np.array_equal(narrow, array):
            raise UserError(f"{path} holds whole numbers that 32 bits cannot hold: save it with fewer bits.")
        return narrow
    return array.astype(_WIDER.get(array.dtype.name, array.dtype), copy=False)
