"""Which parts of a labelled image a head learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.transforms import Compose, RandFlipd, RandSpatialCropd
from torch import Tensor
from torch.nn import functional as F

from medmdm.data.reading import Example, LoadedCase
from medmdm.data.transforms.spatial import PadToSize
from medmdm.errors import UserError
from medmdm.heads.task import Reading
from medmdm.labels import IGNORE

__all__ = ["VIEWS", "random_crop", "view_sizes", "views"]

VIEWS = ("whole", "windows", "crops")


def views(
    example: Example,
    kind: str = "windows",
    window: Sequence[int] = (256, 256),
    overlap: float = 0.2,
    per_image: int = 1,
    seed: int = 0,
) -> list[Example]:
    """Cut an image into the windows that a frozen backbone reads.

    Args:
        example: the labelled image.
        kind: ``"whole"``, the image as it is; ``"windows"``, a grid that covers it; ``"crops"``, ``per_image`` random
            crops, half of them mirrored, as the paper draws them.
        window: size of windows and crops; smaller images are padded, the padding being ignored.
        overlap: of neighbouring windows, as a share of the window, in [0, 1).
        per_image: number of crops.
        seed: of the crops; with the case's id it fixes them.

    Raises:
        UserError: an unknown kind.
    """
    if kind == "whole":
        return [example]
    if kind not in VIEWS:
        raise UserError(f"views must be one of {', '.join(VIEWS)}, got {kind!r}.")
    if kind == "crops":
        rng = np.random.default_rng([seed, 5, *example.case.encode()])
        return [random_crop(example, window, int(rng.integers(2**31))) for _ in range(per_image)]
    image, label = _padded(example, window)
    step = [max(1, int(n * (1 - overlap))) for n in window]
    places = dense_patch_slices(tuple(label.shape), tuple(window), tuple(step))
    parts = [(tuple(place), (slice(None), *place)) for place in places]
    return [replace(example, image=image[every], label=label[place]) for place, every in parts]


def random_crop(
    example: Example, window: Sequence[int], seed: int, flips: Sequence[int] = (1,), transform: Any = None
) -> Example:
    """Return a random crop, mirrored with probability 1/2 along each of some axes.

    Args:
        example: the labelled image; smaller ones are padded, the padding being ignored.
        window: size of the crop.
        seed: fixes the crop.
        flips: spatial axes that may be mirrored; 1, the paper's, is left-right.
        transform: further random MONAI dictionary transforms for ``image`` and ``label``.
    """
    image, label = _padded(example, window)
    keys = ("image", "label")
    chain = Compose(
        [
            RandSpatialCropd(keys, roi_size=list(window), random_size=False),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in flips),
            *([] if transform is None else [transform]),
        ]
    )
    chain.set_random_state(seed=seed)
    out = chain({"image": image, "label": label[None]})
    return replace(
        example,
        image=torch.as_tensor(out["image"]).contiguous(),
        label=torch.as_tensor(out["label"])[0].contiguous(),
    )


def _padded(example: Example, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad to at least the window: the image by reflection, on both sides; the label by the ignored class."""
    image = PadToSize(window)(example.image)
    missing = [new - old for new, old in zip(image.shape[1:], example.label.shape, strict=True)]
    both = [n for m in reversed(missing) for n in (m // 2, m - m // 2)]
    return image, F.pad(example.label, both, value=IGNORE)


def view_sizes(cases: Sequence[LoadedCase], reading: Reading) -> list[tuple[int, ...]]:
    """Return the sizes of all that a backbone will read of some cases, to say beforehand what the features take."""
    examples = [example for case in cases for example in case.examples]
    read = (view for e in examples for view in views(e, reading.kind, reading.window, reading.overlap))
    return [tuple(view.image.shape[1:]) for view in read]
