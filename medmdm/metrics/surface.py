"""How far the outlines of two masks are apart, from MONAI's distances between their boundary pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from numpy.typing import NDArray

from medmdm.errors import UserError

__all__ = ["surface_scores"]


def surface_scores(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing: Sequence[float] | float | None = None,
    tolerance: float = 1.0,
) -> dict[str, float]:
    """Compare the boundaries of two masks.

    A boundary is made of the mask's pixels that touch a pixel outside (or the edge of the image) with a side.

    Args:
        pred: predicted mask, 2-D or 3-D.
        true: true mask, of the same shape.
        spacing: size of a pixel along each axis (or one size for all), usually in mm; 1 by default: pixels.
        tolerance: distance up to which boundaries agree, in the unit of ``spacing``.

    Returns:
        ``hausdorff95``: the larger of the two 95th percentiles of the distances from one boundary to the other;
        ``surface_dice``: share of both boundaries within ``tolerance`` of the other (Nikolov et al. 2018);
        ``boundary_f``: F1 of the shares of each (Csurka et al. 2013). All NaN where both masks are empty; infinite,
        0 and 0 where one is.

    Raises:
        UserError: ``spacing`` or ``tolerance`` make no sense.
    """
    size = _spacing(spacing, pred.ndim)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"tolerance must be a distance of at least 0, got {tolerance}.")
    empty = int(not pred.any()) + int(not true.any())
    if empty:
        distance, share = (math.inf, 0.0) if empty == 1 else (math.nan, math.nan)
        return {"hausdorff95": distance, "surface_dice": share, "boundary_f": share}
    edges = get_mask_edges(torch.from_numpy(pred), torch.from_numpy(true))
    distances = [get_surface_distance(here, there, spacing=size) for here, there in (edges, edges[::-1])]
    # Compared by torch in the distances' own precision: 0.3 as a single is more than 0.3 as a double.
    near = [int((side <= tolerance).sum()) for side in distances]
    length = [len(side) for side in distances]
    precision, recall = near[0] / length[0], near[1] / length[1]
    return {
        "hausdorff95": max(float(np.percentile(side.numpy(), 95)) for side in distances),
        "surface_dice": sum(near) / sum(length),
        "boundary_f": 2 * precision * recall / (precision + recall) if any(near) else 0.0,
    }


def _spacing(spacing: Sequence[float] | float | None, axes: int) -> list[float]:
    if axes not in (2, 3):
        raise UserError(f"surfaces are measured in images and volumes, got an array of {axes} axes.")
    sizes = [1.0] * axes if spacing is None else np.atleast_1d(np.asarray(spacing, float)).tolist()
    if len(sizes) == 1:
        sizes = sizes * axes
    if len(sizes) != axes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"spacing must be a positive size for each of {axes} axes, got {spacing}.")
    return sizes
