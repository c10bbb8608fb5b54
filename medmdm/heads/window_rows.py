"""Sliding windows read row by row: finished rows of an image leave before the next ones are read."""

from __future__ import annotations

import itertools
from collections import deque
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
    read: Callable[[slice, slice], Tensor],
    size: tuple[int, int],
    inferer: SlidingWindowInferer,
    function: Callable[[Tensor], Tensor],
    columns: tuple[int, int] | None = None,
    wanted: Callable[[slice, slice], bool] | None = None,
    in_memory: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Yield what ``inferer`` gives for an image, from its first row to its last, a few rows at a time.

    Windows, their order, batches, weights and sums are those of MONAI's ``sliding_window_inference``, so that the bits
    are. In memory are the rows that some window still adds to, two rows of windows at most. (MONAI's ``buffer_steps``
    spares the GPU; the sums of the whole image stay in memory.)

    Args:
        read: gives rows and columns of the image, ``[C, h, w]`` as ``function`` takes them.
        size: rows and columns of the image, neither below the window's.
        inferer: that :func:`reads_by_rows`.
        function: images ``[B, C, h, w]`` -> ``[B, K, h, w]`` float32.
        columns: first column and end of what is yielded, so that memory does not grow with the width either; all.
        wanted: whether a window at these rows and columns is to be read; all are.
        in_memory: ``read`` gives views of what is in memory anyway: rows are read again rather than kept.

    Yields:
        The first row, and ``[K, rows, columns]`` that follow the ones before; NaN where no window was read. Rows on
        which there is none may be left out. What is yielded is overwritten when the next is asked for.
    """
    window = fall_back_tuple(inferer.roi_size, size)
    overlaps = inferer.overlap if isinstance(inferer.overlap, (list, tuple)) else [inferer.overlap] * 2
    # As MONAI's `_get_scan_interval`.
    steps = tuple(
        n if n == whole else max(1, int(n * (1 - overlap)))
        for n, whole, overlap in zip(window, size, overlaps, strict=True)
    )
    begin, stop = columns or (0, size[1])
    # Along each axis by itself: a slide has millions of windows, which are not listed.
    down, across = (
        [one[0] for one in dense_patch_slices((n,), (side,), (step,))]
        for n, side, step in zip(size, window, steps, strict=True)
    )
    across = [one for one in across if one.start < stop and one.stop > begin]
    left, right = across[0].start, across[-1].stop
    kept = slice(begin - left, stop - left)
    places = (one for one in itertools.product(down, across) if wanted is None or wanted(*one))
    waiting = deque(itertools.islice(places, inferer.sw_batch_size + 1))
    weights: Tensor | None = None
    first, end = 0, 0  # rows of the image that are in memory
    image = sums = torch.empty(0)  # sums of K logits, and of weights behind them; made once, its rows move up
    while waiting:
        batch = list(waiting)[: inferer.sw_batch_size]
        # Windows beyond a gap wait: the rows between are not to be read.
        batch = [one for one in batch if one[0].start <= batch[0][0].stop]
        if batch[0][0].start > end:
            first = end = batch[0][0].start
        if batch[-1][0].stop > end:
            last = batch[-1][0].stop
            further = read(slice(first if in_memory else end, last), slice(left, right))
            image = further if in_memory or end == first else torch.cat([image, further], dim=1)
            end = last
        # Without a name of their own: views keep the rows alive that they were taken from.
        out = function(
            torch.stack([image[:, y.start - first : y.stop - first, x.start - left : x.stop - left] for y, x in batch])
        )
        if weights is None:
            weights = compute_importance_map(
                window, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=out.device, dtype=torch.float32
            )[None]
            sums = weights.new_zeros(out.shape[1] + 1, 0, right - left)
        out *= weights
        if end - first > sums.shape[1]:
            rows_held = max(end - first, window[0] + steps[0])
            sums = F.pad(sums, (0, 0, 0, rows_held - sums.shape[1]))
        for (rows, place), values in zip(batch, out, strict=True):
            where = (
                slice(None),
                slice(rows.start - first, rows.stop - first),
                slice(place.start - left, place.stop - left),
            )
            sums[where][:-1] += values
            sums[where][-1:] += weights
        for _ in batch:
            waiting.popleft()
            waiting.extend(itertools.islice(places, 1))
        following = min(waiting[0][0].start if waiting else size[0], end)
        if following > first:
            done, held = following - first, end - first
            yield first, sums[:-1, :done].div_(sums[-1:, :done])[..., kept]
            image = image[:, done:] if in_memory else image[:, done:].clone()
            _move_up(sums, done, held)
            first = following


def _move_up(sums: Tensor, done: int, held: int) -> None:
    """Move rows ``[done, held)`` to the top and clear what follows them, in parts that do not overlap: no copy."""
    left = held - done
    for row in range(0, left, done):
        end = min(row + done, left)
        sums[:, row:end] = sums[:, row + done : end + done]
    sums[:, left:held] = 0
