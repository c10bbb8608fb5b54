"""The exponential moving average of a network's weights, which is what is used of a network after its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from medmdm.errors import UserError


class EMA(AveragedModel):
    """Exponential moving average of a network's weights (``torch.optim.swa_utils.AveragedModel``).

    Args:
        model: the network (or its ``DistributedDataParallel`` wrapper), already on its device.
        decay: weight of the past, in [0, 1); the paper's is 0.9999.
        warmup: use ``min(decay, (1 + n) / (10 + n))`` after n updates, so that a short run does not end with an average
            that is still mostly the random initialisation.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"The EMA's decay must lie in [0, 1), got {decay}.")

        @torch.no_grad()
        def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
            n = int(updates)
            beta = min(decay, (1 + n) / (10 + n)) if warmup else decay
            torch._foreach_lerp_(averaged, current, 1 - beta)

        super().__init__(unwrap(model), multi_avg_fn=average)
        self.requires_grad_(False)
        self.eval()

    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser step."""
        self.update_parameters(unwrap(model))


def unwrap(network: nn.Module) -> nn.Module:
    """Return a network without its ``DistributedDataParallel`` wrapper."""
    return network.module if isinstance(network, DistributedDataParallel) else network
