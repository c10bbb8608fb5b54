"""The mean of the labelled masks, kept in a run folder; see :func:`medmdm.metrics.baselines.mean_mask`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmdm.errors import UserError
from medmdm.files import atomic_file

MEAN_MASK_FILE = "mean_mask.npz"


def keep_mean_mask(folder: Path, mask: NDArray[np.uint8] | None) -> None:
    """Write it, atomically; ``None`` takes away that of an earlier evaluation.

    Args:
        folder: the run folder.
        mask: class numbers, ``[*spatial]``.
    """
    if mask is None:
        (folder / MEAN_MASK_FILE).unlink(missing_ok=True)
        return
    with atomic_file(folder / MEAN_MASK_FILE) as file:
        np.savez_compressed(file, mask=mask)


def read_mean_mask(folder: Path) -> NDArray[np.uint8] | None:
    """Return it, ``None`` where a run folder has none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / MEAN_MASK_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path) as content:
            mask: NDArray[np.uint8] = content["mask"]
    except Exception as error:  # a damaged zip raises whatever comes to pass: zlib's, NotImplementedErrors, ...
        raise UserError(f"{path} cannot be read ({error}): segment again.") from error
    return mask
