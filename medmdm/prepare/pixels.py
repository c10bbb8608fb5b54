"""Pixels in and out: lossless pictures, 16-bit masks, and counts for the table."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmdm.data.files.pictures import read_image
from medmdm.errors import UserError
from medmdm.prepare.cases import Made
from medmdm.prepare.release import SourceFile

__all__ = ["IGNORED", "Label", "count_pixels", "encode_image", "encode_label", "make", "read_label", "read_picture"]

IGNORED = 255  # the class value that losses and metrics leave out
# A third of the default level's time for a twentieth more space.
_COMPRESSION = 3


@dataclass(frozen=True)
class Label:
    """The mask of a case.

    Args:
        array: ``[H, W]`` numbers of classes, or of objects.
        facts: beyond those that are counted in the array.
        columns: for the data list.
        notes: sentences for the end of the table.
    """

    array: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make(
    name: str, image: SourceFile, label_of: Callable[[tuple[int, ...]], Label] | None, instances: bool = True
) -> Made:
    """Make the picture, the mask and the facts of a case.

    Args:
        name: of the case.
        image: read as it is.
        label_of: returns the mask for an image of the size that it is given; ``None`` for a case without one.
        instances: whether the mask numbers objects rather than classes.
    """
    array = read_picture(image)
    shape = array.shape[1:]
    files = {"image": _picture(image, array, name)}
    if label_of is None:
        return Made(files, {"shape": list(shape)})
    label = label_of(shape)
    files["label"] = (f"labels/{name}.png", encode_label(label.array))
    facts = {"shape": list(shape), "pixels": count_pixels(label.array, instances), **label.facts}
    if instances:
        facts["objects"] = int(np.count_nonzero(np.unique(label.array)))
    return Made(files, facts, label.columns, label.notes)


def read_picture(file: SourceFile) -> np.ndarray:
    """Read an image of a release: ``[C, H, W]``, every bit it has."""
    with file.local() as path:
        return read_image(path)


def read_label(file: SourceFile, shape: tuple[int, ...], image: SourceFile) -> np.ndarray:
    """Read a mask of a release as ``[H, W]`` whole numbers from 0 to 65535.

    Raises:
        UserError: it has colours, other values, or another size than its image.
    """
    array = read_picture(file)
    if array.shape[0] == 3 and (array == array[:1]).all():
        array = array[:1]  # grey, stored as colours
    if array.shape[0] != 1:
        raise UserError(f"{file.shown} has colours: a mask must be grey, its values being class or object numbers")
    label = array[0]
    if label.shape != shape:
        raise UserError(
            f"{file.shown} is {label.shape[0]}x{label.shape[1]} but its image {image.shown} is {shape[0]}x{shape[1]}: "
            "a mask must have the size of its image"
        )
    if label.size and not ((label >= 0) & (label <= 65535) & (label == np.round(label))).all():
        raise UserError(f"{file.shown} has values that are no whole numbers from 0 to 65535: they must number classes")
    return label.astype(np.uint16)


def encode_image(array: np.ndarray) -> bytes | None:
    """Return a PNG that decodes to exactly ``array`` (``[C, H, W]``), or ``None`` where PNG has no such type."""
    if array.dtype == np.uint16 and array.shape[0] == 3:
        return _deep_colour_png(array)
    grey = array.shape[0] == 1
    if not (
        (grey and array.dtype in (np.bool_, np.uint8, np.uint16)) or (array.shape[0] == 3 and array.dtype == np.uint8)
    ):
        return None
    return _png(array[0] if grey else np.moveaxis(array, 0, -1))


def encode_label(label: np.ndarray) -> bytes:
    """Return a 16-bit grey PNG of ``[H, W]`` numbers."""
    return _png(label.astype(np.uint16))


def count_pixels(label: np.ndarray, instances: bool) -> dict[str, int]:
    """Return the number of pixels by class as a JSON object; all instances are of class 1, ignored pixels left out."""
    if instances:
        foreground = int(np.count_nonzero(label))
        return {"0": label.size - foreground, "1": foreground}
    values, counts = np.unique(label, return_counts=True)
    return {str(v): int(c) for v, c in zip(values.tolist(), counts.tolist(), strict=True) if v != IGNORED}


def _picture(file: SourceFile, array: np.ndarray, name: str) -> tuple[str, bytes]:
    content = encode_image(array)
    if content is not None:
        return f"images/{name}.png", content
    with file.local() as path:  # a type that PNG cannot hold, such as floats: the file stays what it was
        return f"images/{name}{file.suffix}", path.read_bytes()


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=_COMPRESSION)
    return buffer.getvalue()


def _deep_colour_png(array: np.ndarray) -> bytes:
    import SimpleITK as sitk  # noqa: N813 - slow to import; Pillow has no 16-bit colour

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        sitk.WriteImage(
            sitk.GetImageFromArray(np.moveaxis(array, 0, -1), isVector=True), str(path), useCompression=True
        )
        return path.read_bytes()
