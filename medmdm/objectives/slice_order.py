"""Which of three neighbouring slices or frames lies between the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.averaging import unwrap
from medmdm.components import declared
from medmdm.errors import UserError
from medmdm.objectives.term import Restored, Term, pooled


class SliceOrder(Term):
    """Say which of three neighbouring slices, shown in a random order, is the middle one (temporal order).

    Where neighbouring slices or frames are the channels of an image (``context_slices``), the middle three change
    places at random; the network reads the clean image and a linear layer on its pooled features names the channel
    that holds the middle one. Which of the outer two comes first is not asked: mirrored volumes look alike (Misra et
    al., arXiv 1603.08561; Lee et al., arXiv 1708.01246).

    Args:
        channels: channels of ``block``.
        block: the decoder block that is pooled.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
        learning_rate: of the linear layer.
        seed: of its weights.

    Raises:
        UserError: in a run, images have fewer than three channels.
    """

    def __init__(
        self,
        channels: int,
        block: int,
        weight: float = 0.1,
        warmup: float = 0.0,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        self.block = block

        def layers() -> None:
            self.classifier = nn.Linear(channels, 3)

        self.make(layers, seed)

    def forward(self, seen: Restored) -> Tensor:
        count = seen.images.shape[1]
        if count < 3:
            raise UserError(
                f"SliceOrder needs 3 neighbouring slices as channels, got {count}: set context_slices to 1."
            )
        orders = torch.stack([torch.rand(3, generator=g).argsort() for g in seen.generators]).to(seen.images.device)
        middle = count // 2 - 1  # the first of the middle three
        mixed = seen.images.clone()
        for place in range(3):
            source = middle + orders[:, place]
            mixed[:, middle + place] = seen.images[torch.arange(len(source), device=source.device), source]
        clean = torch.zeros(len(mixed), dtype=torch.long, device=mixed.device)
        features = unwrap(seen.student).features(mixed, clean, [self.block])[0]  # type: ignore[operator]
        with torch.autocast(mixed.device.type, enabled=False):
            return F.cross_entropy(self.classifier(pooled(features)), (orders == 1).int().argmax(1))
