"""Pictures of cases: the image, the outlines of truth and prediction over it, and maps of uncertainty."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from medmdm.data.files.volumes import Slicing
from medmdm.reports.case_files import CaseArrays

logger = logging.getLogger(__name__)

FEATURES_FILE = "features.png"  # in the run folder: some cases above what the backbone makes of them
_FEATURE_CASES = 6
UNITS = 10  # of the drawing in a pixel of the picture: outlines are whole numbers of them
_TOLERANCE = 0.35  # pixels of the picture by which outlines are simplified
_MAP_SIDE = 256
_LOSSLESS = 128 * 128  # pixels up to which pictures are PNG
# From dark to light in steady steps of lightness, so that a grey copy shows the same order.
_HEAT = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


@dataclass
class CasePicture:
    """What a page shows of a case."""

    width: int  # of the picture in its own pixels
    height: int
    image: bytes | None  # JPEG or PNG; None where the image is gone
    truth: dict[int, str]  # class → outlines as an SVG path, in units of a tenth of a pixel
    prediction: dict[int, str]
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # name → [rows, columns], those written
    caption: str = ""  # which slice of a volume it is, empty for pictures

    @property
    def units(self) -> tuple[int, int]:
        """Width and height in the units of the outlines."""
        return self.width * UNITS, self.height * UNITS

    @property
    def size(self) -> int:
        """Bytes, about what it takes in the page."""
        outlines = sum(len(path) for paths in (self.truth, self.prediction) for path in paths.values())
        return outlines + 4 * len(self.image or b"") // 3 + sum(values.size // 4 for values in self.maps.values())


def picture_side(cases: int) -> int:
    """Return how many pixels the longer side of a picture may have, so that pages of many cases stay small."""
    return next((side for most, side in ((40, 640), (120, 448), (400, 288), (1200, 192)) if cases <= most), 128)


def feature_cases(count: int) -> list[int]:
    """Return which of so many cases stand in :data:`FEATURES_FILE`, evenly spread over their order."""
    shown = min(count, _FEATURE_CASES)
    return [number * count // shown for number in range(shown)]


def feature_panel(folder: Path) -> bytes | None:
    """Return the panel of a run folder as a small picture file; None without one that can be read."""
    path = folder / FEATURES_FILE
    try:
        with Image.open(path) as picture:
            return _bytes(picture.convert("RGB"))
    except FileNotFoundError:
        return None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        logger.warning("%s cannot be read (%s): the page does without.", path, error)
        return None


def draw_case(arrays: CaseArrays, classes: int, side: int) -> CasePicture:
    """Draw a picture, or of a volume the axial slice that holds most of the truth (else of the prediction).

    ``classes`` include the background; ``side`` is in pixels, of the longer side at most.
    """
    planes, spacing, caption = _planes(arrays)
    rows, columns = planes["truth"].shape
    # Pixels that are not square are drawn as what they cover.
    tall, wide = rows * spacing[0], columns * spacing[1]
    unit = min(spacing) if max(tall, wide) / min(spacing) <= side else max(tall, wide) / side
    height, width = max(round(tall / unit), 1), max(round(wide / unit), 1)

    def outlines(objects: str, numbers: str) -> dict[int, str]:
        if planes.get(objects) is not None and classes == 2:  # objects that touch stay apart
            return {1: _path(_objects(planes[objects]), planes[objects].shape, (height, width))}
        masks = {k: planes[numbers] == k for k in range(1, classes)}
        return {k: _path([(mask, 0, 0)], mask.shape, (height, width)) for k, mask in masks.items() if mask.any()}

    return CasePicture(
        width=width,
        height=height,
        image=None if planes.get("image") is None else _encode(planes["image"], (height, width), arrays.window),
        truth=outlines("truth_instances", "truth"),
        prediction=outlines("predicted_instances", "prediction"),
        maps={name: _shrunk(planes[name], (height, width)) for name in arrays.maps if planes.get(name) is not None},
        caption=caption,
    )


def encode_map(values: NDArray[np.float32], top: float) -> bytes:
    """Return a map as JPEG, dark at 0 and light at ``top``."""
    anchors = np.asarray(_HEAT, np.float64)
    table = np.stack([np.interp(np.arange(256), np.linspace(0, 255, len(anchors)), c) for c in anchors.T], axis=1)
    level = np.clip(values / top if top > 0 else np.zeros_like(values), 0, 1)
    picture = table.round().astype(np.uint8)[(level * 255).round().astype(np.uint8)]
    return _bytes(Image.fromarray(picture))


def _planes(arrays: CaseArrays) -> tuple[dict[str, np.ndarray], tuple[float, float], str]:
    """Return what is drawn as ``[rows, columns]`` (the image ``[C, rows, columns]``), the pixel's size, the caption."""
    names = ("truth", "prediction", "truth_instances", "predicted_instances")
    given = {name: getattr(arrays, name) for name in names if getattr(arrays, name) is not None} | dict(arrays.maps)
    if arrays.affine is None:
        return given | ({} if arrays.image is None else {"image": arrays.image}), (1.0, 1.0), ""
    slicing = Slicing(arrays.truth.shape, arrays.affine)
    sliced = {name: slicing.to_slices(volume[None]) for name, volume in given.items()}
    numbers = next((s for s in (sliced["truth"], sliced["prediction"]) if s.any()), None)
    chosen = slicing.num_slices // 2 if numbers is None else int(np.argmax(np.count_nonzero(numbers, axis=(1, 2, 3))))
    planes = {name: slices[chosen, 0] for name, slices in sliced.items()}
    if arrays.image is not None:
        planes["image"] = slicing.to_slices(arrays.image)[chosen]
    return planes, slicing.spacing, f"{slicing.axis} slice {chosen + 1} of {slicing.num_slices}"


def _encode(image: np.ndarray, size: tuple[int, int], window: Sequence[tuple[float, float]] | None = None) -> bytes:
    """Return ``[C, rows, columns]`` as a small picture file, black and white at the ends of a window."""
    channels = image if image.shape[0] == 3 else image[:1]
    if channels.dtype == np.bool_:
        channels = channels.astype(np.uint8) * 255
    elif window is not None or channels.dtype != np.uint8:
        finite = channels[np.isfinite(channels)].astype(np.float64)
        ends = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 0.0)
        pairs = [ends] if window is None else window[: len(channels)] if len(window) >= len(channels) else window[:1]
        low, high = np.array(pairs, np.float64).T[:, :, None, None]
        scaled = (np.nan_to_num(channels.astype(np.float64)) - low) / np.where(high > low, high - low, 1.0)
        channels = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    array = channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(array))
    rows, columns = size
    if picture.size != (columns, rows):
        picture = picture.resize((columns, rows), Image.Resampling.LANCZOS)
    return _bytes(picture)


def _bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if picture.width * picture.height <= _LOSSLESS:  # compression shows when few pixels are drawn large
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    return buffer.getvalue()


def _shrunk(values: np.ndarray, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map to the picture, or smaller."""
    factor = min(1.0, _MAP_SIDE / max(size))
    rows, columns = (max(round(n * factor), 1) for n in size)
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BOX), np.float32)


def _objects(numbers: NDArray[np.integer]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """Cut each object out of a map of numbers, with the row and column where it starts."""
    dense = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape)
    if numbers.size and numbers.min() > 0:  # no background: the smallest number is an object too
        dense = dense + 1
    for number, box in enumerate(ndimage.find_objects(dense), 1):
        yield dense[box] == number, box[0].start, box[1].start


def _path(masks: Iterable[tuple[NDArray[np.bool_], int, int]], shape: tuple[int, int], size: tuple[int, int]) -> str:
    """Return the outlines of masks, each with its first row and column in a plane of ``shape``, as one SVG path."""
    scale = np.array(size, np.float64) / np.array(shape)
    parts = []
    for mask, row, column in masks:
        for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
            # A contour point is at a pixel's centre, and the padding moved everything by one.
            points = (line - 0.5 + (row, column)) * scale
            simple = approximate_polygon(points, _TOLERANCE)
            parts.append(_closed(np.round(simple[:, ::-1] * UNITS).astype(np.int64)))
    return "".join(parts)


def _closed(points: NDArray[np.int64]) -> str:
    """Return a closed line; steps from point to point take fewer digits than places."""
    steps = " ".join(f"{x} {y}" for x, y in np.diff(points[:-1], axis=0))
    return f"M{points[0][0]} {points[0][1]}{'l' if steps else ''}{steps}z"


def top_value(maps: Iterable[Mapping[str, NDArray[np.float32]]], name: str) -> float:
    """Return the value that is drawn lightest in all maps of one kind, so that cases can be compared."""
    return max((float(np.percentile(m[name], 99.5)) for m in maps if name in m), default=0.0)
