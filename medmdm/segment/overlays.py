"""Small pictures of what was predicted: the image as the network reads it, and the outlines of the masks on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries
from torch import Tensor

from medmdm.data.reading import LoadedCase
from medmdm.data.writers import encode_picture
from medmdm.files import atomic_write, mark_outputs
from medmdm.segment.formats.base import COLOURS

FOLDER = "overlays"
_ROWS = 64  # that are scaled at once
MOST_SIDE = 1024  # pixels of the longer side


def draw_overlay(
    folder: str | os.PathLike[str], case: LoadedCase, mask: np.ndarray, instances: np.ndarray | None = None
) -> str:
    """Draw the image of a case with the outlines of its mask; of a volume the slice that holds most of it.

    Args:
        folder: receives ``overlays/<case>.png``, at most :data:`MOST_SIDE` pixels high and wide.
        case: with the images that were read.
        mask: class numbers ``[*spatial]`` on the grid of the case.
        instances: numbers of objects, so that those that touch are drawn apart.

    Returns:
        The file's path in the folder.
    """
    objects = mask if instances is None else instances
    number = 0
    if case.slicing is not None:
        masks, several = (case.slicing.to_slices(values[None])[:, 0] for values in (mask, objects))
        foreground = np.count_nonzero(masks, axis=(1, 2))
        number = int(foreground.argmax()) if foreground.any() else len(masks) // 2
        mask, objects = masks[number], several[number]
    rows, columns = (max(1, round(n * min(1.0, MOST_SIDE / max(mask.shape)))) for n in mask.shape)
    planes = [_resized(plane, (rows, columns), Image.Resampling.BILINEAR) for plane in _planes(case, number, columns)]
    picture = np.stack(planes if len(planes) == 3 else planes * 3)
    classes, objects = (_resized(values, (rows, columns), Image.Resampling.NEAREST) for values in (mask, objects))
    outlines = find_boundaries(objects, mode="inner") & (classes > 0)
    table = np.array([COLOURS[k % len(COLOURS)] for k in range(-1, int(classes.max()))], np.uint8)
    picture[:, outlines] = table[classes[outlines]].T
    mark_outputs(Path(folder) / FOLDER)
    name = f"{FOLDER}/{case.name}.png"
    atomic_write(Path(folder) / name, encode_picture(picture, ".png"))
    return name


def _planes(case: LoadedCase, number: int, columns: int) -> Iterator[np.ndarray]:
    """Yield red, green and blue, or grey, of a picture or a slice as 8 bits, one after the other in one array.

    They have as many columns as asked for, made narrower a few rows at a time, so that the whole plane is never there.
    """
    picture = case.slicing is None
    whole = None if picture else _slice(case, number)
    size = case.image_size if whole is None else tuple(whole.shape[1:])
    channels = len(case.rows(0, 1) if whole is None else whole)
    levels = np.empty((size[0], columns), np.uint8)
    for channel in range(3) if picture and channels == 3 else (channels // 2,):
        for first in range(0, size[0], _ROWS):
            rows = slice(first, min(first + _ROWS, size[0]))
            image = case.rows(rows.start, rows.stop) if whole is None else whole[:, rows]
            part = np.clip((image[channel].numpy() + 1) * 127.5, 0, 255).round().astype(np.uint8)
            levels[rows] = _resized(part, (len(part), columns), Image.Resampling.BILINEAR)
        yield levels


def _slice(case: LoadedCase, number: int) -> Tensor:
    """Return a slice of a volume as networks read it; ``number`` is the file's."""
    if case.slices:
        return case.examples[case.slices.index(number) if number in case.slices else len(case.slices) // 2].image
    assert case.slicing is not None
    image = case.examples[0].image
    return image[:, int((number + 0.5) * image.shape[1] / case.slicing.num_slices)]


def _resized(plane: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if plane.shape == size:
        return plane.copy()
    whole = plane if plane.dtype == np.uint8 else plane.astype(np.int32)  # what Pillow resizes
    return np.asarray(Image.fromarray(whole).resize(size[::-1], how))
