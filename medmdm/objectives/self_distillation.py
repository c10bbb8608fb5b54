"""The features of what is hidden, as the averaged network sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.components import declared
from medmdm.errors import UserError
from medmdm.objectives.term import Restored, Term


class SelfDistillation(Term):
    """Predict the averaged network's features of hidden cells (data2vec, arXiv 2202.03555, section 3.3).

    The averaged network sees the clean image at t = 0; its features, normalised over the channels of each cell without
    learnt scale, are what a small predictor (two 1x1 convolutions) must find from the network's features of the
    damaged image, by smooth L1. There are no negatives. Only cells of which at least half is hidden count; an
    image without one counts 0. Where the corruption hides nothing, all cells count.

    Args:
        channels: channels of each of ``blocks``.
        blocks: decoder blocks whose features are predicted.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there; 0.1 lets the averaged network learn something first.
        beta: of smooth L1: where it turns from square to linear, positive.
        learning_rate: of the predictors.
        spatial_dims: 2 or 3.
        seed: of the predictors' weights.

    Raises:
        UserError: there is not one number of channels for each block, or a number is out of range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        weight: float = 1.0,
        warmup: float = 0.1,
        beta: float = 1.0,
        learning_rate: float = 1e-3,
        spatial_dims: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        if len(channels) != len(blocks) or not blocks:
            raise UserError(f"SelfDistillation: give channels for each block, got {list(channels)} for {list(blocks)}.")
        if beta <= 0:
            raise UserError(f"SelfDistillation: beta must be positive, got {beta}.")
        self.blocks, self.beta = list(blocks), beta
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]

        def layers() -> None:
            self.predictors = nn.ModuleList(nn.Sequential(conv(n, n, 1), nn.GELU(), conv(n, n, 1)) for n in channels)

        self.make(layers, seed)

    def forward(self, seen: Restored) -> Tensor:
        with torch.no_grad():
            taught = seen.taught(seen.images, self.blocks)
        losses = []
        for block, target, predictor in zip(self.blocks, taught, self.predictors, strict=True):
            with torch.autocast(target.device.type, enabled=False):
                wanted = channel_norm(target.float())
                found = predictor(seen.features[block].float())
                error = F.smooth_l1_loss(found, wanted, reduction="none", beta=self.beta).mean(1).flatten(1)
                counts = hidden_cells(seen.visible, wanted.shape[2:]).flatten(1)
                losses.append(((error * counts).sum(1) / counts.sum(1).clamp_min(1)).mean())
        return torch.stack(losses).mean()


def channel_norm(features: Tensor) -> Tensor:
    """Give each cell mean 0 and variance 1 over its channels (layer normalisation without learnt scale)."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def hidden_cells(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Return which cells ``[B, *size]`` are at least half hidden, as 0 and 1; all of an image with nothing hidden."""
    pool: Callable[..., Tensor] = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[visible.ndim]
    hidden = (pool(1 - visible.float(), tuple(size)) >= 0.5).float()[:, 0]
    nothing = (visible.flatten(1).amin(1) == 1).reshape(-1, *[1] * (hidden.ndim - 1))
    return torch.where(nothing, 1.0, hidden)
