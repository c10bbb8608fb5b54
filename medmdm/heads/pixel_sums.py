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

from medmdm.backbones.feature_maps import gather, gram, sum_products
from medmdm.errors import UserError
from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.task import NOTHING_LABELLED
from medmdm.labels import IGNORE

METHODS = ("ridge", "lda")
_PIXELS_AT_ONCE = 1 << 12  # their features in float64: 57 MB for the paper's 1728 channels
_NEVER = -1e9  # log prior of a class without pixels: finite, for scores are added and averaged
_CONSTANT = 1e-10  # a channel whose variance is a smaller share of its mean square does not vary but for rounding


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
        """Add up the sums of one or more images; of an iterator one at a time is in memory."""
        return functools.reduce(operator.add, parts)


def pixel_sums(maps: Sequence[Tensor], label: Tensor, num_classes: int, size: Sequence[int]) -> PixelSums:
    """Return the sums of one image from its low-resolution maps.

    Args:
        maps: ``[1, C_i, *spatial_i]``.
        label: ``[*spatial]`` class numbers, unknown ones left out; where it is smaller than ``size`` the rest is
            padding.
        num_classes: K.
        size: to which the maps would be up-sampled.
    """
    label = label.long()
    known = label != IGNORE
    one_hot = F.one_hot(torch.where(known, label, 0), num_classes).double() * known[..., None]
    targets = one_hot.movedim(-1, 0)
    products = sum_products(maps, targets, size)
    counts = targets.flatten(1).sum(1)
    if known.double().mean() < 0.5:  # scribbles: the few labelled pixels are gathered
        return PixelSums(_gathered_gram(maps, known, size), products, counts)
    matrix = gram(maps, size, label.shape)
    if not bool(known.all()):
        matrix = matrix - _gathered_gram(maps, ~known, size)
    return PixelSums(matrix, products, counts)


def _gathered_gram(maps: Sequence[Tensor], chosen: Tensor, size: Sequence[int]) -> Tensor:
    missing = [new - old for new, old in zip(size, chosen.shape, strict=True)]
    index = F.pad(chosen, [n for m in reversed(missing) for n in (0, m)]).flatten().nonzero()[:, 0]
    double = [f.double() for f in maps]
    channels = sum(f.shape[1] for f in maps)
    matrix = torch.zeros(channels, channels, dtype=torch.float64, device=chosen.device)
    for part in index.split(_PIXELS_AT_ONCE):
        x = gather(double, part, size)
        matrix += x.T @ x
    return matrix


class _System:
    """The linear system of a head before the ridge is added: that is all which differs from ridge to ridge.

    With one scale for both methods and two classes, ridge regression and discriminants give the same direction and
    differ in the threshold alone: the between-class part of the covariance is parallel to the right-hand side.
    """

    def __init__(self, sums_: PixelSums, method: str, standardize: bool) -> None:
        self.method = method
        self.counts = sums_.counts
        self.n = sums_.counts.sum()
        self.mean = sums_.products.sum(1) / self.n
        self.means = (sums_.products / sums_.counts.clamp_min(1)).T  # [K, C]
        shares = sums_.counts / self.n
        square = sums_.gram / self.n
        covariance = square - torch.outer(self.mean, self.mean)
        if method == "ridge":
            right = sums_.products / self.n - torch.outer(self.mean, shares)
        else:
            centred = torch.where(sums_.counts > 0, (self.means - self.mean).T, 0.0)
            covariance = covariance - (centred * shares) @ centred.T
            right = centred
        variance = torch.diagonal(square) - self.mean.square()
        varies = variance > _CONSTANT * torch.diagonal(square)
        # Dividing by infinity leaves constant channels out.
        unit = variance.clamp_min(0).sqrt() if standardize else torch.ones_like(variance)
        self.scale = torch.where(varies, unit, torch.inf)
        self.matrix = covariance / torch.outer(self.scale, self.scale)
        self.right = right / self.scale[:, None]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return (weight ``[K, C]``, bias ``[K]``)."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if ridge == 0 or int(failed):  # perhaps singular: the smallest of all solutions
            w = torch.linalg.pinv(matrix, hermitian=True) @ self.right
        else:
            w = torch.cholesky_solve(self.right, factor)
        w = w / self.scale[:, None]
        if self.method == "ridge":
            return w.T, self.counts / self.n - self.mean @ w
        prior = torch.where(self.counts > 0, (self.counts / self.n).log(), _NEVER)
        return w.T, prior - 0.5 * ((self.means - self.mean) * w.T).sum(1) - self.mean @ w


def fit_linear(
    sums_: PixelSums, ridge: float = 1e-3, method: str = "ridge", standardize: bool = True
) -> LinearClassifier:
    """Fit a linear classifier in closed form.

    Args:
        sums_: of the training pixels.
        ridge: penalty on the squared weights, per pixel: scikit-learn's ``Ridge(alpha)`` is ``alpha / n``. With 0 the
            smallest of all solutions is taken.
        method: ``"ridge"``, least squares on one-hot classes; ``"lda"``, linear discriminants (Gaussian classes of one
            covariance) with the ridge added to the covariance, whose scores are log posteriors up to a constant. A
            class without pixels is never predicted.
        standardize: give every channel unit variance first. Channels that do not vary get no weight in any case.

    Raises:
        UserError: an unknown method, a negative ridge, or no labelled pixel.
    """
    check_method(method, [ridge])
    if float(sums_.counts.sum()) == 0:
        raise UserError(NOTHING_LABELLED)
    return LinearClassifier(*_System(sums_, method, standardize).solve(ridge))


def left_out_errors(parts: Sequence[PixelSums], ridges: Sequence[float], standardize: bool = True) -> Tensor:
    """Return the error on what was left out, for each ridge: ``[len(ridges)]`` in float64, lower is better.

    Every part, an image or several, is left out in turn. The error is the mean squared distance of the least-squares
    scores to the one-hot classes: it needs no pixel again, so it can compare hundreds of ridges, blocks and timesteps
    on the labelled support alone.

    Args:
        parts: the sums of each; those without a labelled pixel are passed over.
        ridges: to compare, see :func:`fit_linear`.
        standardize: as in :func:`fit_linear`.

    Raises:
        UserError: fewer than two parts with labelled pixels.
    """
    check_method("ridge", ridges)
    parts = [part for part in parts if float(part.counts.sum()) > 0]
    if len(parts) < 2:
        raise UserError("Leaving one image out needs two or more labelled images: give the ridge and the blocks.")
    total = PixelSums.total(parts)
    errors = torch.zeros(len(ridges), dtype=torch.float64)
    for left_out in parts:
        system = _System(total - left_out, "ridge", standardize)
        for i, ridge in enumerate(ridges):
            errors[i] += float(_squared_error(left_out, *system.solve(ridge)))
    return errors / float(total.counts.sum())


def _squared_error(sums_: PixelSums, weight: Tensor, bias: Tensor) -> Tensor:
    """``sum |y - (W x + b)|^2`` over pixels, from their sums."""
    n = sums_.counts.sum()
    cross = (weight.T * sums_.products).sum() + bias @ sums_.counts
    square = ((weight @ sums_.gram) * weight).sum() + 2 * bias @ weight @ sums_.products.sum(1) + n * bias @ bias
    return n - 2 * cross + square


def check_method(method: str, ridges: Sequence[float]) -> None:
    """Refuse an unknown method or a ridge that is not a number of at least 0."""
    if method not in METHODS:
        raise UserError(f"The closed-form method must be 'ridge' or 'lda', got {method!r}.")
    if not ridges or min(ridges) < 0:
        raise UserError(f"The ridge must be one or more numbers of at least 0, got {list(ridges)}.")
