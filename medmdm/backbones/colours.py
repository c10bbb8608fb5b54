"""Features as colours: their first three principal components as red, green and blue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmdm.backbones.feature_maps import stack, upsample

_ENDS = (0.02, 0.98)  # quantiles of each component that become dark and bright
_FIT, _DRAWN = 4096, 16384  # places of an image that are looked at, and coloured: of wide networks more take gigabytes


@dataclass(frozen=True)
class FeatureColours:
    """Colours that mean the same in all images: pixels of one colour have features alike.

    Args:
        mean: of each feature, ``[C]``.
        axes: the first principal components, ``[C, 3]``, orthonormal; of less than three features the last are zero.
        low: the value of each component that is drawn dark, ``[3]``.
        high: the value that is drawn bright.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, images: Sequence[Sequence[Tensor]], size: Sequence[int]) -> FeatureColours:
        """Find the components of the features of images.

        Each is the eigenvector of the covariance in float64, with the sign that makes its largest entry positive, so
        that the same features always get the same colours.

        Args:
            images: the maps of each image (or batch of them), ``[B, C_i, *spatial_i]``.
            size: to which the maps are up-sampled.
        """
        pixels = [_pixels(stack(maps, size)) for maps in images]
        count = sum(len(one) for one in pixels)
        mean = torch.stack([one.sum(0) for one in pixels]).sum(0) / count
        covariance = torch.stack([(one - mean).T @ (one - mean) for one in pixels]).sum(0) / count
        axes = torch.linalg.eigh(covariance)[1].flip(1)[:, :3]  # the largest first
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = torch.nn.functional.pad(axes * torch.where(largest < 0, -1.0, 1.0), (0, 3 - axes.shape[1]))
        values = torch.cat([(one - mean) @ axes for one in pixels])
        step = -(-len(values) // 1_000_000)  # torch sorts no more than 16 million
        low, high = torch.quantile(values[::step], torch.tensor(_ENDS, dtype=values.dtype), dim=0)
        return cls(mean, axes, low, high)

    def __call__(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return the colours of maps ``[B, C_i, *spatial_i]``: ``[B, 3, *size]`` in [-1, 1], 0 where nothing varies."""
        features = stack(maps, size).cpu()
        values = (_pixels(features) - self.mean) @ self.axes
        width = self.high - self.low
        share = (values - self.low) / torch.where(width > 0, width, 1.0)
        colours = torch.where(width > 1e-9 * (1 + self.high.abs()), 2 * share - 1, 0.0).clamp(-1, 1)
        return colours.float().reshape(features.shape[0], *features.shape[2:], 3).movedim(-1, 1)


def coloured(images: Sequence[Sequence[Tensor]], size: Sequence[int]) -> Tensor | None:
    """Return the features of images as colours that mean the same in all of them.

    Args:
        images: the maps of each image, ``[1, C_i, *spatial_i]``.
        size: of the pictures; of large ones fewer places are coloured, and what is between them interpolated.

    Returns:
        ``[N, 3, *size]`` in [-1, 1]; None where the features are not finite.
    """
    if not all(bool(f.isfinite().all()) for maps in images for f in maps):
        return None
    colours = FeatureColours.fit(images, _at_most(_FIT, size))
    return torch.cat([upsample(colours(maps, _at_most(_DRAWN, size)), size) for maps in images])


def _at_most(places: int, size: Sequence[int]) -> list[int]:
    """Return a size of the same proportions with no more places, about."""
    share = min(1.0, (places / math.prod(size)) ** (1 / len(size)))
    return [max(1, round(share * n)) for n in size]


def _pixels(features: Tensor) -> Tensor:
    """Return ``[B, C, *spatial]`` as ``[N, C]`` in float64."""
    return features.detach().cpu().double().movedim(1, -1).flatten(0, -2)
