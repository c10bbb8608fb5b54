"""The pixel classifier of the paper, all members of an ensemble as one grouped computation on low-resolution maps."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.errors import UserError
from medmdm.networks.feature_maps import upsample

__all__ = ["LinearClassifier", "PixelClassifier"]

#: From this many classes on the paper's classifier is wider.
MANY_CLASSES = 30


class PixelClassifier(nn.Module):
    """An ensemble of pixel-wise MLPs: ``Linear → ReLU → BatchNorm`` for each hidden width, then ``Linear``.

    Section 3.2 of arXiv 2308.05695, with the initialisation of its program: weights N(0, 0.02), biases 0. The first
    linear layer commutes with bilinear up-sampling, so it runs at each map's own resolution and the results are
    up-sampled and added: the same numbers without the stack of all features.

    Args:
        in_channels: channels of all feature maps together.
        num_classes: K.
        hidden: hidden widths; None for the paper's (128, 32), from 30 classes on (256, 128).
        members: size of the ensemble.
        seed: member m starts from the weights of seed ``seed + m``, whatever the other members are.
        momentum: of the batch normalisation's running statistics.

    Raises:
        UserError: a number is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1728,
        num_classes: int = 2,
        hidden: Sequence[int] | None = None,
        members: int = 10,
        seed: int = 0,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        widths = list(hidden) if hidden is not None else [256, 128] if num_classes >= MANY_CLASSES else [128, 32]
        if min(in_channels, num_classes, members, *widths) < 1:
            raise UserError(
                f"PixelClassifier: in_channels {in_channels}, num_classes {num_classes}, members {members} and hidden "
                f"{widths} must be at least 1."
            )
        self.members = members
        self.num_classes = num_classes
        self.momentum = momentum
        self._config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "hidden": widths,
            "members": members,
            "seed": seed,
            "momentum": momentum,
        }
        sizes = [in_channels, *widths, num_classes]
        generators = [torch.Generator().manual_seed(seed + m) for m in range(members)]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            drawn = [torch.randn(fan_out, fan_in, generator=g) * 0.02 for g in generators]
            self.weights.append(nn.Parameter(torch.stack(drawn)))  # [M, out, in]
            self.biases.append(nn.Parameter(torch.zeros(members, fan_out)))
        self.norms = nn.ModuleList([nn.BatchNorm1d(members * width, momentum=momentum) for width in widths])

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {**self._config, "hidden": list(self._config["hidden"])}

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], members: slice | None = None) -> Tensor:
        """Classify every pixel.

        Args:
            maps: ``[B, C_i, *spatial_i]``, their channels together ``in_channels``.
            size: the output's spatial size.
            members: which of the ensemble; None for all. In training all is meant: batch statistics of the others
                would not be updated.

        Returns:
            Logits ``[M, B, K, *size]``.
        """
        which = slice(0, self.members) if members is None else members
        weight, bias = self.weights[0][which], self.biases[0][which]
        m, width, _ = weight.shape
        h = _linear(weight.flatten(0, 1), maps, size)
        hidden = h.flatten(2).unflatten(1, (m, width)) + bias[None, :, :, None]
        out = self._rest(hidden, which)  # [B, M, K, P]
        return out.transpose(0, 1).unflatten(3, tuple(size))

    def forward_pixels(self, x: Tensor) -> Tensor:
        """Classify pixels whose features were gathered.

        Args:
            x: ``[N, in_channels]``, the same pixels for all members.

        Returns:
            Logits ``[M, N, K]``.
        """
        m, width, channels = self.weights[0].shape
        hidden = (self.weights[0].reshape(m * width, channels) @ x.T).reshape(1, m, width, -1)
        out = self._rest(hidden + self.biases[0][None, :, :, None], slice(0, m))
        return out[0].transpose(1, 2)

    def _rest(self, h: Tensor, which: slice) -> Tensor:
        """All after the first product, on ``[B, M, H, P]``."""
        for weight, bias, norm in zip(self.weights[1:], self.biases[1:], self.norms, strict=True):
            h = self._normalize(F.relu(h), cast(nn.BatchNorm1d, norm), which)
            h = torch.matmul(weight[which], h) + bias[which][None, :, :, None]
        return h

    def _normalize(self, h: Tensor, norm: nn.BatchNorm1d, which: slice) -> Tensor:
        """Batch normalisation of each member's channels over batch and pixels."""
        width = h.shape[2]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        part = slice(which.start * width, which.stop * width)
        flat = F.batch_norm(
            h.flatten(1, 2),
            norm.running_mean[part],
            norm.running_var[part],
            norm.weight[part],
            norm.bias[part],
            training=self.training,
            momentum=self.momentum,
            eps=norm.eps,
        )
        return flat.unflatten(1, h.shape[1:3])

    def member(self, number: int) -> dict[str, Tensor]:
        """Return a copy of the state of one member, as a PixelClassifier with ``members=1`` would hold it."""
        state = {}
        for name, value in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                state[name] = value.clone()
            elif name.startswith("norms"):
                state[name] = value.unflatten(0, (self.members, -1))[number].clone()
            else:
                state[name] = value[number : number + 1].clone()
        return state

    @torch.no_grad()
    def set_member(self, number: int, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`member` returned."""
        for name, value in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.startswith("norms"):
                value.unflatten(0, (self.members, -1))[number] = state[name]
            else:
                value[number] = state[name][0]


class LinearClassifier(nn.Module):
    """A linear map from features to class scores, from a closed-form solution (:mod:`medmdm.features.closed_form`).

    Args:
        weight: ``[K, C]`` nested list or tensor; None for zeros (to be loaded).
        bias: ``[K]``; None for zeros.
        in_channels: C, needed where weight is None.
        num_classes: K, needed where weight is None.
    """

    members = 1
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor | Sequence[Sequence[float]] | None = None,
        bias: Tensor | Sequence[float] | None = None,
        in_channels: int = 1728,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        w = torch.zeros(num_classes, in_channels) if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        b = torch.zeros(len(w)) if bias is None else torch.as_tensor(bias, dtype=torch.float32)
        self.register_buffer("weight", w)
        self.register_buffer("bias", b)
        self.num_classes = len(w)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that an empty one is made from, ready for JSON."""
        return {"in_channels": self.weight.shape[1], "num_classes": self.num_classes}

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], members: slice | None = None) -> Tensor:
        """Return scores ``[1, B, K, *size]``; see :meth:`PixelClassifier.forward`."""
        return (_linear(self.weight, maps, size) + self.bias.reshape(-1, *[1] * len(size)))[None]

    def forward_pixels(self, x: Tensor) -> Tensor:
        """Return scores ``[1, N, K]`` of gathered pixels ``[N, C]``."""
        return (x @ self.weight.T + self.bias)[None]


def _linear(weight: Tensor, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Apply ``weight`` ``[H, sum C_i]`` to the up-sampled stack of maps ``[B, C_i, *spatial_i]``: ``[B, H, *size]``.

    The products of maps of one resolution are added before they are up-sampled: a decoder has several such blocks.
    """
    channels = [f.shape[1] for f in maps]
    if sum(channels) != weight.shape[1]:
        raise UserError(f"{sum(channels)} channels of features were given, but the head expects {weight.shape[1]}.")
    small: dict[tuple[int, ...], Tensor] = {}
    for f, part in zip(maps, weight.split(channels, dim=1), strict=True):
        product = torch.matmul(part, f.flatten(2)).unflatten(2, f.shape[2:])
        grid = tuple(int(n) for n in f.shape[2:])
        small[grid] = small[grid] + product if grid in small else product
    return functools.reduce(torch.add, [upsample(product, size) for product in small.values()])


def classify_memory(members: int, width: int, size: Sequence[int], bytes_per_value: int = 4) -> int:
    """Return the bytes of one hidden layer's activations for all members at once."""
    return members * width * math.prod(size) * bytes_per_value
