"""A network for pictures over the slices of a volume, as an inferer of MONAI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor


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
