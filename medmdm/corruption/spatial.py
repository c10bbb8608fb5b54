"""Corruption by moving parts of the image: patches change places, are turned, or are shifted.

All of these show pixels of the same image elsewhere, and say where each came from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.corruption.masking import PatchMasking
from medmdm.errors import UserError


@dataclass(frozen=True)
class _PatchMoving(Corruption):
    """Base: cuts images into the patches of :class:`PatchMasking`.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
    """

    patch_size: int | Sequence[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masking  # noqa: B018 its arguments are checked now

    @functools.cached_property
    def masking(self) -> PatchMasking:
        """Says which patches are damaged at t: those that it would hide."""
        return PatchMasking(self.num_timesteps, self.patch_size)

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        visible = self.masking.visible(x0, t, generator)
        return self._show(x0, visible, self._source(x0, visible, generator))

    def _source(self, x0: Tensor, visible: Tensor, generator: Generators) -> Tensor:
        """Return where each pixel comes from, flat indices ``[B, *spatial]``."""
        raise NotImplementedError(f"{type(self).__name__} does not define _source.")

    @staticmethod
    def _show(x0: Tensor, visible: Tensor, source: Tensor) -> Corrupted:
        moved = x0.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, x0.shape[1], -1))
        return Corrupted(moved.reshape(x0.shape), visible, source=source)

    def _hidden(self, visible: Tensor) -> Tensor:
        """Return which patches are damaged, ``[B, L]``."""
        return self._cut(visible[:, 0]).flatten(2)[..., 0] == 0

    def _cut(self, pixels: Tensor) -> Tensor:
        """Cut maps into patches: ``[B, *spatial]`` → ``[B, L, *patch]``."""
        spatial = pixels.shape[1:]
        edges, grid = ensure_tuple_rep(self.patch_size, len(spatial)), self.masking.grid(spatial)
        split = pixels.reshape(len(pixels), *[n for pair in zip(grid, edges, strict=True) for n in pair])
        axes = range(len(spatial))
        order = [0, *(1 + 2 * a for a in axes), *(2 + 2 * a for a in axes)]
        return split.permute(order).reshape(len(pixels), math.prod(grid), *edges)

    def _join(self, patches: Tensor, spatial: Sequence[int]) -> Tensor:
        """Undo :meth:`_cut`."""
        edges, grid = patches.shape[2:], self.masking.grid(spatial)
        axes = range(len(spatial))
        order = [0, *(n for a in axes for n in (1 + a, 1 + len(spatial) + a))]
        return patches.reshape(len(patches), *grid, *edges).permute(order).reshape(len(patches), *spatial)


def _places(like: Tensor) -> Tensor:
    """Return the flat index of each pixel, ``[B, *spatial]``, of images ``[B, C, *spatial]``."""
    spatial = like.shape[2:]
    return torch.arange(math.prod(spatial), device=like.device).reshape(1, *spatial).expand(len(like), *spatial)


@buildable
@dataclass(frozen=True)
class PatchShuffle(_PatchMoving):
    """Permute patches among themselves, ever more of them as t grows (jigsaw: arXiv 1603.09246; PatchMasking's share).

    The patches that :class:`PatchMasking` would hide at t trade places in one random cycle, so that none of them
    stays where it was (a single one has nobody to trade with and stays).

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
    """

    def _source(self, x0: Tensor, visible: Tensor, generator: Generators) -> Tensor:
        spatial, hidden = x0.shape[2:], self._hidden(visible)
        count = hidden.sum(1, keepdim=True)
        # The hidden patches in a random order, then the others; each of the first `count` shows the next one.
        keys = draw(torch.rand, hidden.shape, generator, x0.device) - hidden.to(torch.float32)
        order = keys.argsort(dim=1, stable=True)
        place = torch.arange(hidden.shape[1], device=x0.device).expand_as(order)
        following = torch.where(place < count, (place + 1) % count.clamp_min(1), place)
        shown = torch.empty_like(order).scatter_(1, order, order.gather(1, following))
        cut = self._cut(_places(x0))
        index = shown.reshape(*shown.shape, *[1] * len(spatial)).expand_as(cut)
        return self._join(cut.gather(1, index), spatial)


@buildable
@dataclass(frozen=True)
class PatchRotation(_PatchMoving):
    """Turn patches by one, two or three quarters, ever more of them as t grows (rotation: arXiv 1803.07728).

    The patches that :class:`PatchMasking` would hide at t are turned where they are, in the plane of the last two
    axes, each by its own number of quarters.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis; equal along the last two axes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.patch_size, int) and len(set(self.patch_size[-2:])) > 1:
            raise UserError(f"Patches of {list(self.patch_size)} cannot be turned: make the last two edges equal.")

    def _source(self, x0: Tensor, visible: Tensor, generator: Generators) -> Tensor:
        cut = self._cut(_places(x0))
        hidden = self._hidden(visible)
        quarters = 1 + (draw(torch.rand, hidden.shape, generator, x0.device) * 3).floor().clamp(max=2)
        quarters = torch.where(hidden, quarters, 0).reshape(*hidden.shape, *[1] * (x0.ndim - 2))
        turned = cut
        for number in (1, 2, 3):
            turned = torch.where(quarters == number, torch.rot90(cut, number, (-2, -1)), turned)
        return self._join(turned, x0.shape[2:])


@buildable
@dataclass(frozen=True)
class PatchShift(_PatchMoving):
    """Show in each patch a part of the image from nearby, the further away the larger t is.

    Each patch is shifted by its own whole number of pixels along each axis, drawn uniformly from -d to d, where
    ``d = round(max_shift * t / T)``. At the image's edges the image is mirrored (the edge pixel is not repeated). A
    pixel counts as visible where its patch was not shifted.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        max_shift: greatest shift in pixels, at least 1; less than the image's edges.
    """

    max_shift: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_shift < 1:
            raise UserError(f"max_shift must be at least 1, got {self.max_shift}.")

    def _shifts(self, x0: Tensor, t: Tensor, generator: Generators) -> Tensor:
        """Return by how much the pixels are shifted, ``[B, axes, *spatial]`` whole numbers."""
        grid = self.masking.grid(x0.shape[2:])
        reach = (2 * self.max_shift * t + self.num_timesteps) // (2 * self.num_timesteps)
        reach = reach.reshape(-1, *[1] * (1 + len(grid)))
        numbers = draw(torch.rand, (len(x0), len(grid), *grid), generator, x0.device)
        return self.masking.to_pixels((numbers * (2 * reach + 1)).floor().minimum(2.0 * reach).long() - reach)

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        spatial = x0.shape[2:]
        if min(spatial) <= self.max_shift:
            raise UserError(f"max_shift {self.max_shift} does not fit into an image of {tuple(spatial)} pixels.")
        shifts = self._shifts(x0, t, generator)
        source = torch.zeros_like(shifts[:, 0])
        for axis, length in enumerate(spatial):
            shape = [-1 if a == axis else 1 for a in range(len(spatial))]
            at = (torch.arange(length, device=x0.device).reshape(shape) + shifts[:, axis]).abs()
            source = source * length + torch.where(at < length, at, 2 * (length - 1) - at)
        return self._show(x0, (shifts == 0).all(1, keepdim=True).to(x0.dtype), source)
