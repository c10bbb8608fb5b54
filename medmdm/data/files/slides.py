"""Whole-slide images: any region at any micrometres per pixel, read from the pyramid of its file in constant memory.

MONAI's ``WSIReader`` is not used: it has levels, but not what lies between them; its tifffile backend decodes a level
whole; and its RGB of OpenSlide is black where a slide is transparent, which glass is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from medmdm.data.files.formats import DICOM_START, SLIDE_SUFFIXES, errors_as_sentences, may_be_dicom
from medmdm.data.files.pyramids import TIFF_SUFFIXES, Pyramid, dicom_file, open_pyramid, open_tiff
from medmdm.errors import UserError

_LARGEST_PICTURE = 150_000_000  # pixels of a TIFF without levels that is still read whole
_WSI_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_SAME = 0.01  # of its micrometres: how far a level may be off what is asked for and is read as it is
_CHUNK = 2048  # pixels along the side of what is read at once to make less of it
_HASHED_BYTES = 1 << 20  # at each end of a file
_OVERVIEW_MPP = 8.0
_OVERVIEW_PIXELS = 4096  # along a side, at most
_DENSITY = 0.03, 0.1  # between which Otsu's threshold is taken


@dataclass(frozen=True)
class Level:
    """A level of a pyramid.

    Args:
        height: rows.
        width: columns.
        mpp: µm between rows, and between columns.
    """

    height: int
    width: int
    mpp: tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """The pixels of a slide at some micrometres per pixel.

    Args:
        height: rows.
        width: columns.
        mpp: µm between rows, and between columns: those asked for, or those of a level that is within 1 % of them.
        level: number of the level that is read.
    """

    height: int
    width: int
    mpp: tuple[float, float]
    level: int


class Slide:
    """A whole-slide image.

    Objects may be pickled, and used in forked processes: each process opens the file for itself when it first reads.
    One object serves one thread at a time.

    Typical use::

        with Slide("case.svs") as slide:
            grid = slide.grid(0.5)                          # height, width at 0.5 µm a pixel
            tile = slide.region(0, 512, 256, 256, mpp=0.5)  # uint8 [3, 256, 256], rows and columns of that grid
            tissue = slide.tissue()                         # bool [h, w] over the whole slide, about 8 µm a pixel

    Args:
        path: the file; of MRXS the ``.mrxs``, of DICOM the folder of one slide or any file of it.
        spacing: mm between rows and columns of the finest level, one number or two; ``None``: as the file says.

    Attributes:
        path: of the file.
        levels: a :class:`Level` each, the finest first.

    Raises:
        UserError: it cannot be opened, its pixels are not 8-bit grey or RGB, its pixel size is not known and
            ``spacing`` is not given, or OpenSlide is needed and missing.
    """

    def __init__(self, path: str | os.PathLike[str], spacing: float | Sequence[float] | None = None) -> None:
        self.path = Path(path)
        self._sources: dict[int, Pyramid] = {}  # by process: file positions and decoders must not be shared
        source = self._source
        sides = source.spacing if spacing is None else spacing
        if sides is None:
            self.close()
            raise UserError(
                f"{self.path} does not say how large its pixels are: give 'spacing' (mm; 0.00025 for 0.25 µm) in the "
                "data list, or --image_spacing where masks are inferred."
            )
        rows, columns = _pair(sides, f"{self.path} has a spacing of", "mm")
        height, width = source.sizes[0]
        self.levels = tuple(
            Level(h, w, (rows * 1000 * height / h, columns * 1000 * width / w)) for h, w in source.sizes
        )

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometres between rows and between columns of the finest level."""
        return self.levels[0].mpp

    @property
    def spacing(self) -> tuple[float, float]:
        """The same in mm, as data lists have it."""
        return self.mpp[0] / 1000, self.mpp[1] / 1000

    def level_for(self, mpp: float | Sequence[float]) -> int:
        """Return the number of the coarsest level that is no coarser than ``mpp`` (or 1 % at most); 0 if all are.

        Args:
            mpp: µm, one number or (rows, columns).
        """
        wanted = _pair(mpp)
        fine = [
            number
            for number, level in enumerate(self.levels)
            if all(own <= asked * (1 + _SAME) for own, asked in zip(level.mpp, wanted, strict=True))
        ]
        return max(fine, default=0)

    def grid(self, mpp: float | Sequence[float]) -> Grid:
        """Return the pixels that the slide has at ``mpp``: those of a level within 1 % of it, else resampled ones.

        As of pictures (:class:`medmdm.data.ResampleToSpacing`) the number of pixels is rounded and edges stay in place.

        Args:
            mpp: µm, one number or (rows, columns).
        """
        number, wanted = self.level_for(mpp), _pair(mpp)
        level = self.levels[number]
        if all(abs(own - asked) <= _SAME * asked for own, asked in zip(level.mpp, wanted, strict=True)):
            return Grid(level.height, level.width, level.mpp, number)
        sizes = (self.levels[0].height, self.levels[0].width)
        height, width = (max(1, round(n * own / asked)) for n, own, asked in zip(sizes, self.mpp, wanted, strict=True))
        return Grid(height, width, (wanted[0], wanted[1]), number)

    def region(self, row: int, column: int, height: int, width: int, mpp: float | Sequence[float]) -> np.ndarray:
        """Return a part of the slide at ``mpp``.

        Where no level has it, the next finer one is low-pass filtered as pictures are (a triangle of twice the ratio's
        width), each pixel by its place in the slide: parts are, to the bit, what they are in the whole. Memory is that
        of the result and of some megabytes.

        Args:
            row: first row, in pixels of :meth:`grid`.
            column: first column.
            height: rows.
            width: columns.
            mpp: µm, one number or (rows, columns).

        Returns:
            ``[3, height, width]`` uint8, red, green, blue; white where the slide is transparent.

        Raises:
            UserError: the part leaves the slide, or the file is damaged there.
        """
        grid = self.grid(mpp)
        if (
            row < 0
            or column < 0
            or height < 1
            or width < 1
            or row + height > grid.height
            or column + width > grid.width
        ):
            raise UserError(
                f"{self.path} has {grid.height} x {grid.width} pixels of {grid.mpp[0]:g} µm: there is no part of "
                f"{height} x {width} at {row}, {column}."
            )
        level = self.levels[grid.level]
        if (level.height, level.width) == (grid.height, grid.width):
            return self._read(grid.level, row, column, height, width)
        scales = level.height / grid.height, level.width / grid.width
        steps = [max(1, int(_CHUNK / scale)) for scale in scales]
        result = np.empty((3, height, width), np.uint8)
        for top in range(row, row + height, steps[0]):
            bottom = min(top + steps[0], row + height)
            first, down = _triangles(top, bottom, scales[0], level.height)
            for left in range(column, column + width, steps[1]):
                right = min(left + steps[1], column + width)
                start, across = _triangles(left, right, scales[1], level.width)
                part = self._read(grid.level, first, start, down.shape[1], across.shape[1]).astype(np.float32)
                for channel, values in enumerate(part):
                    filtered = (across @ (down @ values).T).T
                    place = channel, slice(top - row, bottom - row), slice(left - column, right - column)
                    result[place] = np.clip(np.rint(filtered), 0, 255)
        return result

    def overview(self, mpp: float | None = None) -> np.ndarray:
        """Return the whole slide at a low resolution, ``[3, h, w]`` uint8.

        Args:
            mpp: µm; ``None``: 8, coarser on slides that would have more than 4096 pixels along a side, and that of the
                slide where it is coarser itself.
        """
        if mpp is None:
            level = self.levels[0]
            sides = level.height * level.mpp[0], level.width * level.mpp[1]
            mpp = max(_OVERVIEW_MPP, *level.mpp, *(side / _OVERVIEW_PIXELS for side in sides))
        grid = self.grid(mpp)
        return self.region(0, 0, grid.height, grid.width, mpp)

    def tissue(self, mpp: float | None = None) -> np.ndarray:
        """Return where there is tissue, ``[h, w]`` bool over the whole slide: :func:`tissue_mask` of the overview."""
        return tissue_mask(self.overview(mpp))

    def close(self) -> None:
        """Close the file; reading opens it again."""
        source = self._sources.pop(os.getpid(), None)
        if source is not None:
            source.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}

    @property
    def _source(self) -> Pyramid:
        process = os.getpid()
        if process not in self._sources:
            self._sources[process] = open_pyramid(self.path)
        return self._sources[process]

    def _read(self, level: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        with errors_as_sentences(self.path):
            pixels = self._source.read(level, row, column, height, width)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def slide_hash(path: str | os.PathLike[str], slide: Slide) -> str:
    """Return a SHA-256 that stands for a slide: of the size and the first and last MiB of each of its files.

    The sizes of the levels and of the pixels are in it. It takes as long for a large slide as for a small one, and it
    does not see a change in the middle of a file that leaves its size.

    Args:
        path: the file, or the folder or any file of a DICOM slide, whose folder counts; of MRXS the folder beside it
            counts too.
        slide: the same, open.
    """
    path = Path(path)
    if path.is_dir() or may_be_dicom(path):  # any file of it opens it all
        files = [file for file in (path if path.is_dir() else path.parent).iterdir() if may_be_dicom(file)]
    else:
        files = list(path.with_suffix("").rglob("*")) if path.suffix.lower() == ".mrxs" else []
    files = sorted(file for file in files if file.is_file() and not file.name.startswith("."))
    if path.is_file() and path not in files:
        files.insert(0, path)
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(level) for level in slide.levels]).encode())
    for file in files:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest.update(f"{size}:".encode())
            digest.update(opened.read(_HASHED_BYTES))
            opened.seek(max(opened.tell(), size - _HASHED_BYTES))
            digest.update(opened.read(_HASHED_BYTES))
    return digest.hexdigest()


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Return where there is tissue.

    A pixel is tissue where its optical density (mean over the colours, white is 0) is above Otsu's threshold of the
    image. The threshold is held between 0.03 and 0.1: on a slide that is tissue everywhere, or nowhere, Otsu's would
    cut tissue, or glass, in two. Masks are widened by a pixel, which may be half tissue.

    Args:
        image: ``[3, h, w]`` uint8, of a low resolution.

    Returns:
        ``[h, w]`` bool.
    """
    from scipy.ndimage import binary_dilation  # slow to import, as scikit-image is
    from skimage.filters import threshold_otsu

    table = -np.log10(np.arange(1, 257, dtype=np.float32) / 256) / len(image)
    density = table[image[0]]
    for channel in image[1:]:  # in place, one at a time: the overview of a large slide is large too
        density += table[channel]
    threshold = np.clip(threshold_otsu(density) if density.min() < density.max() else 0, *_DENSITY)
    mask: np.ndarray = binary_dilation(density > threshold, np.ones((3, 3)))
    return mask


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a whole-slide image: by its suffix, a TIFF by its levels, DICOM by its kind.

    TIFF files are slides if they are pyramids, or hold more pixels than can be read whole. A DICOM folder is one if its
    first file is a whole-slide image's.
    """
    path = Path(path)
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with open_tiff(path) as file:
                series = file.series[0]
                return len(series.levels) > 1 or math.prod(series.keyframe.shape[:2]) > _LARGEST_PICTURE
        with open(dicom_file(path), "rb") as opened:
            return may_be_dicom(Path(opened.name)) and _WSI_CLASS in opened.read(DICOM_START)
    except Exception:  # of whatever kind: who reads it will say what is wrong
        return False


def _pair(
    sides: float | Sequence[float], said: str = "a slide is asked for at", unit: str = "µm per pixel"
) -> tuple[float, float]:
    values = np.atleast_1d(np.asarray(sides, np.float64))
    rows, columns = float(values[0]), float(values[-1])
    if not all(0 < side < math.inf for side in (rows, columns)):
        raise UserError(f"{said} {rows:g} x {columns:g} {unit}: give numbers above 0.")
    return rows, columns


def _triangles(first: int, end: int, scale: float, size: int) -> tuple[int, csr_matrix]:
    """Return the first source pixel, and the weights ``[end - first, source pixels]``, of pixels of a coarser row.

    As ``torch.nn.functional.interpolate`` (bilinear, antialias) has them.

    Args:
        first: pixel of the result.
        end: the one after the last.
        scale: source pixels in one of the result.
        size: source pixels of the whole row.
    """
    support = max(1.0, scale)
    centres = (np.arange(first, end) + 0.5) * scale
    starts = np.maximum((centres - support + 0.5).astype(int), 0)
    ends = np.minimum((centres + support + 0.5).astype(int), size)
    begin, stop = int(starts.min()), int(ends.max())
    counts = ends - starts
    rows = np.repeat(np.arange(end - first), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = starts[rows] + offsets
    values = np.maximum(0, 1 - np.abs(columns - centres[rows] + 0.5) / support)
    values /= np.bincount(rows, values)[rows]
    matrix = csr_matrix((values.astype(np.float32), (rows, columns - begin)), shape=(end - first, stop - begin))
    return begin, matrix
