"""Large results, in little memory: halved level by level in a store on the disk, written as pyramidal OME-TIFF."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from medmdm.data.ome_tiff import physical_size
from medmdm.errors import UserError
from medmdm.files import atomic_file

TILE = 512
_BLOCK = 2048  # pixels along the side of what is in memory
_SMALLEST = 1024  # pixels along the longer side of the last level, at most


def open_store(folder: Path) -> Any:
    """Return a new zarr group of arrays in a folder.

    Raises:
        UserError: zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise UserError("what is made of slides is collected by zarr: pip install 'medmdm[slides]'.") from error
    return zarr.open_group(str(folder), mode="w")


def new_array(store: Any, name: str, shape: Sequence[int], dtype: str, fill: float) -> Any:
    """Return a new array ``[..., H, W]`` of a store, in tiles; those never written hold ``fill`` and take no space."""
    create = getattr(store, "create_array", None) or store.create_dataset  # of zarr 3, of zarr 2
    chunks = (*[1] * (len(shape) - 2), TILE, TILE)
    return create(name, shape=tuple(shape), chunks=chunks, dtype=dtype, fill_value=fill)


def blocks(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of an array's parts that fit into memory."""
    for row in range(0, shape[-2], _BLOCK):
        for column in range(0, shape[-1], _BLOCK):
            yield slice(row, min(row + _BLOCK, shape[-2])), slice(column, min(column + _BLOCK, shape[-1]))


def halved(store: Any, name: str, finest: Any) -> list[Any]:
    """Return the levels of a pyramid, the finest first.

    Of whole numbers a coarser level has every second pixel, of others the means of four.

    Args:
        store: receives the other levels.
        name: of the finest one, for theirs.
        finest: ``[..., H, W]``.
    """
    levels = [finest]
    while max(levels[-1].shape[-2:]) > _SMALLEST:
        fine = levels[-1]
        size = [-(-n // 2) for n in fine.shape[-2:]]
        shape = (*fine.shape[:-2], *size)
        coarse = new_array(store, f"{name}_{len(levels)}", shape, str(fine.dtype), 0)
        for channel in np.ndindex(*fine.shape[:-2]):
            for rows, columns in blocks(fine.shape):
                part = (*channel, rows, columns)
                values = fine[part]
                if np.dtype(fine.dtype).kind == "f":
                    values = np.pad(values, [(0, n % 2) for n in values.shape], mode="edge")
                    values = values.reshape(values.shape[0] // 2, 2, values.shape[1] // 2, 2).mean(axis=(1, 3))
                else:
                    values = values[::2, ::2]
                row, column = rows.start // 2, columns.start // 2
                place = (*channel, slice(row, row + len(values)), slice(column, column + values.shape[1]))
                coarse[place] = values
        levels.append(coarse)
    return levels


def write_pyramid(path: str | os.PathLike[str], levels: Sequence[Any], mpp: tuple[float, float]) -> None:
    """Write a pyramid tile by tile, atomically: deflated, the coarser levels in sub-IFDs, as OME-TIFF 6 has it.

    Args:
        path: ``.ome.tif``.
        levels: arrays ``[H, W]`` or ``[C, H, W]`` of one type, the finest first.
        mpp: µm between its rows, and between its columns.
    """
    path = Path(path)
    finest = levels[0]
    sizes = physical_size([step / 1000 for step in mpp])
    metadata: dict[str, Any] = {"axes": "YX" if finest.ndim == 2 else "CYX", **sizes, "Name": path.name}
    # Else tifffile draws one, and the same result would be other bytes.
    metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {finest.shape} {mpp}"))
    with atomic_file(path) as file, tifffile.TiffWriter(file, bigtiff=True, ome=True) as writer:
        for number, level in enumerate(levels):
            options = {"subfiletype": 1, "metadata": None} if number else {"subifds": len(levels) - 1}
            writer.write(
                _tiles(level), shape=level.shape, dtype=level.dtype, tile=(TILE, TILE), photometric="minisblack",
                compression="adobe_deflate", maxworkers=1, **{"metadata": metadata, **options},
            )  # fmt: skip


def _tiles(level: Any) -> Iterator[np.ndarray]:
    for channel in np.ndindex(*level.shape[:-2]):
        for row in range(0, level.shape[-2], TILE):
            for column in range(0, level.shape[-1], TILE):
                place = (*channel, slice(row, row + TILE), slice(column, column + TILE))
                part = level[place]
                yield np.pad(part, [(0, TILE - n) for n in part.shape])
