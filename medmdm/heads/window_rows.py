"""Sliding windows read row by row: finished rows of an image leave before the next ones are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import fall_back_tuple
from torch import Tensor
from torch.nn import functional as F

_AS_MONAI_SETS_IT = {
    "sw_device": None,
    "device": None,
    "progress": False,
    "buffer_steps": None,
    "with_coord": False,
    "cpu_thresh": None,
    "roi_weight_map": None,
}


def reads_by_rows(inferer: Inferer | None) -> bool:
    """Whether :func:`window_rows` gives what the inferer gives: MONAI's sliding windows, apart from their blending."""
    plain = type(inferer) is SlidingWindowInferer
    return plain and all(getattr(inferer, key, value) is value for key, value in _AS_MONAI_SETS_IT.items())


@torch.no_grad()
def window_rows(
    read: Callable[[int, int], Tensor],
    size: tuple[int, int],
    inferer: SlidingWindowInferer,
    function: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Yield what ``inferer`` gives for an image, from its first row to its last, a few rows at a time.

    Windows, their order, batches, weights and sums are those of MONAI's ``sliding_window_inference``, so that the bits
    are. In memory are the rows that some window still adds to, two rows of windows at most. (MONAI's ``buffer_steps``
    spares the GPU; the sums of the whole image stay in memory.)

    Args:
        read: gives rows ``[first, end)`` of the image, ``[C, end - first, W]`` where ``function`` computes.
        size: rows and columns of the image, neither below the window's.
        inferer: that :func:`reads_by_rows`.
        function: images ``[B, C, h, w]`` -> ``[B, K, h, w]``.

    Yields:
        ``[K, rows, W]``; all of them together have the image's rows.
    """
    window = fall_back_tuple(inferer.roi_size, size)
    overlaps = inferer.overlap if isinstance(inferer.overlap, (list, tuple)) else [inferer.overlap] * 2
    # As MONAI's `_get_scan_interval`.
    steps = tuple(
        n if n == whole else max(1, int(n * (1 - overlap)))
        for n, whole, overlap in zip(window, size, overlaps, strict=True)
    )
    places = dense_patch_slices(size, window, steps)
    weights: Tensor | None = None
    first, end = 0, 0  # rows of the image that are in memory
    image = sums = counts = torch.empty(0)
    for start in range(0, len(places), inferer.sw_batch_size):
        batch = places[start : start + inferer.sw_batch_size]
        if batch[-1][0].stop > end:
            last = batch[-1][0].stop
            image = read(end, last) if end == 0 else torch.cat([image, read(end, last)], dim=1)
            end = last
        # Without a name of their own: views keep the rows alive that they were taken from.
        out = function(torch.stack([image[:, y.start - first : y.stop - first, x] for y, x in batch]))
        if weights is None:
            weights = compute_importance_map(
                window, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=image.device, dtype=image.dtype
            )[None]
        out *= weights
        if not sums.numel():
            sums = image.new_zeros(out.shape[1], 0, size[1])
            counts = image.new_zeros(1, 0, size[1])
        if (missing := end - first - sums.shape[1]) > 0:
            sums, counts = (F.pad(one, (0, 0, 0, missing)) for one in (sums, counts))
        for (rows, columns), values in zip(batch, out, strict=True):
            place = (slice(None), slice(rows.start - first, rows.stop - first), columns)
            sums[place] += values
            counts[place] += weights
        following = places[start + len(batch)][0].start if start + len(batch) < len(places) else size[0]
        if following > first:
            done = following - first
            yield sums[:, :done] / counts[:, :done]
            image, sums, counts = (one[:, done:].clone() for one in (image, sums, counts))
            first = following
