"""What a network learns: how images are corrupted, what it is to predict from them, and how that is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.corruption import Corruption, Generators
from medmdm.objectives.losses import ReconstructionLoss, WeightedSumLoss
from medmdm.objectives.target import check_target, restored

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """The objective of masked diffusion (arXiv 2308.05695, section 3) and of its relatives.

    Args:
        corruption: ``corrupt(x0, t, generators)``.
        timesteps: ``draw(batch_size, generators, device)``.
        loss_function: called as ``loss(pred, target, visible)`` for the losses of ``medmdm.objectives``, else as
            ``loss(pred, target)``; always in float32 outside autocast.
        target: what the network predicts: ``"image"`` or, for corruptions that add noise, ``"noise"``.
    """

    corruption: Corruption
    timesteps: Any
    loss_function: Callable[..., Tensor]
    target: str = "image"

    def __post_init__(self) -> None:
        check_target(self.target, self.corruption)

    def to(self, device: torch.device) -> Objective:
        """Move what the loss holds to a device."""
        if isinstance(self.loss_function, nn.Module):
            self.loss_function.to(device)
        return self

    def pose(self, images: Tensor, generators: Generators) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Corrupt a batch.

        Args:
            images: ``[B, C, *spatial]`` in [-1, 1].
            generators: one for each image.

        Returns:
            The corrupted images x_t, t ``[B]``, what the network is to predict, and the visible pixels
            ``[B, 1, *spatial]``.
        """
        t = self.timesteps(len(images), generators, images.device)
        corrupted = self.corruption(images, t, generators)
        target = images if self.target == "image" else corrupted.noise
        assert target is not None  # check_target
        return corrupted.x_t, t, target, corrupted.visible

    def loss(self, pred: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        """Judge a prediction; channels beyond the target's (a learnt sigma) are not part of the objective."""
        extra = (visible,) if isinstance(self.loss_function, (ReconstructionLoss, WeightedSumLoss)) else ()
        return self.loss_function(pred.float()[:, : target.shape[1]], target, *extra)

    def restored(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean image that a prediction implies, in float32."""
        return restored(pred.float()[:, : x_t.shape[1]], x_t, t, self.target, self.corruption)
