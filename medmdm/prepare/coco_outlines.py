"""COCO's outlines as masks, through pycocotools: polygons, run lengths, and run lengths as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmdm.errors import UserError

_FAR = 1.0  # sizes of the image by which a polygon may leave it: further out it was drawn on another one


def outline_mask(outline: Any, shape: Sequence[int], name: str) -> np.ndarray:
    """Return which pixels an annotation's ``segmentation`` covers.

    Polygons are filled as COCO's own API does, whose pixel (0, 0) covers coordinates 0 to 1; several polygons of one
    annotation are united. What pycocotools would take for a box, or decode from memory that nobody wrote, is refused.

    Args:
        outline: list of polygons ``[x, y, x, y, ...]``, or ``{"size": [rows, columns], "counts": ...}``, where the
            counts are run lengths, column by column, or their text.
        shape: rows and columns of the image.
        name: of the annotation, for sentences.

    Returns:
        ``[H, W]`` bool.

    Raises:
        UserError: it is no outline on this image.

    Source: https://github.com/cocodataset/cocoapi, ``common/maskApi.c``.
    """
    from pycocotools import mask as coco

    rows, columns = shape
    if isinstance(outline, dict):
        _check_run_lengths(outline, rows, columns, name)
        counts = outline["counts"]
        size = [rows, columns]
        if isinstance(counts, list):
            encoded = coco.frPyObjects({"size": size, "counts": counts}, rows, columns)
        else:
            encoded = {"size": size, "counts": counts.encode("ascii")}
    else:
        _check_polygons(outline, rows, columns, name)
        encoded = coco.merge(coco.frPyObjects(outline, rows, columns))
    return coco.decode(encoded).astype(bool)


def _check_polygons(polygons: Any, rows: int, columns: int, name: str) -> None:
    if not isinstance(polygons, list) or not polygons:
        raise UserError(f"{name} has no outline that is a list of polygons or run lengths: outline it or remove it.")
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            points = np.empty((0, 0))
        if points.ndim != 1 or len(points) % 2 or len(points) < 6:
            raise UserError(f"{name} has a polygon that is no list of x, y of three or more points: correct it.")
        if not np.isfinite(points).all():
            raise UserError(f"{name} has a polygon with coordinates that are not finite: correct it.")
        for values, size, axis in ((points[::2], columns, "x"), (points[1::2], rows, "y")):
            if values.min() < -_FAR * size or values.max() > (1 + _FAR) * size:
                raise UserError(
                    f"{name} has {axis} from {values.min():g} to {values.max():g}, far outside its image of "
                    f"{rows}x{columns}: it may have been drawn on another size; correct it."
                )


def _check_run_lengths(outline: dict[str, Any], rows: int, columns: int, name: str) -> None:
    counts, size = outline.get("counts"), outline.get("size")
    if size != [rows, columns]:
        raise UserError(f"{name} has run lengths for a size of {size}, but its image is {rows}x{columns}: correct it.")
    try:
        lengths: Any = _run_lengths(counts.encode("ascii")) if isinstance(counts, str) else counts
        sound = isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)
    except (IndexError, ValueError):
        sound = False
    if not sound or sum(lengths) != rows * columns:
        raise UserError(f"{name} has run lengths that do not cover {rows}x{columns} pixels: it is damaged.")


def _run_lengths(text: bytes) -> list[int]:
    """Decode COCO's text of run lengths: six bits a character, differences to the last run but one from the fourth."""
    lengths: list[int] = []
    i = 0
    while i < len(text):
        value, shift, more = 0, 0, True
        while more:
            character = text[i] - 48
            value |= (character & 0x1F) << shift
            more = bool(character & 0x20)
            i, shift = i + 1, shift + 5
            if not more and character & 0x10:
                value |= -1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths
