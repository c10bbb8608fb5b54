"""Numbering objects: connected parts, and watersheds that cut them into those that touch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from medmdm.metrics.instances import connected_objects

_DECIMALS = 3  # of the smoothed height: equal heights along a ridge must stay equal


def cut_at_necks(
    labels: np.ndarray, steps: Sequence[float], min_distance: float, smooth: float, depth: float
) -> np.ndarray:
    """Cut connected parts, numbered 1..n, where they are narrow.

    Args:
        labels: ``[*spatial]``.
        steps: distance between neighbours along each axis, in the unit of the following.
        min_distance: between two seeds, at least.
        smooth: standard deviation of the Gaussian that smooths the distance to the background.
        depth: by how much a neck must be narrower (in half widths) than what it joins.

    Returns:
        Numbers of objects ``[*spatial]``.
    """
    inside = labels > 0
    # The edge of the image is no edge of an object: only background counts.
    distance = ndimage.distance_transform_edt(inside, sampling=steps) if not inside.all() else np.ones(labels.shape)
    pixel = math.prod(steps) ** (1 / len(steps))
    return _watershed(labels, distance, steps, min_distance, smooth, depth, pixel)


def cut_at_saddles(
    labels: np.ndarray,
    heights: np.ndarray,
    steps: Sequence[float],
    min_distance: float,
    smooth: float,
    depth: float,
) -> np.ndarray:
    """Cut connected parts where a map that is high in the middle of objects, in [0, 1], has a saddle.

    Arguments are those of :func:`cut_at_necks`; ``depth`` is by how much a saddle must be lower than what it joins.
    """
    return _watershed(labels, heights, steps, min_distance, smooth, depth)


def hover_heights(inside: np.ndarray, hover: np.ndarray) -> np.ndarray:
    """Return how far from a border pixels seem by horizontal and vertical maps, ``[H, W]`` in [0, 1].

    Where an object ends the maps fall from 1 to -1: the smaller of their slopes, scaled to [0, 1] (HoVer-Net, arXiv
    1812.06499; MONAI's ``GenerateInstanceBorder``).

    Args:
        inside: pixels of objects ``[H, W]``.
        hover: horizontal and vertical map ``[2, H, W]``.
    """
    from monai.apps.pathology.transforms.post.array import GenerateInstanceBorder  # slow to import

    parts = (torch.from_numpy(np.asarray(one, np.float32)) for one in (inside[None], hover))
    try:
        border = GenerateInstanceBorder(kernel_size=5)(*parts)
    except ValueError:  # maps of one value say nothing
        return np.ones(inside.shape)
    return 1 - np.asarray(border, np.float64)[0]


def _watershed(
    labels: np.ndarray,
    height: np.ndarray,
    steps: Sequence[float],
    min_distance: float,
    smooth: float,
    depth: float,
    unit: float = 1.0,
) -> np.ndarray:
    """Cut connected parts, numbered 1..n, along the valleys of a height whose maxima are seeds.

    ``unit`` is that of the height and of ``depth``.
    """
    from skimage.feature import peak_local_max  # slow to import
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    inside = labels > 0
    if smooth > 0:
        height = ndimage.gaussian_filter(height, [smooth / step for step in steps], mode="nearest")
    pixel = math.prod(steps) ** (1 / len(steps))
    height = np.round(height / unit, _DECIMALS)
    # What a network says may be below 0, which outside is: maxima there would be none.
    height = np.where(inside, height - height[inside].min(initial=0), 0)
    # Maxima that are lower than `depth` over the saddle to a higher one are steps of a slanted edge; and a ridge of one
    # height is one seed, where `peak_local_max` alone would set one at every `min_distance` along it.
    levelled = reconstruction(height - depth / unit, height) if depth > 0 else height
    tops = connected_objects(local_maxima(np.round(levelled, _DECIMALS), allow_borders=True) & inside)
    heights = np.zeros(labels.shape)
    centres = _middles(tops)
    heights[centres] = height[centres]
    seeds = peak_local_max(
        heights, min_distance=max(1, round(min_distance / pixel)), exclude_border=False, labels=labels
    )
    markers = np.zeros(labels.shape, np.int32)
    markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
    # A part of one height has no maximum, yet is an object.
    seedless = np.where(np.isin(labels, labels[tuple(seeds.T)]), 0, labels)
    others = _middles(in_order(seedless))
    markers[others] = np.arange(len(seeds) + 1, len(seeds) + 1 + len(others[0]))
    return watershed(-height, markers, mask=inside, connectivity=labels.ndim)


def _middles(tops: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the index of the pixel of each part that is nearest to the part's centre."""
    index = np.nonzero(tops)
    part = tops[index] - 1
    points = np.stack(index, axis=1).astype(float)
    count = np.bincount(part)
    centre = np.stack([np.bincount(part, weights=p) / count for p in points.T], axis=1)
    away = np.round(((points - centre[part]) ** 2).sum(axis=1), 6)
    order = np.lexsort((np.arange(len(part)), away, part))  # of equally near ones the first in the image
    chosen = order[np.unique(part[order], return_index=True)[1]]
    return tuple(axis[chosen] for axis in index)


def in_order(instances: np.ndarray) -> np.ndarray:
    """Number instances 1..n by their first pixels."""
    new = np.zeros(instances.shape, np.int32)
    new[instances > 0] = pd.factorize(instances[instances > 0])[0] + 1
    return new
