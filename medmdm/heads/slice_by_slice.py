"""Networks for pictures over the slices of a volume: as an inferer of MONAI's, and along several axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from medmdm.data.files.volumes import axis_number
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.heads.task import Reading, Task

_AT_ONCE = 16  # slices


def along(volume: Tensor, axis: str, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what a network gives of the slices of volumes along an axis.

    Args:
        volume: ``[B, C, D, H, W]``, its axes as :class:`medmdm.data.CaseReader` reads volumes whole.
        axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        network: ``[N, C, h, w]`` -> ``[N, K, h, w]``, each slice by itself.

    Returns:
        ``[B, K, D, H, W]``.
    """
    place = 2 + axis_number(axis)

    def read(part: Tensor) -> Tensor:
        slices = part.movedim(place, 1)
        return network(slices.flatten(0, 1)).unflatten(0, (-1, slices.shape[1])).movedim(1, place)

    return torch.cat([read(part) for part in volume.split(_AT_ONCE, dim=place)], dim=place)


def window_along(window: Sequence[int], axis: str) -> tuple[int, ...]:
    """Return rows and columns of slices along an axis, of a window ``[D, H, W]``."""
    return tuple(size for number, size in enumerate(window) if number != axis_number(axis))


def task_of_slices(task: Task, axis: str) -> Task:
    """Return the task of learning slices along an axis, of a task whose volumes are read whole or in blocks.

    Raises:
        UserError: an unknown axis, or the images are no volumes that are read as such.
    """
    place = axis_number(axis)
    if len(task.reading.window) != 3:
        how = "set preprocessing#slice_axis to none and window to three numbers"
        raise UserError(f"axes are of volumes that are read whole: {how}, or leave axes out.")
    window = window_along(task.reading.window, axis)
    examples = [one for example in task.examples for one in _slices(example, place)]
    unlabelled = [one for image in task.unlabelled for one in image.unbind(1 + place)]
    reading = Reading(window, task.reading.whole, task.reading.overlap)
    return replace(task, examples=examples, reading=reading, unlabelled=unlabelled)


def _slices(example: Example, place: int) -> Iterator[Example]:
    objects = [None] * example.label.shape[place] if example.objects is None else example.objects.unbind(place)
    parts = zip(example.image.unbind(1 + place), example.label.unbind(place), objects, strict=True)
    for number, (image, label, own) in enumerate(parts):
        yield Example(image, label, f"{example.case}_{number:04d}", example.case, own)


class SliceBySlice(Inferer):
    """Read pictures as they are, and each slice of a volume as a picture.

    MONAI's ``SliceInferer`` reads volumes only, and hands the network sliding windows of them.

    Args:
        inferer: for a picture or a slice; None reads it whole.
    """

    def __init__(self, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.inferer = inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return what the network gives.

        Args:
            inputs: ``[B, C, H, W]``, or ``[B, C, slices, H, W]``.
            network: ``[B, C, H, W]`` -> ``[B, K, H, W]``.
            *args: for the network.
            **kwargs: for the network.

        Returns:
            ``[B, K, H, W]``, or ``[B, K, slices, H, W]``.
        """
        if inputs.ndim == 4:
            return self.inferer(inputs, network, *args, **kwargs)
        return torch.stack([self.inferer(one, network, *args, **kwargs) for one in inputs.unbind(2)], dim=2)
