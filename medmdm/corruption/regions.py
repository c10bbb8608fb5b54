"""Corruption by hiding whole regions: superpixels of the image, or the objects of a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.errors import UserError


@buildable
@dataclass(frozen=True)
class RegionMasking(Corruption):
    """Hide whole regions, ever more of them as t grows.

    Regions are the superpixels of an image (SLIC, Achanta et al. 2012, by scikit-image), or the values of a label map
    that is given as ``regions``: then whole objects are hidden, and where the map is 0, one number for the background,
    that as a whole. Where the map is negative, it has no region, and superpixels are. Regions are hidden in a random
    order, as long as the middle of the next one lies before the share t/T of the pixels; so the hidden share differs
    from t/T by half of one region at most.

    Args:
        num_timesteps: T.
        regions: about how many superpixels an image is cut into, at least 1.
        compactness: how much distance counts against colour in SLIC, positive; large for squarer regions.
    """

    regions: int = 64
    compactness: float = 0.1

    takes: ClassVar[tuple[str, ...]] = ("regions",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regions < 1:
            raise UserError(f"regions must be at least 1, got {self.regions}.")
        if not self.compactness > 0:
            raise UserError(f"compactness must be positive, got {self.compactness}.")

    def superpixels(self, x0: Tensor) -> Tensor:
        """Return the number of each pixel's superpixel, ``[B, 1, *spatial]``."""
        from skimage.segmentation import slic  # slow to import

        found = []
        for image in x0.detach().float().cpu().numpy():
            segments = slic(
                (image + 1) / 2, self.regions, self.compactness, channel_axis=0, start_label=0, convert2lab=False
            )
            found.append(torch.from_numpy(np.ascontiguousarray(segments, dtype=np.int64)))
        return torch.stack(found)[:, None].to(x0.device)

    def found(self, x0: Tensor, **given: Tensor) -> Tensor:
        """Return the number of each pixel's region, ``[B, 1, *spatial]``: that of a given map, or of a superpixel."""
        if "regions" not in given:
            return self.superpixels(x0)
        regions = given["regions"].expand(len(x0), 1, *x0.shape[2:])
        cut = (regions < 0).flatten(1).any(1)
        if not cut.any():
            return regions
        regions = regions.to(torch.long, copy=True)
        own = regions[cut]
        after = own.amax(tuple(range(1, own.ndim)), keepdim=True).clamp_min(-1) + 1
        regions[cut] = torch.where(own < 0, self.superpixels(x0[cut]) + after, own)
        return regions

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        regions = self.found(x0, **given)
        pixels = regions[0].numel()
        # Numbers without gaps, image by image; drawn as many numbers as there can be regions of an image alone, so
        # that an image's damage does not depend on its batch.
        numbers = torch.stack([one.unique(return_inverse=True)[1] for one in regions.flatten(1)])
        if (most := int(numbers.max()) + 1) > _MOST_REGIONS:
            raise UserError(f"regions has {most} values in one image; up to {_MOST_REGIONS} are understood.")
        areas = torch.zeros(len(x0), _MOST_REGIONS, device=x0.device, dtype=torch.long)
        areas.scatter_add_(1, numbers, torch.ones_like(numbers))
        order = draw(torch.rand, areas.shape, generator, x0.device).argsort(dim=1, stable=True)
        sorted_areas = areas.gather(1, order)
        # Twice the pixels before the middle of a region against twice the share of all: in integers.
        before = 2 * sorted_areas.cumsum(1) - sorted_areas
        goes = before * self.num_timesteps < 2 * pixels * t[:, None]
        hidden = torch.zeros_like(goes).scatter_(1, order, goes)
        visible = (~hidden.gather(1, numbers)).reshape(regions.shape).to(x0.dtype)
        return Corrupted(x0 * visible, visible, scale=visible)


_MOST_REGIONS = 4096
