"""Exact arithmetic on feature maps of several resolutions, as if they had been up-sampled and concatenated.

Bilinear up-sampling is a fixed linear map ``U``, so whatever is linear or quadratic in the up-sampled features can be
computed from the small maps. A list of maps ``f_i``, ``[B, C_i, *spatial_i]``, stands for the stack
``x = concat_i U_i f_i``, ``[B, sum C_i, *size]``, which is never made (453 MB for a crop of the paper's).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medmdm.errors import UserError

NORMALIZATIONS = ("global_l2", "rms", "standardize", "none")  # what normalize knows
_VALUES = 1 << 18  # of a map that are reduced together
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsample(f: Tensor, size: Sequence[int]) -> Tensor:
    """Up-sample one map ``[B, C, *spatial]`` to ``size`` linearly (``align_corners=False``, as the paper does)."""
    if tuple(f.shape[2:]) == tuple(size):
        return f
    return F.interpolate(f, size=list(size), mode=_MODES[f.ndim - 2], align_corners=False)


def pad_ends(x: Tensor, size: Sequence[int], mode: str = "replicate") -> Tensor:
    """Pad the ends of the last axes to ``size``, see :func:`torch.nn.functional.pad`; :func:`cut` undoes it."""
    missing = [int(new) - int(old) for new, old in zip(size, x.shape[-len(size) :], strict=True)]
    return F.pad(x, [n for m in reversed(missing) for n in (0, m)], mode=mode) if any(missing) else x


def cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """Take the padding off the ends of the last axes."""
    first: Any = (..., *(slice(0, int(n)) for n in size))
    return x[first]


def stack(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Return ``[B, sum C_i, *size]``: what all other functions of this module avoid making."""
    return torch.cat([upsample(f, size) for f in maps], dim=1)


# The two below are NumPy's, so that they are constants where a network is being traced or exported.
@functools.lru_cache(maxsize=64)
def _interpolation(source: int, target: int) -> np.ndarray:
    """The up-sampling U of one axis as a matrix ``[target, source]``: torch's linear interpolation."""
    rows = np.arange(target)
    x = ((rows + 0.5) * (source / target) - 0.5).clip(min=0)
    low = np.minimum(x.astype(int), source - 1)
    weight = x - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (rows, low), 1 - weight)
    np.add.at(matrix, (rows, np.minimum(low + 1, source - 1)), weight)
    return matrix


@functools.lru_cache(maxsize=64)
def _form(source: int, target: int) -> np.ndarray:
    """``U^T U``, ``[source, source]``."""
    matrix = _interpolation(source, target)
    return matrix.T @ matrix


@functools.lru_cache(maxsize=64)
def _window(length: int, width: int) -> np.ndarray:
    """The mean over ``width`` places, an odd number, of one axis as a matrix ``[length, length]``, edges reflected."""
    places = np.arange(length)[:, None] + np.arange(-(width // 2), width // 2 + 1)
    places %= 2 * length  # d c b a | a b c d | d c b a, again and again where the window is wider than the map
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], np.minimum(places, 2 * length - 1 - places)), 1 / width)
    return matrix


def _kept(grid: Sequence[int], size: Sequence[int], crop: Sequence[int] | None) -> list[Tensor]:
    """The up-sampling of each axis of ``grid`` to ``size``, of which only the first ``crop`` rows are looked at."""
    shapes = zip(grid, size, size if crop is None else crop, strict=True)
    return [torch.from_numpy(_interpolation(int(a), int(b)))[: int(n)] for a, b, n in shapes]


def _apply(f: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix ``[new, old]`` to each spatial axis of ``[B, C, *spatial]``."""
    for axis, matrix in enumerate(matrices, start=2):
        f = torch.movedim(torch.movedim(f, axis, -1) @ matrix.T.to(f), -1, axis)
    return f


def _squares(f: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``f * (U^T U f)``, whose sum is that of the up-sampled map's squares: a narrow stencil on each axis."""
    if tuple(f.shape[2:]) == tuple(size):
        return f * f
    return f * _apply(f, [torch.from_numpy(_form(int(a), int(b))) for a, b in zip(f.shape[2:], size, strict=True)])


def _squared_norm(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Return ``|x|^2`` of each image, ``[B]`` in float64."""
    # Some channels at a time, in the processor's cache and without memory for whole maps; how many must not depend on
    # the batch, which exports leave open.
    parts = (p for f in maps for p in f.split(max(1, _VALUES // math.prod(int(n) for n in f.shape[2:])), dim=1))
    return torch.stack([_squares(p, size).flatten(1).sum(1, dtype=torch.float64) for p in parts]).sum(0)


def moments(f: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of one up-sampled map, each ``[B, C, 1, ...]`` in float64."""
    weights = [_interpolation(int(a), int(b)).mean(0)[None] for a, b in zip(f.shape[2:], size, strict=True)]
    mean = _apply(f.double(), [torch.from_numpy(weight) for weight in weights])
    # Up-sampling leaves constants as they are, so the mean may go first and nothing cancels.
    squares = _squares(f - mean.to(f.dtype), size)
    return mean, squares.sum(tuple(range(2, f.ndim)), keepdim=True, dtype=torch.float64) / math.prod(size)


def surroundings(f: Tensor, width: int, deviation: bool = False) -> list[Tensor]:
    """Return what is around each pixel of a map, as further maps of its shape.

    Args:
        f: ``[B, C, *spatial]``.
        width: of the square window, an odd number of the map's pixels. Beyond the edges the map is reflected, as
            ``scipy.ndimage.uniform_filter(mode="reflect")`` does.
        deviation: besides the mean over the window return the standard deviation.
    """
    matrices = [torch.from_numpy(_window(int(n), width)) for n in f.shape[2:]]
    mean = _apply(f, matrices)
    if not deviation:
        return [mean]
    wide = f.double()  # of nearly flat regions the difference below keeps no digit in single precision
    variance = _apply(wide.square(), matrices) - _apply(wide, matrices).square()
    return [mean, variance.clamp_min(0).sqrt().to(f.dtype)]


def factor(maps: Sequence[Tensor], size: Sequence[int], kind: str) -> Tensor:
    """Return by what :func:`normalize` multiplies the maps of each image, ``[B]`` in float64 (not "standardize")."""
    if kind not in ("global_l2", "rms", "none"):
        raise UserError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {kind!r}.")
    if kind == "none":
        return torch.ones(maps[0].shape[0], dtype=torch.float64, device=maps[0].device)
    square = _squared_norm(maps, size)
    if kind == "rms":
        square = square / (sum(f.shape[1] for f in maps) * math.prod(size))
    return square.clamp_min(1e-30).rsqrt()


def normalization(maps: Sequence[Tensor], size: Sequence[int], kind: str) -> list[tuple[Tensor | None, Tensor]]:
    """Return for each map what :func:`normalize` subtracts (None: nothing) and then multiplies by, in float64."""
    if kind == "standardize":  # 1e-5 as in instance normalisation: constant channels stay small
        return [(mean, (variance + 1e-5).rsqrt()) for mean, variance in (moments(f, size) for f in maps)]
    return [(None, factor(maps, size, kind).reshape(-1, *[1] * (maps[0].ndim - 1)))] * len(maps)


def normalize(maps: Sequence[Tensor], size: Sequence[int], kind: str, consume: bool = False) -> list[Tensor]:
    """Scale all maps of an image by one number, or each channel to zero mean and unit variance.

    Args:
        maps: ``[B, C_i, *spatial_i]``.
        size: to which they would be up-sampled.
        kind: ``"global_l2"`` divides by the L2 norm of the up-sampled stack (the paper; it grows with the area, so it
            is valid for windows of one size only), ``"rms"`` by its root mean square; ``"standardize"`` subtracts from
            each channel of the up-sampled stack its mean and divides by its standard deviation (with 1e-5 added to
            the variance, as instance normalisation does), so that images of other stains become comparable;
            ``"none"`` does nothing.
        consume: put the results into ``maps``, a list, one after the other: both together are never in memory.

    Raises:
        UserError: an unknown kind.
    """
    scaled = maps if consume and isinstance(maps, list) else list(maps)
    if kind != "none":
        for i, (mean, multiplier) in enumerate(normalization(maps, size, kind)):
            f = scaled[i] if mean is None else scaled[i] - mean.to(scaled[i].dtype)
            scaled[i] = f * multiplier.to(f.dtype)
    return scaled


def gather(maps: Sequence[Tensor], pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Return the features ``[N, sum C_i]`` of some pixels of one image: flat indices ``[N]`` (row-major) into ``size``.

    ``maps`` are ``[1, C_i, *spatial_i]``, here and below.
    """
    coordinates = torch.unravel_index(pixels, tuple(size))
    columns = []
    for f in maps:
        neighbours = []  # for each axis the two source positions of each pixel and their weights
        for target, source, length in zip(coordinates, f.shape[2:], size, strict=True):
            x = ((target.double() + 0.5) * (source / length) - 0.5).clamp_min(0)
            low = x.floor().long().clamp_max(source - 1)
            weight = x - low
            neighbours.append(((low, 1 - weight), ((low + 1).clamp_max(source - 1), weight)))
        strides = [math.prod(f.shape[3 + axis :]) for axis in range(len(size))]
        corners = list(itertools.product(*neighbours))
        places = [[p * stride for (p, _), stride in zip(corner, strides, strict=True)] for corner in corners]
        index = [functools.reduce(torch.add, place) for place in places]
        share = [functools.reduce(torch.mul, [weight for _, weight in corner]) for corner in corners]
        flat = f[0].flatten(1).T.contiguous()  # [prod spatial, C]: a pixel's channels side by side
        # "Embedding bag" is torch's name for a weighted sum of some rows of a table.
        weights = torch.stack(share, dim=1).to(f.dtype)
        columns.append(F.embedding_bag(torch.stack(index, dim=1), flat, per_sample_weights=weights, mode="sum"))
    return torch.cat(columns, dim=1)


def sum_products(maps: Sequence[Tensor], targets: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``sum_p x_p y_p^T`` over the pixels of one image, ``[sum C_i, K]`` in float64.

    The targets, ``[K, *crop]`` for the first rows and columns of ``size``, are brought down to each map's resolution by
    the transpose of up-sampling.
    """
    rows = []
    y = targets.double()[None]
    for f in maps:
        down = _apply(y, [m.T for m in _kept(f.shape[2:], size, targets.shape[1:])])
        rows.append(f[0].double().flatten(1) @ down[0].flatten(1).T)
    return torch.cat(rows)


def gram(maps: Sequence[Tensor], size: Sequence[int], crop: Sequence[int] | None = None) -> Tensor:
    """Return ``sum_p x_p x_p^T`` over the pixels of one image, ``[sum C_i, sum C_i]`` in float64.

    For two maps this is ``f_i (U_i^T U_j) f_j^T``: the larger is brought to the smaller's grid first. The sum goes over
    the first rows and columns only, ``crop`` of them: the rest is padding.
    """
    double = [f[:1].double() for f in maps]

    @functools.cache
    def on_grid(number: int, grid: torch.Size) -> Tensor:
        f = double[number]
        pairs = zip(_kept(grid, size, crop), _kept(f.shape[2:], size, crop), strict=True)
        return _apply(f, [a.T @ b for a, b in pairs])[0].flatten(1)

    blocks: list[list[Tensor]] = [[torch.empty(0)] * len(maps) for _ in maps]
    for i, a in enumerate(double):
        for j, b in enumerate(double[: i + 1]):
            if math.prod(a.shape[2:]) <= math.prod(b.shape[2:]):
                blocks[i][j] = a[0].flatten(1) @ on_grid(j, a.shape[2:]).T
            else:
                blocks[i][j] = on_grid(i, b.shape[2:]) @ b[0].flatten(1).T
            blocks[j][i] = blocks[i][j].T
    return torch.cat([torch.cat(row, dim=1) for row in blocks])
