"""Corruption by hiding parts of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.errors import UserError


@buildable
@dataclass(frozen=True)
class PatchMasking(Corruption):
    """Masked diffusion: hide whole patches, ever more of them as t grows (arXiv 2308.05695, section 3).

    The image is cut into L patches; ``floor(L * (1 - t/T))`` of them, drawn uniformly without replacement and
    independently for each image, stay visible. The others are set to 0 (mid-grey) in all channels.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
    """

    patch_size: int | Sequence[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([self.patch_size] if isinstance(self.patch_size, int) else self.patch_size) < 1:
            raise UserError(f"patch_size must be at least 1, got {self.patch_size}.")

    def grid(self, spatial: Sequence[int]) -> list[int]:
        """Return the numbers of patches along the axes of an image of ``spatial`` pixels."""
        patch = ensure_tuple_rep(self.patch_size, len(spatial))
        if any(size % edge for size, edge in zip(spatial, patch, strict=True)):
            raise UserError(
                f"An image of {tuple(spatial)} pixels cannot be cut into patches of {patch}: "
                "choose a crop size that patch_size divides."
            )
        return [size // edge for size, edge in zip(spatial, patch, strict=True)]

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Give each pixel the value of its patch: ``[B, 1, *grid]`` → ``[B, 1, *spatial]``."""
        for axis, edge in enumerate(ensure_tuple_rep(self.patch_size, patches.ndim - 2), start=2):
            patches = patches.repeat_interleave(edge, dim=axis)
        return patches

    def visible(self, x0: Tensor, t: Tensor, generator: Generators) -> Tensor:
        """Draw which pixels stay, as ``[B, 1, *spatial]`` of x0's type."""
        grid = self.grid(x0.shape[2:])
        count = math.prod(grid)
        # In integers, floor(L (1 - t/T)) does not suffer from 1 - t/T being rounded.
        keep = count * (self.num_timesteps - t) // self.num_timesteps
        scores = draw(torch.rand, (x0.shape[0], count), generator, x0.device)
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        return self.to_pixels((rank < keep[:, None]).to(x0.dtype).reshape(-1, 1, *grid))

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        visible = self.visible(x0, t, generator)
        return Corrupted(x0 * visible, visible, scale=visible)
