"""OME-TIFF: pictures whose pixels have a size and whose channels have names, as QuPath, Fiji and napari open them."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.errors import UserError
from medmdm.files import atomic_file, pixel_hash

TILE = 512  # pixels; pictures that are no longer on either side are written in strips


def write_ome_tiff(
    path: str | os.PathLike[str],
    array: np.ndarray,
    spacing: Sequence[float] | None = None,
    channels: Sequence[str] | None = None,
) -> Path:
    """Write one picture as OME-TIFF, deflated and atomically; equal content gives equal bytes.

    Args:
        path: its name, by custom ending in ``.ome.tif``.
        array: ``[H, W]``, or ``[C, H, W]``: a page for each channel; whole numbers up to 32 bits or floats.
        spacing: mm between rows and between columns; written as physical size in µm. None: not known.
        channels: a name for each channel.

    Returns:
        The path.

    Raises:
        UserError: the array has another shape or type, or the number of names is not that of the channels.

    Source:
        https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/
    """
    import tifffile  # slow to import

    path, array = Path(path), np.ascontiguousarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim not in (2, 3) or not array.size:
        raise UserError(f"{path}: the array has the shape {array.shape}, expected [H, W] or [C, H, W].")
    if array.dtype.kind not in "uif" or (array.dtype.kind in "ui" and array.dtype.itemsize > 4):
        raise UserError(f"{path}: OME-TIFF holds no {array.dtype}: use whole numbers up to 32 bits, or floats.")
    if channels is not None and (array.ndim != 3 or len(channels) != len(array)):
        raise UserError(f"{path}: there are {len(channels)} names for channels of an array of shape {array.shape}.")
    metadata: dict[str, Any] = {"axes": "CYX" if array.ndim == 3 else "YX", **physical_size(spacing)}
    if channels is not None:
        metadata["Channel"] = {"Name": list(channels)}
    identity = hashlib.sha256(f"{pixel_hash(array)} {metadata}".encode()).digest()
    metadata["UUID"] = f"urn:uuid:{uuid.UUID(bytes=identity[:16], version=4)}"
    tiled = {"tile": (TILE, TILE)} if max(array.shape[-2:]) > TILE else {}
    with atomic_file(path) as file, tifffile.TiffWriter(file, ome=True, bigtiff=array.nbytes > 2**31) as writer:
        writer.write(array, photometric="minisblack", compression="zlib", metadata=metadata, **tiled)
    return path


def physical_size(spacing: Sequence[float] | None) -> dict[str, Any]:
    """Return what OME's metadata says of the size of pixels, ``spacing`` being mm between rows and columns."""
    if spacing is None:
        return {}
    rows, columns = (float(step) * 1000 for step in spacing)
    return {
        "PhysicalSizeX": columns, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": rows, "PhysicalSizeYUnit": "µm",
    }  # fmt: skip
