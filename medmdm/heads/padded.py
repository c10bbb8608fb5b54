"""Networks that take sizes of some multiple only, for images of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.errors import UserError

__all__ = ["PaddedNetwork", "cut"]


class PaddedNetwork(nn.Module):
    """Repeat the last row and column until the sides fit, and cut the output back.

    Args:
        network: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``, or a list of such whose last is read (as
            MONAI's UNet++ gives).
        multiple: what the sides must be multiples of.
        num_classes: K, checked at the first call; None: not checked.
    """

    def __init__(self, network: nn.Module, multiple: int = 32, num_classes: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.num_classes = num_classes

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``[B, K, *spatial]`` of images of any size.

        Raises:
            UserError: the network gives another number of classes.
        """
        spatial = [int(n) for n in image.shape[2:]]
        missing = [-n % self.multiple for n in spatial]
        if any(missing):
            image = F.pad(image, [n for m in reversed(missing) for n in (0, m)], mode="replicate")
        out = self.network(image)
        logits: Tensor = out[-1] if isinstance(out, (list, tuple)) else out
        if self.num_classes is not None and not torch.jit.is_tracing() and logits.shape[1] != self.num_classes:
            raise UserError(
                f"The network gives {logits.shape[1]} classes, but the data has {self.num_classes}: set its "
                "out_channels."
            )
        return cut(logits, spatial)


def cut(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Take the padding off the ends of the last axes."""
    index = (slice(None),) * (x.ndim - len(spatial)) + tuple(slice(0, int(n)) for n in spatial)
    return x[index]
