"""The pyramids in files of slides, level by level, pixel by pixel.

Formats are OpenSlide's (SVS, NDPI, MRXS, SCN, DICOM and others, pyramidal TIFF) and OME-TIFF. TIFF files whose tiles
are stored plainly or deflated are read by tifffile: OpenSlide sees one level only of OME-TIFF pyramids, and it
interpolates between the pixels of a level whose size is no whole fraction of the first's.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
import tifffile

from medmdm.data.files.formats import errors_as_sentences, may_be_dicom
from medmdm.data.files.tiff import PLAIN_OR_DEFLATE
from medmdm.data.files.units import picture_spacing
from medmdm.errors import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
_MOST_PLANES = 1_000_000


def dicom_file(path: Path) -> Path:
    """Return a path itself, or of a folder the first DICOM file: OpenSlide finds the others."""
    if not path.is_dir():
        return path
    return min(file for file in path.iterdir() if file.is_file() and may_be_dicom(file) and file.name[0] != ".")


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF file whose levels are looked for: what its metadata say must not cost memory, or open other files.

    Raises:
        UserError: it says that it has more planes than there are in any slide.
    """
    file = tifffile.TiffFile(path, _multifile=False)
    file.is_mmstack = file.is_ndtiff = False  # both name files of their own
    try:
        elements = list(ElementTree.fromstring(file.ome_metadata or "<none/>").iter())
    except (ElementTree.ParseError, LookupError, ValueError):  # then tifffile does without, too
        elements = []
    pixels = file.pages.first.imagelength * file.pages.first.imagewidth
    for element in elements:
        if not element.tag.endswith(("Pixels", "TiffData")):
            continue
        given = {key: int(text) for key, text in element.attrib.items() if re.fullmatch(r"\d{1,4000}", text)}
        claimed = math.prod(max(1, given.get(f"Size{axis}", 1)) for axis in "XYZCT") // max(1, pixels)
        if max([claimed, *(number for key, number in given.items() if key[:4] != "Size")]) > _MOST_PLANES:
            file.close()
            raise UserError(f"{path} says in its OME-XML that it has more than {_MOST_PLANES} planes: save it again.")
    return file


class Pyramid(Protocol):
    """An open file: sizes (rows, columns) of its levels, mm of its pixels, ``[h, w, 3]`` uint8 of any part."""

    sizes: list[tuple[int, int]]
    spacing: tuple[float, float] | None

    def read(self, level: int, row: int, column: int, height: int, width: int) -> np.ndarray: ...

    def close(self) -> None: ...


def open_pyramid(path: Path) -> Pyramid:
    """Open the file of a slide; see :class:`medmdm.data.files.slides.Slide` for what is refused."""
    with errors_as_sentences(path, "no slide that can be read, truncated or damaged"):
        path.stat()  # a missing one is told as such
        if path.suffix.lower() in TIFF_SUFFIXES:
            plain, decodes = _TiffPyramid(path), False
            try:
                decodes = plain.decodes()
            finally:
                if not decodes:
                    plain.close()
            if decodes:
                return plain
        return _OpenSlidePyramid(dicom_file(path))


class _OpenSlidePyramid:
    def __init__(self, path: Path) -> None:
        try:
            import openslide
        except ImportError as error:
            raise UserError(f"{path} needs OpenSlide: pip install 'medmdm[slides]'.") from error
        self.file = openslide.OpenSlide(path)
        self.sizes = [(height, width) for width, height in self.file.level_dimensions]
        found = [self.file.properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
        if path.suffix.lower() in TIFF_SUFFIXES:  # OpenSlide takes the densities of screens for pixel sizes
            self.spacing = picture_spacing(path)
        else:
            self.spacing = None if None in found else (float(found[0]) / 1000, float(found[1]) / 1000)

    def read(self, level: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        ratio = self.file.level_downsamples[level]
        pixels = self.file.read_region((round(column * ratio), round(row * ratio)), level, (width, height))
        return _over_white(np.asarray(pixels))

    def close(self) -> None:
        self.file.close()


class _TiffPyramid:
    def __init__(self, path: Path) -> None:
        self.spacing = picture_spacing(path)
        self.path, self.file = path, open_tiff(path)
        try:
            self.pages = [level.pages[0].aspage() for level in self.file.series[0].levels]
        except Exception:  # whatever a damaged description leads to
            self.file.close()
            raise
        self.sizes = [(page.imagelength, page.imagewidth) for page in self.pages]

    def decodes(self) -> bool:
        """Whether tifffile decodes all levels by itself.

        Raises:
            UserError: the pixels are not 8-bit grey or RGB, upright.
        """
        if (count := len(self.file.series[0].levels[0].pages)) > 1:
            raise UserError(f"{self.path} is a slide of {count} pages, channels or planes: one of 8-bit RGB is read.")
        for page in self.pages:
            grey_or_rgb = (page.photometric, page.samplesperpixel) in ((1, 1), (2, 3), (2, 4), (6, 3))
            if page.dtype != np.uint8 or page.planarconfig != 1 or not grey_or_rgb:
                raise UserError(
                    f"{self.path} is a slide of {page.samplesperpixel} x {page.bitspersample} bits: 8-bit grey and RGB "
                    "are read."
                )
            if int(page.tags.valueof(274, 1)) != 1:
                raise UserError(f"{self.path} is a slide that its orientation tag turns: save it upright.")
        return all(page.compression in PLAIN_OR_DEFLATE and page.photometric != 6 for page in self.pages)

    def read(self, level: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        page = self.pages[level]
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-page.imagewidth // columns)
        result = np.zeros((height, width, page.samplesperpixel), np.uint8)
        for i in range(row // rows, -(-(row + height) // rows)):
            for j in range(column // columns, -(-(column + width) // columns)):
                number = i * across + j
                if not page.databytecounts[number]:
                    continue  # a tile that was left out: it is 0, as tifffile has it
                self.file.filehandle.seek(page.dataoffsets[number])
                data = self.file.filehandle.read(page.databytecounts[number])
                tile = page.decode(data, number)[0][0]
                top, left = max(row, i * rows), max(column, j * columns)
                bottom, right = (
                    min(row + height, i * rows + len(tile)),
                    min(column + width, j * columns + tile.shape[1]),
                )
                inside = tile[top - i * rows : bottom - i * rows, left - j * columns : right - j * columns]
                result[top - row : bottom - row, left - column : right - column] = inside
        if result.shape[2] == 4:
            return _over_white(result)
        return np.repeat(result, 3, axis=2) if result.shape[2] == 1 else result

    def close(self) -> None:
        self.file.close()


def _over_white(array: np.ndarray) -> np.ndarray:
    """Return ``[h, w, 3]`` of ``[h, w, 4]``: white where it is transparent, which glass is."""
    colours, alpha = array[..., :3], array[..., 3:]
    if (alpha == 255).all():
        return colours
    share = alpha.astype(np.float32) / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)
