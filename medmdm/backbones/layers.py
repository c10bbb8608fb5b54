"""What backbones are made of: the base of networks of numbered blocks, and the layers of an ADM U-Net."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from medmdm.errors import UserError


def sinusoidal_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Embed timesteps ``[B]`` as cosines and sines of geometrically spaced frequencies: ``[B, width]`` in float32.

    Cosines go first, a zero fills up an odd width, and the period of the slowest wave is about 10 000 · 2π.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def convolution(dims: int, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution with bias that keeps the size at stride 1."""
    return Conv[Conv.CONV, dims](in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)


def with_zero_weights(layer: nn.Module) -> nn.Module:
    """Set all parameters of ``layer`` to zero, so that the residual branch it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def keep(x: Tensor) -> Tensor:
    """Leave the size as it is."""
    return x


def halve(x: Tensor) -> Tensor:
    """Average pooling by two along every spatial axis."""
    return F.avg_pool2d(x, 2) if x.ndim == 4 else F.avg_pool3d(x, 2)


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour up-sampling by two along every spatial axis."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Float32GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics are never taken in half precision, whatever autocast does."""

    def __init__(self, num_channels: int, num_groups: int = 32) -> None:
        super().__init__(num_groups, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]``; the result has the dtype of ``x``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        # On a CPU, torch's kernel for channels last loses the variance of a group whose mean is far from zero (10 % off
        # at a hundred standard deviations) and is slow backward; CUDA has no such kernel and makes this copy itself.
        return F.group_norm(x.contiguous().to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Downsample(nn.Module):
    """Halve the size between two levels: a convolution of stride two, or an average without parameters."""

    def __init__(self, spatial_dims: int, channels: int, learned: bool) -> None:
        super().__init__()
        self.op = convolution(spatial_dims, channels, channels, stride=2) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        return halve(x) if self.op is None else self.op(x)


class Upsample(nn.Module):
    """Double the size between two levels: nearest neighbours, then a convolution if it is to be learned."""

    def __init__(self, spatial_dims: int, channels: int, learned: bool) -> None:
        super().__init__()
        self.conv = convolution(spatial_dims, channels, channels) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))


class ResBlock(nn.Module):
    """A pre-activation residual block conditioned on an embedding; arguments as those of :class:`ADMUNet`.

    The embedding acts as FiLM, ``GroupNorm(h) * (1 + scale) + shift``, or is added before the normalisation.
    ``resample`` is :func:`halve` or :func:`double` to change the size inside the block.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        resample: Callable[[Tensor], Tensor] | None = None,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resample = resample or keep
        self.spatial_dims = spatial_dims
        convolve = convolution(spatial_dims, in_channels, out_channels)
        self.in_layers = nn.Sequential(Float32GroupNorm(in_channels, num_groups), nn.SiLU(), convolve)
        embedded = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, embedded))
        last = with_zero_weights(convolution(spatial_dims, out_channels, out_channels))
        norm = Float32GroupNorm(out_channels, num_groups)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(dropout), last)
        is_same = in_channels == out_channels
        self.skip_connection = nn.Identity() if is_same else convolution(spatial_dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform ``x`` ``[B, in_channels, *spatial]`` under ``embedding`` ``[B, embedding_channels]``."""
        # Layers by their numbers, which TorchScript knows where it cannot unpack a module.
        h = self.in_layers[1](self.in_layers[0](x))
        h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        condition = self.emb_layers(embedding)
        for _ in range(self.spatial_dims):
            condition = condition.unsqueeze(-1)
        if self.use_scale_shift_norm:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)  # one pass over memory where "* +" makes two
        else:
            h = self.out_layers[0](h + condition)
        return self.skip_connection(x) + self.out_layers[3](self.out_layers[2](self.out_layers[1](h)))


class PointwiseConv1d(nn.Conv1d):
    """A 1x1 convolution, with the parameter shapes of one, that acts on tokens ``[B, L, C]``.

    With channels last in memory the tokens of an image are a view of it, and nothing is copied around the product.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, L, in_channels]`` to ``[B, L, out_channels]``."""
        return F.linear(tokens, self.weight.squeeze(-1), self.bias)


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions of an image or volume; the number of heads divides the channels.

    With ``use_new_attention_order`` the channels of ``qkv`` are (q, k, v) x heads, by default heads x (q, k, v).
    """

    #: How queries, keys and values ``[B, heads, L, channels / heads]`` become attended values.
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.scaled_dot_product_attention)

    def __init__(
        self, channels: int, num_heads: int, use_new_attention_order: bool = False, num_groups: int = 32
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.norm = Float32GroupNorm(channels, num_groups)
        self.qkv = PointwiseConv1d(channels, 3 * channels)
        self.proj_out = with_zero_weights(PointwiseConv1d(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of ``[B, C, *spatial]``."""
        qkv = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        if self.use_new_attention_order:
            q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = qkv.unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        attended = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj_out(attended).transpose(1, 2).reshape(x.shape)


class ConditionedBlock(nn.ModuleList):
    """Layers in a row, of which the residual blocks also see the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Pass ``x`` ``[B, C, *spatial]`` through the layers."""
        for layer in self:
            # Whether it is a ResBlock, in words that TorchScript understands.
            x = layer(x, embedding) if hasattr(layer, "emb_layers") else layer(x)
        return x


def parameters_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of a weights file, which stand beside its plan; a bare state dict as it is."""
    if "plan" not in content:
        return content
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def paper_blocks(network: Any) -> list[int]:
    """Return the decoder blocks at the relative position of the paper's for histology, 8 to 12 of 18."""
    numbers = [info["block"] for info in network.feature_info]
    return numbers[round(8 / 18 * len(numbers)) : round(12 / 18 * len(numbers)) + 1]


class Traced(nn.Module):
    """What ``torch.jit.script`` compiles of a module that it cannot read: its trace, for images of one size.

    Scripting asks a module for it by the method ``__prepare_scriptable__``.

    Args:
        module: images ``[B, C, *spatial]`` -> ``[B, K, *spatial]``.
        shape: ``(C, *spatial)`` of the images.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        weights = next(module.parameters())
        example = torch.zeros(1, *shape, dtype=weights.dtype, device=weights.device)
        with warnings.catch_warnings():
            # Sizes become constants, which is what is wanted.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            self.traced = torch.jit.trace(module, example, check_trace=False)

    def forward(self, image: Tensor) -> Tensor:
        traced: Tensor = self.traced(image)
        return traced


class BlockNetwork(nn.Module):
    """A network ``forward(x, timesteps)`` whose decoder blocks can be read: ``features(x, timesteps, blocks)``.

    Args:
        config: the constructor's arguments, see :func:`medmdm.components.declared`.
        reduction: the total down-sampling rate; it divides the size of every input.
    """

    __jit_unused_properties__ = ("config", "feature_info", "in_channels", "spatial_dims", "usual_blocks")
    #: Whether it was trained on corrupted images; False: it is to see them as they are.
    restores = True
    #: What its weights file says of it, where it was read from one without its plan being asked for.
    plan: Mapping[str, Any] | None = None

    def __init__(self, config: dict[str, Any], reduction: int = 1) -> None:
        super().__init__()
        self._config = config
        self._feature_info: list[dict[str, int]] = []
        self.reduction = reduction

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return copy.deepcopy(self._config)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """For each decoder block its number, the channels of its output and how much smaller that is than the input."""
        return copy.deepcopy(self._feature_info)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self._config["in_channels"])

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes; 2 where the network does not say."""
        return int(self._config.get("spatial_dims", 2))

    @property
    def usual_blocks(self) -> list[int]:
        """Blocks that are read where nothing else is asked for: :func:`paper_blocks`."""
        return paper_blocks(self)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the clean image, or the noise, from a corrupted image.

        Args:
            x: ``[B, in_channels, *spatial]``, usually in [-1, 1]; sizes are multiples of :attr:`reduction`.
            timesteps: ``[B]``, integers or floats, usually in ``[0, 1000)``.

        Returns:
            ``[B, out_channels, *spatial]``.

        Raises:
            UserError: a shape does not fit.
        """
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict, or all that a weights file of ours holds, as MONAI's and ignite's loaders give it."""
        return super().load_state_dict(parameters_of(state_dict), strict, assign)

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the outputs of some decoder blocks; nothing after the last of them is computed.

        Args:
            x: as in :meth:`forward`.
            timesteps: as in :meth:`forward`.
            blocks: numbers of decoder blocks, in any order.

        Returns:
            ``[B, C_i, *spatial_i]`` for each of ``blocks`` in the order asked for; see :attr:`feature_info`.

        Raises:
            UserError: a block does not exist, none is asked for, or an input does not fit.
        """
        raise NotImplementedError

    def block_modules(self) -> list[nn.Module]:
        """Return, for each decoder block, the module whose output is the block's.

        Raises:
            UserError: the network does not say, as those that are not trained to restore.
        """
        raise UserError(f"{type(self).__name__} does not have decoder blocks that can be read while it restores.")

    def add_block(self, channels: int, reduction: int) -> None:
        """Count one more decoder block."""
        self._feature_info.append({"block": len(self._feature_info), "channels": channels, "reduction": reduction})

    def check_blocks(self, blocks: Sequence[int], what_for: str = "features") -> None:
        """Refuse numbers of decoder blocks that there are not."""
        total = len(self._feature_info)
        wrong = [block for block in blocks if block not in range(total)]
        if wrong or not blocks:
            what = f"there is no block {wrong[0]!r}" if wrong else "no block is asked for"
            known = f"the decoder blocks 0 to {total - 1}" if total > 1 else "block 0 only"
            raise UserError(f"{what_for}: {what}; this network has {known}.")

    def check_inputs(self, x: Tensor, timesteps: Tensor) -> None:
        """Refuse images of other axes, channels or sizes than the network takes, and another number of timesteps."""
        if torch.jit.is_tracing():
            return  # a traced shape is a tensor: the comparisons below would warn and be frozen
        name = type(self).__name__
        dims, channels = self.spatial_dims, self.in_channels
        if x.ndim != dims + 2 or x.shape[1] != channels:
            axes = "height, width" if dims == 2 else "depth, height, width"
            advice = f"; set spatial_dims to {x.ndim - 2}" if x.ndim == 7 - dims else ""
            raise UserError(f"{name}: x has the shape {tuple(x.shape)}, expected [batch, {channels}, {axes}]{advice}.")
        if any(size % self.reduction for size in x.shape[2:]):
            levels = self.reduction.bit_length()
            of = f" of {levels} levels" if self.reduction == 2 ** (levels - 1) else ""
            rate = f"{self.reduction}, the total down-sampling rate{of}"
            size = tuple(x.shape[2:])
            raise UserError(f"{name}: the spatial size {size} is not divisible by {rate}; crop or pad the input.")
        if timesteps.shape != x.shape[:1]:
            expected = f"expected one for each of the {x.shape[0]} images of the batch"
            raise UserError(f"{name}: timesteps have the shape {tuple(timesteps.shape)}, {expected}.")
