"""Cases that were segmented, made by hand: asymmetric masks on pictures that are not square."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmdm.data.reading import Example, LoadedCase
from medmdm.segment.formats.base import Origin, Segmented

NAMES = ("background", "gland", "Tumor ü")


def made_mask() -> np.ndarray:
    """``[20, 33]``: an L with a hole, two parts that touch at a corner, one of another class beside it."""
    mask = np.zeros((20, 33), np.uint8)
    mask[2:15, 3:9] = 1
    mask[12:15, 3:20] = 1
    mask[5:8, 5:7] = 0
    mask[15:17, 20:24] = 1  # touches the L at a corner
    mask[4:9, 9:12] = 2  # shares an edge with it
    mask[19, 32] = 2
    return mask


def made_case(shape: tuple[int, ...], entry: dict[str, Any] | None = None, **arguments: Any) -> LoadedCase:
    settings = {"spacing": (0.0005, 0.0005), "hashes": ("0" * 64, "0" * 64), **arguments}
    example = Example(torch.zeros(3, *shape), torch.zeros(shape, dtype=torch.long), "a")
    entry = {"case": "a", "name": "folder/a.png", "image": "folder/a.png", **(entry or {})}
    return LoadedCase(entry, [example], (), settings.pop("slicing", None), None, shape, **settings)


def segmented(folder: Path, mask: np.ndarray, instances: np.ndarray | None = None, **arguments: Any) -> Segmented:
    """A segmented picture whose class is 0.75 probable in every pixel, and in the first row 0.25."""
    share = np.full(mask.shape, 0.75, np.float32)
    share[0] = 0.25
    probabilities = np.stack([np.where(mask == number, share, (1 - share) / 2) for number in range(len(NAMES))])
    case = made_case(mask.shape, **arguments)
    return Segmented(folder, case, mask, instances, probabilities, Origin(NAMES, "ab" * 32))
