"""Made slides of any size, written tile by tile, so that a slide larger than memory can be made to test with.

``python -m tests.made_slides PATH HEIGHT WIDTH`` makes one by hand.
"""

from __future__ import annotations

import argparse
import functools
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

TILE = 256
_PERIOD = 1021, 1531  # of the texture: primes, so that it does not repeat with tiles
# (rows, columns) of the finest level -> uint8 [rows, columns, 3]
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


@functools.cache
def _texture() -> np.ndarray:
    y, x = np.mgrid[: _PERIOD[0], : _PERIOD[1]].astype(np.float32)
    cells = (np.sin(y / 5.3) * np.sin(x / 7.1) > 0.45)[..., None]
    slow = (12 * np.sin(y / 310 + x / 170))[..., None]
    plain = np.where(cells, np.array([96, 70, 150], np.float32), np.array([205, 130, 180], np.float32))
    return np.clip(plain + slow, 0, 255).astype(np.uint8)


def tissue_everywhere(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Stained tissue with cells, a function of the place alone: parts are what they are in the whole."""
    return _texture()[(rows % _PERIOD[0])[:, None], columns % _PERIOD[1]]


def tissue_in(height: int, width: int, share: float = 0.5) -> Paint:
    """Glass around one ellipse of tissue, off the centre and not round, that takes about ``share`` of a slide."""

    def paint(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        radius = np.sqrt(share / np.pi)
        y, x = (rows / height - 0.55) / (0.8 * radius), (columns / width - 0.4) / (1.25 * radius)
        inside = (y[:, None] ** 2 + x**2 < 1)[..., None]
        glass = np.array([244, 243, 245], np.uint8)
        if not inside.any():
            return np.broadcast_to(glass, (len(rows), len(columns), 3))
        return np.where(inside, tissue_everywhere(rows, columns), glass)

    return paint


def painted(shape: tuple[int, int], paint: Paint = tissue_everywhere) -> np.ndarray:
    """The finest level, ``[3, H, W]``."""
    return np.ascontiguousarray(np.moveaxis(paint(np.arange(shape[0]), np.arange(shape[1])), -1, 0))


def write_slide(
    path: Path,
    shape: tuple[int, int],
    paint: Paint = tissue_everywhere,
    kind: str = "ome",
    mpp: float = 0.5,
    levels: int = 3,
) -> Path:
    """Write a pyramid whose levels are each half of the one before: every second pixel of it.

    Args:
        path: of the file, ``.ome.tif``, ``.tif`` or ``.svs``.
        shape: rows and columns of the finest level.
        paint: gives its pixels.
        kind: ``"ome"``: OME-TIFF, levels in sub-IFDs, deflated; ``"plain"``: pages one after the other, deflated;
            ``"aperio"``: JPEG with the description of an SVS, which OpenSlide reads.
        mpp: µm of the finest level.
        levels: how many.
    """

    def tiles(step: int) -> Iterator[bytes]:
        height, width = (-(-n // step) for n in shape)
        for row in range(0, height, TILE):
            for column in range(0, width, TILE):
                h, w = min(TILE, height - row), min(TILE, width - column)
                pixels = paint(np.arange(row, row + h) * step, np.arange(column, column + w) * step)
                if (
                    pixels.strides[0] == 0 and (h, w) == (TILE, TILE) and kind != "aperio"
                ):  # one colour: most of a slide
                    yield _deflated(tuple(pixels[0, 0].tolist()))
                    continue
                part = np.zeros((TILE, TILE, 3), np.uint8)
                part[:h, :w] = pixels
                yield _jpeg(part) if kind == "aperio" else zlib.compress(part.tobytes(), 1)

    with tifffile.TiffWriter(path, bigtiff=True, ome=kind == "ome") as file:
        for number in range(levels):
            size = tuple(-(-n // 2**number) for n in shape)
            options: dict = {"subfiletype": 1 if number else 0, "metadata": None}
            if kind == "ome" and number == 0:
                sizes = {
                    "PhysicalSizeX": mpp,
                    "PhysicalSizeY": mpp,
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeYUnit": "µm",
                }
                options |= {"subifds": levels - 1, "metadata": {"axes": "YXS", **sizes}}
            elif kind == "plain" and number == 0:
                options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            elif kind == "aperio":
                text = f"Aperio Image Library v11.2.1\n{size[1]}x{size[0]}"
                options["description"] = text + (f" |AppMag = 20|MPP = {mpp}" if number == 0 else "")
            file.write(
                tiles(2**number), shape=(*size, 3), dtype="uint8", tile=(TILE, TILE), photometric="rgb",
                compression="adobe_deflate", **options,
            )  # fmt: skip
    if (
        kind == "aperio"
    ):  # tifffile writes tiles as they are given, but has no JPEG of its own: the entries are corrected
        with tifffile.TiffFile(path, mode="r+b") as file:
            for page in file.pages:
                page.tags["Compression"].overwrite(7)
                page.tags["PhotometricInterpretation"].overwrite(6)
    return path


@functools.cache
def _deflated(colour: tuple[int, ...]) -> bytes:
    return zlib.compress(np.full((TILE, TILE, 3), colour, np.uint8).tobytes())


def _jpeg(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a slide.")
    parser.add_argument("path", type=Path)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--kind", choices=("ome", "plain", "aperio"), default="ome")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the slide that is tissue; 1 for all of it")
    given = parser.parse_args()
    size = given.height, given.width
    given.path.parent.mkdir(parents=True, exist_ok=True)
    tissue = tissue_everywhere if given.share >= 1 else tissue_in(*size, given.share)
    write_slide(given.path, size, tissue, given.kind, levels=given.levels)
