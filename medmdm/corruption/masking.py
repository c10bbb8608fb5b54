"""Corruption by hiding parts of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.errors import UserError

__all__ = ["PatchMasking"]


class PatchMasking(Corruption):
    """Masked diffusion: hide whole patches, ever more of them as t grows (arXiv 2308.05695, section 3).

    The image is cut into L patches; ``floor(L * (1 - t/T))`` of them, drawn uniformly without replacement and
    independently for each image, stay visible. The others are set to 0 (mid-grey) in all channels.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
    """

    def __init__(self, num_timesteps: int = 1000, patch_size: int | Sequence[int] = 8) -> None:
        super().__init__(num_timesteps)
        self.patch_size = patch_size
        if min(ensure_tuple_rep(patch_size, 1) if isinstance(patch_size, int) else patch_size) < 1:
            raise UserError(f"patch_size must be at least 1, got {patch_size}.")

    def visible(self, x0: Tensor, t: Tensor, generator: Generators) -> Tensor:
        """Draw which pixels stay, as ``[B, 1, *spatial]`` of x0's type."""
        spatial = x0.shape[2:]
        patch = ensure_tuple_rep(self.patch_size, len(spatial))
        if any(size % edge for size, edge in zip(spatial, patch, strict=True)):
            raise UserError(
                f"An image of {tuple(spatial)} pixels cannot be cut into patches of {patch}: "
                "choose a crop size that patch_size divides."
            )
        grid = [size // edge for size, edge in zip(spatial, patch, strict=True)]
        count = math.prod(grid)
        # In integers, floor(L (1 - t/T)) does not suffer from 1 - t/T being rounded.
        keep = count * (self.num_timesteps - t) // self.num_timesteps
        scores = draw(torch.rand, (x0.shape[0], count), generator, x0.device)
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        visible = (rank < keep[:, None]).to(x0.dtype).reshape(-1, 1, *grid)
        for axis, edge in enumerate(patch, start=2):
            visible = visible.repeat_interleave(edge, dim=axis)
        return visible

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        visible = self.visible(x0, t, generator)
        return Corrupted(x0 * visible, visible)

    def to_config(self) -> dict[str, Any]:
        patch_size = self.patch_size if isinstance(self.patch_size, int) else list(self.patch_size)
        return {
            "_target_": "medmdm.corruption.PatchMasking",
            "num_timesteps": self.num_timesteps,
            "patch_size": patch_size,
        }
