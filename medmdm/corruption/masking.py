"""Corruption by hiding parts of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.errors import UserError, nearest


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
        counts, rests = zip(*map(divmod, spatial, patch), strict=True)
        if any(rests):
            what = f"An image of {tuple(spatial)} pixels cannot be cut into patches of {patch}"
            raise UserError(f"{what}: choose a crop size that patch_size divides.")
        return list(counts)

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Give each pixel the value of its patch: ``[B, 1, *grid]`` → ``[B, 1, *spatial]``."""
        for axis, edge in enumerate(ensure_tuple_rep(self.patch_size, patches.ndim - 2), start=2):
            patches = patches.repeat_interleave(edge, dim=axis)
        return patches

    def to_patches(self, pixels: Tensor) -> Tensor:
        """Return the mean over each patch: ``[B, 1, *spatial]`` → ``[B, L]``."""
        pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[pixels.ndim - 2]
        self.grid(pixels.shape[2:])
        return pool(pixels, tuple(ensure_tuple_rep(self.patch_size, pixels.ndim - 2))).flatten(1)

    def hidden_patches(self, count: int, t: Tensor) -> Tensor:
        """How many of ``count`` patches are hidden at t."""
        # In integers, floor(L (1 - t/T)) does not suffer from 1 - t/T being rounded.
        return count - count * (self.num_timesteps - t) // self.num_timesteps

    def visible(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Tensor:
        """Draw which pixels stay, as ``[B, 1, *spatial]`` of x0's type."""
        grid = self.grid(x0.shape[2:])
        count = math.prod(grid)
        keep = count - self.hidden_patches(count, t)
        scores = self._scores(x0, grid, generator, **given)
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        return self.to_pixels((rank < keep[:, None]).to(x0.dtype).reshape(-1, 1, *grid))

    def _scores(self, x0: Tensor, grid: Sequence[int], generator: Generators, **given: Tensor) -> Tensor:
        """Draw ``[B, L]`` numbers: the patches with the largest are hidden."""
        return draw(torch.rand, (x0.shape[0], math.prod(grid)), generator, x0.device)

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        visible = self.visible(x0, t, generator, **given)
        return Corrupted(x0 * visible, visible, scale=visible)


@buildable
@dataclass(frozen=True)
class TubeMasking(PatchMasking):
    """One spatial mask for all slices or frames of a volume (tube masking of video, arXiv 2203.12602, section 3.2).

    Neighbouring slices look alike: hidden in one and visible in the next, a patch could be copied. Slices and frames
    that are *channels* (``context_slices``) need no tubes: every masking hides all channels of a patch.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis; along ``axis`` it is ignored.
        axis: the spatial axis along which a mask stays the same: 0, the first, where slices are stacked.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis < 0:
            raise UserError(f"axis must be a spatial axis, counted from 0, got {self.axis}.")

    def visible(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Tensor:
        spatial = x0.shape[2:]
        if self.axis >= len(spatial):
            raise UserError(f"axis {self.axis} does not exist in images of {len(spatial)} spatial axes.")
        # A mask of one slice, drawn as PatchMasking draws it, and repeated.
        edges = [e for i, e in enumerate(ensure_tuple_rep(self.patch_size, len(spatial))) if i != self.axis]
        flat = PatchMasking(self.num_timesteps, edges).visible(x0.select(self.axis + 2, 0), t, generator)
        return flat.unsqueeze(self.axis + 2).expand(-1, -1, *spatial)


@buildable
@dataclass(frozen=True)
class BlockMasking(PatchMasking):
    """Occlusion: few large rectangles of patches are hidden (after BEiT, arXiv 2106.08254, algorithm 1).

    Rectangles with random areas and shapes are laid on the grid of patches one after another until as many patches
    as :class:`PatchMasking` hides at t are covered; of the last one, so many rows as are still needed. Where all
    rectangles together cover too few, single patches follow.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        scale: least and greatest share of the image that a rectangle covers, in (0, 1].
        aspect: greatest ratio of two edges of a rectangle, measured in shares of the image's, at least 1.
        blocks: how many rectangles are drawn at most.
    """

    scale: Sequence[float] = (0.05, 0.25)
    aspect: float = 3.0
    blocks: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", tuple(self.scale))  # JSON has lists
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale must be two rising shares in (0, 1], got {list(self.scale)}.")
        if not 1 <= self.aspect < math.inf:
            raise UserError(f"aspect must be at least 1, got {self.aspect}.")
        if self.blocks < 1:
            raise UserError(f"blocks must be at least 1, got {self.blocks}.")

    def _scores(self, x0: Tensor, grid: Sequence[int], generator: Generators, **given: Tensor) -> Tensor:
        batch, axes = x0.shape[0], len(grid)
        # Columns: area, one stretch for each axis, then where the rectangle begins on each axis.
        numbers = draw(torch.rand, (batch, self.blocks, 1 + 2 * axes), generator, x0.device)
        rest = draw(torch.rand, (batch, math.prod(grid)), generator, x0.device)
        area = self.scale[0] + numbers[..., :1] * (self.scale[1] - self.scale[0])
        stretch = (numbers[..., 1 : 1 + axes] - 0.5) * math.log(self.aspect)
        edges = area ** (1 / axes) * torch.exp(stretch - stretch.mean(-1, keepdim=True))
        sizes = torch.tensor(grid, device=x0.device)
        lengths = (edges * sizes).round().clamp_min(1).minimum(sizes.to(edges.dtype))
        first = torch.floor(numbers[..., 1 + axes :] * (sizes - lengths + 1))
        covered = torch.ones(batch, self.blocks, *grid, dtype=torch.bool, device=x0.device)
        for axis, length in enumerate(grid):
            at = torch.arange(length, device=x0.device)
            inside = (at >= first[..., axis, None]) & (at < (first + lengths)[..., axis, None])
            covered &= inside.reshape(batch, self.blocks, *[-1 if a == axis else 1 for a in range(axes)])
        covered = covered.flatten(2)
        # The number of the rectangle that covers a patch first; single patches come last. Within one, row after row.
        begun = torch.where(covered.any(1), covered.int().argmax(1), self.blocks).to(rest.dtype)
        row = torch.arange(rest.shape[1], device=x0.device) / rest.shape[1]
        return -(begun + torch.where(begun < self.blocks, row, rest))


CONTENTS = ("gradient", "entropy", "tissue", "map")


@buildable
@dataclass(frozen=True)
class ContentMasking(PatchMasking):
    """Hide patches with a probability that follows their content.

    As many patches as :class:`PatchMasking` hides at t, drawn without replacement with probabilities proportional to
    ``exp(z / temperature)``, where z is the content of a patch less the mean over the image's patches, divided by
    their standard deviation (Gumbel top-k, arXiv 1903.06059). On an image with one content everywhere this is
    PatchMasking.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        content: ``"gradient"``, mean magnitude of central differences; ``"entropy"``, of the patch's grey levels in
            16 bins over [-1, 1], in bits; ``"tissue"``, share of pixels on the foreground's side of the image's own
            threshold (Otsu's); ``"map"``, the mean of the map that is given as ``content``.
        temperature: positive; small, nearly always the fullest patches, large, nearly uniform. Negative numbers of the
            same size prefer the emptiest.
        bright_background: for ``"tissue"``: whether tissue is darker than the background, as in bright-field slides.
    """

    content: str = "gradient"
    temperature: float = 1.0
    bright_background: bool = True

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        """A map, where that is its content."""
        return ("content",) if self.content == "map" else ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.content not in CONTENTS:
            raise UserError(
                f"content must be one of {list(CONTENTS)}, got {self.content!r}{nearest(self.content, CONTENTS)}."
            )
        if not math.isfinite(self.temperature) or self.temperature == 0:
            raise UserError(f"temperature must be a finite number other than 0, got {self.temperature}.")

    def _scores(self, x0: Tensor, grid: Sequence[int], generator: Generators, **given: Tensor) -> Tensor:
        values = self.measure(x0, **given).double()
        mean, deviation = values.mean(1, keepdim=True), values.std(1, keepdim=True, correction=0)
        z = (values - mean) / torch.where(deviation > 1e-9, deviation, torch.inf)
        uniform = super()._scores(x0, grid, generator).double()
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
        return z / self.temperature + gumbel

    def measure(self, x0: Tensor, **given: Tensor) -> Tensor:
        """Return the content of each patch, ``[B, L]``."""
        if self.takes and "content" not in given:
            advice = "a pre-training gives it their labels with label_as 'content'"
            raise UserError(f"ContentMasking with content 'map' needs the map `content` of each image: {advice}.")
        if self.content == "entropy":
            levels = ((x0.mean(1, keepdim=True) + 1) * 8).floor().clamp(0, 15)
            shares = torch.stack([self.to_patches((levels == level).double()) for level in range(16)])
            return -torch.special.xlogy(shares, shares).sum(0) / math.log(2)
        if self.content == "gradient":
            axes = [axis for axis in range(2, x0.ndim) if x0.shape[axis] > 1]
            squares = [g.square() for g in torch.gradient(x0.double(), dim=axes)] if axes else [torch.zeros_like(x0)]
            return self.to_patches(torch.stack(squares).sum(0).sqrt().mean(1, keepdim=True))
        if self.content == "tissue":
            return self.to_patches(self._foreground(x0).double())
        return self.to_patches(given["content"].double())

    def _foreground(self, x0: Tensor) -> Tensor:
        from skimage.filters import threshold_otsu  # slow to import

        grey = x0.mean(1, keepdim=True)
        limits = []
        for image in grey.detach().cpu().numpy():
            limits.append(threshold_otsu(image) if image.min() < image.max() else image.max())
        limit = torch.tensor(np.array(limits), device=x0.device, dtype=grey.dtype).reshape(-1, *[1] * (x0.ndim - 1))
        return grey <= limit if self.bright_background else grey > limit


@buildable
@dataclass(frozen=True)
class AdaptiveMasking(PatchMasking):
    """Hide the patches that are hard to restore, more and more of them in the course of a run (after AnatoMask).

    As many patches as :class:`PatchMasking` hides at t. A share of them, from 0 at the start of the run to
    ``max_share`` at its end, are those with the largest reconstruction error of the averaged network; the others are
    drawn from the rest (AnatoMask, arXiv 2407.06468; HPM, arXiv 2304.05919). The error comes from
    :class:`medmdm.objectives.Objective`; without it, as outside a pre-training, this is PatchMasking.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        max_share: share of the hidden patches that are chosen by their error at the end of the run, in [0, 1].
    """

    max_share: float = 0.5

    takes: ClassVar[tuple[str, ...]] = ("error", "progress")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_share <= 1:
            raise UserError(f"max_share must lie in [0, 1], got {self.max_share}.")

    def visible(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Tensor:
        grid = self.grid(x0.shape[2:])
        count = math.prod(grid)
        hidden = self.hidden_patches(count, t)[:, None]
        scores = draw(torch.rand, (x0.shape[0], count), generator, x0.device)
        if "error" in given:
            share = self.max_share * given["progress"].flatten(1)[:, :1].double()
            errors = self.to_patches(given["error"].float())
            hardest = errors.argsort(dim=1, stable=True, descending=True).argsort(dim=1)
            scores = scores + (hardest < (share * hidden).floor())
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        return self.to_pixels((rank < count - hidden).to(x0.dtype).reshape(-1, 1, *grid))
