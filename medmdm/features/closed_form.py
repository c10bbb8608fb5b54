"""Closed-form heads from sums over pixels: ridge regression and linear discriminants, without seeds.

The sums of an image (:class:`PixelSums`) add up over images and subtract again, so any few-shot subset, leaving one
image out, and choosing blocks, timesteps and the ridge cost one small linear solve each after a single pass.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medmdm.data.labels import IGNORE
from medmdm.errors import UserError
from medmdm.networks.feature_maps import gather, gram, sum_products
from medmdm.networks.pixel_classifier import LinearClassifier

__all__ = ["METHODS", "PixelSums", "fit_linear", "left_out_errors", "pixel_sums"]

METHODS = ("ridge", "lda")
_PIXELS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class PixelSums:
    """What least squares needs to know of some pixels with features x and one-hot classes y; all float64.

    Args:
        gram: ``sum x x^T``, ``[C, C]``.
        products: ``sum x y^T``, ``[C, K]``; its rows add up to ``sum x``.
        counts: pixels of each class, ``[K]``.
    """

    gram: Tensor
    products: Tensor
    counts: Tensor

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(self.gram + other.gram, self.products + other.products, self.counts + other.counts)

    def __sub__(self, other: PixelSums) -> PixelSums:
        return PixelSums(self.gram - other.gram, self.products - other.products, self.counts - other.counts)

    def select(self, channels: Tensor) -> PixelSums:
        """Return the sums of some channels only (``[n]`` integers)."""
        return PixelSums(self.gram[channels][:, channels], self.products[channels], self.counts)

    @staticmethod
    def total(parts: Iterable[PixelSums]) -> PixelSums:
        """Add up the sums of several images."""
        return functools.reduce(operator.add, parts)


def pixel_sums(
    maps: Sequence[Tensor],
    label: Tensor,
    num_classes: int,
    size: Sequence[int],
    ignore: int = IGNORE,
) -> PixelSums:
    """Return the sums of one image from its low-resolution maps.

    Args:
        maps: ``[1, C_i, *spatial_i]``.
        label: ``[*spatial]`` class numbers; where it is smaller than ``size`` the rest is padding.
        num_classes: K.
        size: to which the maps would be up-sampled.
        ignore: pixels of this number are left out.
    """
    label = label.long()
    known = label != ignore
    one_hot = F.one_hot(torch.where(known, label, 0), num_classes).double() * known[..., None]
    targets = one_hot.movedim(-1, 0)
    products = sum_products(maps, targets, size)
    counts = targets.flatten(1).sum(1)
    if known.float().mean() < 0.5:  # scribbles: the few labelled pixels are gathered
        return PixelSums(_gathered_gram(maps, known, size), products, counts)
    matrix = gram(maps, size, label.shape)
    if not bool(known.all()):
        matrix = matrix - _gathered_gram(maps, ~known, size)
    return PixelSums(matrix, products, counts)


def _gathered_gram(maps: Sequence[Tensor], chosen: Tensor, size: Sequence[int]) -> Tensor:
    coordinates = chosen.nonzero()
    strides = torch.tensor([int(torch.tensor(size[axis + 1 :]).prod()) for axis in range(len(size))])
    index = (coordinates * strides.to(coordinates)).sum(1)
    channels = sum(f.shape[1] for f in maps)
    matrix = torch.zeros(channels, channels, dtype=torch.float64)
    double = [f.double() for f in maps]
    for part in index.split(_PIXELS_AT_ONCE):
        x = gather(double, part, size)
        matrix += x.T @ x
    return matrix


@dataclass(frozen=True)
class _Solver:
    """The eigenvectors of the centred (within-class) covariance: one solve serves every ridge."""

    mean: Tensor  # [C]
    scale: Tensor  # [C]
    values: Tensor  # [C]
    vectors: Tensor  # [C, C]
    projected: Tensor  # [C, K] right-hand sides in the eigenbasis
    counts: Tensor  # [K]
    means: Tensor  # [K, C]
    method: str

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return (weight ``[K, C]``, bias ``[K]``)."""
        n = self.counts.sum()
        w = (self.vectors @ (self.projected / (self.values + ridge)[:, None])) / self.scale[:, None]
        if self.method == "ridge":
            return w.T, self.counts / n - self.mean @ w
        prior = (self.counts.clamp_min(1e-9) / n).log()
        centred = self.means - self.mean
        return w.T, prior - 0.5 * (centred * w.T).sum(1) - self.mean @ w


def _solver(sums_: PixelSums, method: str, standardize: bool) -> _Solver:
    n = sums_.counts.sum()
    mean = sums_.products.sum(1) / n
    covariance = sums_.gram / n - torch.outer(mean, mean)
    scale = covariance.diagonal().clamp_min(1e-18).sqrt() if standardize else torch.ones_like(mean)
    means = (sums_.products / sums_.counts.clamp_min(1)).T  # [K, C]
    if method == "ridge":
        right = sums_.products / n - torch.outer(mean, sums_.counts / n)
    else:
        present = sums_.counts > 0
        between = (means[present] - mean) * (sums_.counts[present] / n).sqrt()[:, None]
        covariance = covariance - between.T @ between
        right = torch.where(present, (means - mean).T, 0.0)
    values, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
    projected = vectors.T @ (right / scale[:, None])
    return _Solver(mean, scale, values.clamp_min(0), vectors, projected, sums_.counts, means, method)


def fit_linear(
    sums_: PixelSums, ridge: float = 1e-3, method: str = "ridge", standardize: bool = True
) -> LinearClassifier:
    """Fit a linear classifier in closed form.

    Args:
        sums_: of the training pixels.
        ridge: penalty on the squared weights, per pixel: scikit-learn's ``Ridge(alpha)`` is ``alpha / n``.
        method: ``"ridge"``, least squares on one-hot classes; ``"lda"``, linear discriminants (Gaussian classes of one
            covariance) with the ridge added to the covariance, whose scores are log posteriors up to a constant.
        standardize: give every channel unit variance first.

    Raises:
        UserError: an unknown method, a negative ridge, or no labelled pixel.
    """
    _check(method, [ridge])
    if float(sums_.counts.sum()) == 0:
        raise UserError("There is no labelled pixel to fit a head to: check the labels and the ignore value.")
    weight, bias = _solver(sums_, method, standardize).solve(ridge)
    return LinearClassifier(weight, bias)


def left_out_errors(
    images: Sequence[PixelSums],
    ridges: Sequence[float],
    standardize: bool = True,
    most_folds: int = 10,
) -> Tensor:
    """Return the error on images that were left out, for each ridge: ``[len(ridges)]`` in float64, lower is better.

    The error is the mean squared distance of the least-squares scores to the one-hot classes: it needs no pixel again,
    so it can compare hundreds of ridges, blocks and timesteps on the labelled support alone.

    Args:
        images: the sums of each labelled image, at least two.
        ridges: to compare, see :func:`fit_linear`.
        standardize: as in :func:`fit_linear`.
        most_folds: with more images, as many groups of them are left out in turn.

    Raises:
        UserError: fewer than two images.
    """
    _check("ridge", ridges)
    if len(images) < 2:
        raise UserError("Leaving one image out needs two or more labelled images: give the ridge and the blocks.")
    total = PixelSums.total(images)
    folds = min(most_folds, len(images))
    errors = torch.zeros(len(ridges), dtype=torch.float64)
    for fold in range(folds):
        left_out = PixelSums.total(images[fold::folds])
        solver = _solver(total - left_out, "ridge", standardize)
        for i, ridge in enumerate(ridges):
            errors[i] += _squared_error(left_out, *solver.solve(ridge))
    return errors / total.counts.sum()


def _squared_error(sums_: PixelSums, weight: Tensor, bias: Tensor) -> Tensor:
    """``sum |y - (W x + b)|^2`` over pixels, from their sums."""
    n = sums_.counts.sum()
    cross = (weight.T * sums_.products).sum() + bias @ sums_.counts
    square = ((weight @ sums_.gram) * weight).sum() + 2 * bias @ weight @ sums_.products.sum(1) + n * bias @ bias
    return n - 2 * cross + square


def _check(method: str, ridges: Sequence[float]) -> None:
    if method not in METHODS:
        raise UserError(f"The closed-form method must be 'ridge' or 'lda', got {method!r}.")
    if not ridges or min(ridges) < 0:
        raise UserError(f"The ridge must be one or more numbers of at least 0, got {list(ridges)}.")
