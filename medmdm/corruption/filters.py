"""Corruption by filters: blur, loss of resolution, missing frequencies. Nothing is hidden or moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.corruption.masking import PatchMasking
from medmdm.errors import UserError


def _nothing_hidden(x0: Tensor) -> Tensor:
    return torch.ones_like(x0[:, :1])


@buildable
@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur, ever wider as t grows (cold diffusion, arXiv 2208.09392, section 4.1).

    The standard deviation is ``max_sigma * t / T``; the window reaches three of them (that of T) to each side; at the
    image's edges the edge pixel is repeated. No random numbers are drawn.

    Args:
        num_timesteps: T.
        max_sigma: standard deviation in pixels towards t = T, positive.
    """

    max_sigma: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_sigma < math.inf:
            raise UserError(f"max_sigma must be positive, got {self.max_sigma}.")

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        reach, spatial = math.ceil(3 * self.max_sigma), x0.shape[2:]
        sigma = self.max_sigma * t.double() / self.num_timesteps
        offsets = torch.arange(-reach, reach + 1, device=x0.device, dtype=torch.float64)
        window = torch.exp(-offsets.square() / (2 * sigma[:, None].square().clamp_min(1e-12)))
        window = (window / window.sum(1, keepdim=True)).to(x0.dtype).repeat_interleave(x0.shape[1], dim=0)
        conv = {2: F.conv2d, 3: F.conv3d}[len(spatial)]
        # Each channel of each image is a channel of its own, so that each image has its own window.
        blurred = x0.reshape(1, -1, *spatial)
        for axis in range(len(spatial)):
            padding = [reach if a == axis else 0 for a in reversed(range(len(spatial))) for _ in range(2)]
            shape = [-1 if a == axis else 1 for a in range(len(spatial))]
            padded = F.pad(blurred, padding, mode="replicate")
            blurred = conv(padded, window.reshape(len(window), 1, *shape), groups=len(window))
        return Corrupted(blurred.reshape(x0.shape), _nothing_hidden(x0))


@buildable
@dataclass(frozen=True)
class Downsample(Corruption):
    """Lower resolution, ever lower as t grows (cold diffusion's super-resolution, arXiv 2208.09392, section 4.3).

    Means over squares (cubes) of ``2**k`` pixels, repeated to the old size; k grows from 0 to ``levels`` in equal steps
    of t: ``k = floor((levels + 1) * t / T)``. No random numbers are drawn.

    Args:
        num_timesteps: T.
        levels: how often the image is halved at most, at least 1; its edges must be multiples of ``2**levels``.
    """

    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise UserError(f"levels must be at least 1, got {self.levels}.")

    @property
    def multiple(self) -> int:
        return 2**self.levels

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        spatial = x0.shape[2:]
        if any(n % self.multiple for n in spatial):
            fault = f"An image of {tuple(spatial)} pixels cannot be halved {self.levels} times"
            raise UserError(f"{fault}: choose a crop size of multiples of {self.multiple}, or fewer levels.")
        halved = ((self.levels + 1) * t // self.num_timesteps).reshape(-1, *[1] * (x0.ndim - 1))
        pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(spatial)]
        coarse = x0
        for level in range(1, self.levels + 1):
            low = F.interpolate(pool(x0, 2**level), scale_factor=float(2**level), mode="nearest")
            coarse = torch.where(halved == level, low, coarse)
        return Corrupted(coarse, _nothing_hidden(x0))


@buildable
@dataclass(frozen=True)
class FrequencyMasking(Corruption):
    """Hide bands of the spectrum, ever more of them as t grows (masked frequency modelling, arXiv 2206.07706).

    The frequencies of an image, or of each of its patches, are cut into ``bands`` rings of equal width by their
    distance from 0 (in cycles a pixel, each axis from 0 to 0.5). ``floor(bands * (1 - t/T))`` rings, drawn at random
    for each image, stay; the others are set to 0. The mean of an image or patch is never hidden.

    Args:
        num_timesteps: T.
        bands: number of rings, at least 2.
        patch_size: edge in pixels of the patches whose spectra are taken, one number or one for each spatial axis;
            None for the whole image.
    """

    bands: int = 16
    patch_size: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands < 2:
            raise UserError(f"bands must be at least 2, got {self.bands}.")
        if self.patch_size is not None:
            PatchMasking(self.num_timesteps, self.patch_size)  # refuses what is no size

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        spatial = x0.shape[2:]
        keep = self.bands * (self.num_timesteps - t) // self.num_timesteps
        scores = draw(torch.rand, (len(x0), self.bands), generator, x0.device)
        kept = scores.argsort(dim=1, stable=True).argsort(dim=1) < keep[:, None]
        axes = range(len(spatial))
        cut = x0.reshape(*x0.shape[:2], *[1] * len(spatial), *spatial)
        if self.patch_size is not None:
            grid = PatchMasking(self.num_timesteps, self.patch_size).grid(spatial)
            split = x0.reshape(*x0.shape[:2], *[k for g, n in zip(grid, spatial, strict=True) for k in (g, n // g)])
            cut = split.permute(0, 1, *(2 + 2 * a for a in axes), *(3 + 2 * a for a in axes))
        edges = cut.shape[-len(spatial) :]
        along = list(range(-len(spatial), 0))
        ring = self._rings(edges, x0.device)
        stays = kept[:, ring.flatten()].reshape(-1, *[1] * (1 + len(spatial)), *ring.shape)
        stays.flatten(-len(spatial))[..., 0] = True  # the mean
        filtered = torch.fft.irfftn(torch.fft.rfftn(cut.float(), dim=along) * stays, s=edges, dim=along).to(x0.dtype)
        if self.patch_size is not None:
            filtered = filtered.permute(0, 1, *(2 + k for a in axes for k in (a, len(spatial) + a)))
        return Corrupted(filtered.reshape(x0.shape), _nothing_hidden(x0))

    def _rings(self, edges: Sequence[int], device: torch.device) -> Tensor:
        """Return the number of the ring that each frequency of ``rfftn`` lies in."""
        axes = [torch.fft.fftfreq(n, device=device) for n in edges[:-1]] + [
            torch.fft.rfftfreq(edges[-1], device=device)
        ]
        squares = torch.meshgrid(*[axis.double().square() for axis in axes], indexing="ij")
        radius = torch.stack(squares).sum(0).sqrt() / (0.5 * math.sqrt(len(edges)))
        return (radius * self.bands).floor().long().clamp(max=self.bands - 1)
