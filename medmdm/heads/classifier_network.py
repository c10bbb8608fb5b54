"""The pixel classifier of the paper, all members of an ensemble on the same low-resolution maps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones.feature_maps import upsample
from medmdm.components import buildable, declared
from medmdm.errors import UserError

#: From this many classes on the paper's classifier is wider.
MANY_CLASSES = 30
_ROWS = 4096  # pixels that are reduced together


@buildable
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
        given = declared(locals())
        widths = list(hidden) if hidden is not None else [256, 128] if num_classes >= MANY_CLASSES else [128, 32]
        if min(in_channels, num_classes, members, *widths) < 1:
            raise UserError(
                f"PixelClassifier: in_channels {in_channels}, num_classes {num_classes}, members {members} and hidden "
                f"{widths} must be at least 1."
            )
        self.members = members
        self.num_classes = num_classes
        self.momentum = momentum
        self.config: dict[str, Any] = {**given, "hidden": widths}
        sizes = [in_channels, *widths, num_classes]
        generators = [torch.Generator().manual_seed(seed + m) for m in range(members)]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            drawn = [torch.randn(fan_out, fan_in, generator=g) * 0.02 for g in generators]
            self.weights.append(nn.Parameter(torch.stack(drawn)))  # [M, out, in]
            self.biases.append(nn.Parameter(torch.zeros(members, fan_out)))
        self.norms = nn.ModuleList([nn.BatchNorm1d(members * width, momentum=momentum) for width in widths])

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], members: slice | None = None) -> Tensor:
        """Classify every pixel.

        Args:
            maps: ``[B, C_i, *spatial_i]``, their channels together ``in_channels``; fastest with channels last.
            size: the output's spatial size.
            members: which of the ensemble; None for all. In training only their batch statistics are updated.

        Returns:
            Logits ``[M, B, K, *size]``.
        """
        out = []
        for m in range(self.members)[slice(None) if members is None else members]:
            h = _linear(self.weights[0][m], self.biases[0][m], maps, size).movedim(1, -1)
            out.append(self._rest(h.flatten(0, -2), m).unflatten(0, h.shape[:-1]).movedim(-1, 1))
        return torch.stack(out)

    def forward_pixels(self, x: Tensor) -> Tensor:
        """Classify pixels ``[N, in_channels]`` whose features were gathered, by all members: ``[M, N, K]``."""
        first = zip(self.weights[0], self.biases[0], strict=True)
        return torch.stack([self._rest(F.linear(x, weight, bias), m) for m, (weight, bias) in enumerate(first)])

    def _rest(self, h: Tensor, m: int) -> Tensor:
        """All of a member after its first product: ``[N, H]``, which is overwritten, → ``[N, K]``.

        Members take turns. Joint products are no faster, and round otherwise than those of a member alone.
        """
        for weight, bias, norm in zip(self.weights[1:], self.biases[1:], self.norms, strict=True):
            h, scale, shift = self._normalize(h, cast(nn.BatchNorm1d, norm), m)
            h = F.linear(h, weight[m] * scale, bias[m] + weight[m] @ shift)
        return h

    def _normalize(self, h: Tensor, norm: nn.BatchNorm1d, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """ReLU and batch normalisation of ``[N, H]``; a scale and a shift ``[H]`` are left to the next layer."""
        pixels, width = h.shape
        part = slice(m * width, (m + 1) * width)
        mean, variance = norm.running_mean[part], norm.running_var[part]  # type: ignore[index]
        if self.training:
            h, batch_mean, batch_variance = _RectifyAndStandardize.apply(h, norm.eps)
            mean.lerp_(batch_mean, self.momentum)
            variance.lerp_(batch_variance * (pixels / max(pixels - 1, 1)), self.momentum)
            return h, norm.weight[part], norm.bias[part]
        scale = norm.weight[part] * (variance + norm.eps).rsqrt()
        return F.relu(h, inplace=not torch.is_grad_enabled()), scale, norm.bias[part] - mean * scale

    def _part(self, value: Tensor, number: int) -> Tensor:
        """The part of a parameter or statistic that is one member's; what is no tensor of members is all members'."""
        return value.chunk(self.members)[number] if value.ndim else value

    def member(self, number: int) -> dict[str, Tensor]:
        """Return a copy of the state of one member, as a PixelClassifier with ``members=1`` would hold it."""
        return {name: self._part(value, number).clone() for name, value in self.state_dict().items()}

    def shared_member(self, number: int) -> PixelClassifier:
        """Return a member as a classifier of its own in the memory of this one: what trains it trains this one.

        Its gradients, too, go where this classifier's are, which become zeros where there were none. That spares the
        gradients of all members that a part of a parameter would have.
        """
        one = PixelClassifier(**{**self.config, "members": 1})
        shared: dict[str, Tensor] = {name: self._part(buffer, number) for name, buffer in self.named_buffers()}
        for name, mine in self.named_parameters():
            if mine.grad is None:
                mine.grad = torch.zeros_like(mine)
            shared[name] = nn.Parameter(self._part(mine.detach(), number), mine.requires_grad)
            shared[name].grad = self._part(mine.grad, number)
        for name, value in shared.items():
            module, _, key = name.rpartition(".")
            setattr(one.get_submodule(module), key, value)
        return one.train(self.training)

    @torch.no_grad()
    def set_member(self, number: int, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`member` returned."""
        for name, value in self.state_dict().items():
            if value.ndim:
                self._part(value, number).copy_(state[name])


class _RectifyAndStandardize(torch.autograd.Function):
    """ReLU, then zero mean and unit variance of each channel over the pixels, in the place of the input ``[N, C]``.

    One large tensor is kept for the backward pass where PyTorch's two layers keep two, and memory is what a training
    step waits for. PyTorch's batch normalisation adds up pixels one by one where their channels lie side by side:
    with the 65 536 pixels of a crop its result is off by a thousandth. Sums here are of few numbers at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach()  # a view may not be marked as overwritten; its version still tells
        x.clamp_(min=0)
        mean = x.mean(0)
        x.sub_(mean)
        variance = _mean_product(x, x)
        inverse = (variance + eps).rsqrt()
        x.mul_(inverse)
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(x, inverse, -mean * inverse)
        return x, mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, inverse, zero = ctx.saved_tensors
        mean, along = g.mean(0), _mean_product(g, x)
        out = torch.empty_like(g, memory_format=torch.contiguous_format)
        shown = torch.empty_like(out[:_ROWS])
        for o, part, y in zip(out.split(_ROWS), g.split(_ROWS), x.split(_ROWS), strict=True):
            torch.addcmul(part, y, along, value=-1, out=o).sub_(mean).mul_(inverse)
            o.mul_(torch.gt(y, zero, out=shown[: len(y)]))  # a mask of numbers: one of booleans is converted first
        return out, None


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over rows of ``a * b``, ``[N, C]`` → ``[C]``, part by part in the processor's cache."""
    sums = [(p * q).sum(0) for p, q in zip(a.split(_ROWS), b.split(_ROWS), strict=True)]
    return torch.stack(sums).sum(0) / len(a)


@buildable
class LinearClassifier(nn.Module):
    """A linear map from features to class scores, from a closed-form solution (:mod:`medmdm.heads.pixel_sums`).

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
        return _linear(self.weight, self.bias, maps, size)[None]


def _linear(weight: Tensor, bias: Tensor, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Apply a layer to the up-sampled stack of maps: ``[B, H, *size]``, channels last in memory.

    The products of maps of one resolution are added before they are up-sampled: a decoder has several such blocks.
    Up-sampling keeps constants, so that the bias, too, is added before.

    Args:
        weight: ``[H, sum C_i]``.
        bias: ``[H]``.
        maps: ``[B, C_i, *spatial_i]``.
        size: of the result.

    Raises:
        UserError: the maps have another number of channels.
    """
    channels = [f.shape[1] for f in maps]
    if sum(channels) != weight.shape[1]:
        raise UserError(f"{sum(channels)} channels of features were given, but the head expects {weight.shape[1]}.")
    small: dict[tuple[int, ...], Tensor] = {}
    for f, part in zip(maps, weight.split(channels, dim=1), strict=True):
        product = F.linear(f.movedim(1, -1), part, None if small else bias)
        grid = tuple(int(n) for n in f.shape[2:])
        small[grid] = small[grid].add_(product) if grid in small else product
    return functools.reduce(Tensor.add_, (upsample(product.movedim(-1, 1), size) for product in small.values()))
