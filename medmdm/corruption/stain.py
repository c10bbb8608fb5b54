"""Corruption of the stains of a section: haematoxylin or eosin is missing in some patches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.corruption.masking import PatchMasking
from medmdm.errors import UserError, nearest

STAINS = ("haematoxylin", "eosin", "either")


@buildable
@dataclass(frozen=True)
class StainMasking(Corruption):
    """Take one stain out of patches, ever more of them as t grows.

    In optical density, ``-ln`` of the light that passes, stains add up (Ruifrok and Johnston 2001, whose vectors
    scikit-image has as ``hed_from_rgb``): the density of one stain is set to 0 in the patches that
    :class:`PatchMasking` would hide at t, the others stay. The image comes back in the range in which it was.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        stain: ``"haematoxylin"``, ``"eosin"``, or ``"either"``, drawn for each patch.
    """

    patch_size: int | Sequence[int] = 8
    stain: str = "either"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stain not in STAINS:
            raise UserError(f"stain must be one of {list(STAINS)}, got {self.stain!r}{nearest(self.stain, STAINS)}.")
        self.masking  # noqa: B018 its arguments are checked now

    @functools.cached_property
    def masking(self) -> PatchMasking:
        """Says in which patches a stain is missing at t: those that it would hide."""
        return PatchMasking(self.num_timesteps, self.patch_size)

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        if x0.shape[1] != 3:
            raise UserError(f"StainMasking needs images of red, green and blue, got {x0.shape[1]} channel(s).")
        from skimage.color import hed_from_rgb, rgb_from_hed  # slow to import

        visible = self.masking.visible(x0, t, generator)
        eosin = torch.full_like(visible, float(self.stain == "eosin"))
        if self.stain == "either":
            grid = self.masking.grid(x0.shape[2:])
            eosin = self.masking.to_pixels(draw(torch.rand, (len(x0), 1, *grid), generator, x0.device) < 0.5).to(eosin)
        to_stains, to_light = (
            torch.tensor(m, dtype=torch.float32, device=x0.device) for m in (hed_from_rgb, rgb_from_hed)
        )
        # 1e-6, as in scikit-image: black has no logarithm.
        density = -torch.log(((x0.float() + 1) / 2).clamp(1e-6, 1))
        stains = torch.einsum("bc...,cs->bs...", density, to_stains)
        gone = torch.cat([1 - eosin, eosin, torch.zeros_like(eosin)], dim=1) * (1 - visible)
        # What is taken away, as density; pixels that keep their stains keep their bits.
        less = torch.einsum("bs...,sc->bc...", stains.clamp_min(0) * gone, to_light)
        light = torch.exp(-(density - less).clamp_min(0)) * 2 - 1
        return Corrupted(torch.where(visible.bool(), x0, light.to(x0.dtype)), visible)
