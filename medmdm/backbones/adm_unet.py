"""The ADM U-Net: the network of guided diffusion, which masked diffusion models take over unchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmdm.backbones.layers import (
    AttentionBlock,
    BlockNetwork,
    ConditionedBlock,
    Downsample,
    Float32GroupNorm,
    ResBlock,
    Upsample,
    convolution,
    double,
    halve,
    sinusoidal_embedding,
    with_zero_weights,
)
from medmdm.components import buildable, declared
from medmdm.errors import UserError


@buildable
class ADMUNet(BlockNetwork):
    """A U-Net with residual blocks and self-attention, conditioned on the timestep.

    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, in the form that Pan, Chen and Shi
    train ("Masked Diffusion as Self-supervised Representation Learner", arXiv 2308.05695); the defaults are their
    network of 311.0 M parameters. Names and shapes of the parameters are those of the published checkpoints.

    The decoder blocks are numbered from the bottleneck up, ``num_res_blocks + 1`` to a level; :attr:`feature_info`
    lists them and :meth:`features` returns their outputs.

    Args:
        spatial_dims: 2 for images, 3 for volumes (every axis is halved from level to level).
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's for checkpoints that also learn the variance.
        model_channels: the base width, a multiple of ``num_groups`` if all of ``channel_mult`` are whole numbers.
        channel_mult: width of each level as a multiple of ``model_channels``; its length is the number of levels.
        num_res_blocks: residual blocks a level.
        attention_resolutions: *down-sampling rates* (powers of two, 1 is full resolution) with self-attention.
        num_heads: heads of each attention layer, read when ``num_head_channels`` is -1.
        num_head_channels: channels of a head, or -1 to fix ``num_heads`` instead.
        use_scale_shift_norm: condition by FiLM instead of by addition.
        resblock_updown: residual blocks change the size between levels, instead of layers of their own.
        dropout: probability in ``[0, 1)``, in every residual block.
        num_classes: number of classes of a class-conditional network, ``None`` for an unconditional one.
        use_new_attention_order: the order of q, k and v in some published checkpoints (the 64x64 ADM).
        conv_resample: without ``resblock_updown``, change the size by convolutions instead of without parameters.
        use_checkpoint: compute activations again in the backward pass instead of keeping them: less memory, about a
            third more time, the same gradients.
        num_groups: groups of every normalisation, 32 in all published networks. In a level of 32 channels each is
            then a channel, which loses how strongly it answers: narrow networks need fewer groups.

    Raises:
        UserError: if an argument is out of range or does not go with the others.

    Example:
        >>> network = ADMUNet(model_channels=32, channel_mult=(1, 2), attention_resolutions=(2,), num_head_channels=32)
        >>> network(torch.zeros(1, 3, 16, 24), torch.tensor([500])).shape
        torch.Size([1, 3, 16, 24])
        >>> [f.shape[1:] for f in network.features(torch.zeros(1, 3, 16, 24), torch.tensor([500]), [1, 4])]
        [torch.Size([64, 8, 12]), torch.Size([32, 16, 24])]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (8, 16, 32),
        num_heads: int = 1,
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        dropout: float = 0.0,
        num_classes: int | None = None,
        use_new_attention_order: bool = False,
        conv_resample: bool = True,
        use_checkpoint: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__(declared(locals()), 2 ** max(len(channel_mult) - 1, 0))
        _check_arguments(**self._config)
        self.use_checkpoint = use_checkpoint
        self.model_channels = model_channels
        widths = [round(multiple * model_channels) for multiple in channel_mult]
        embedded = 4 * model_channels

        def residual(channels: int, width: int, resample: Any = None) -> ResBlock:
            conditioned = (embedded, dropout, use_scale_shift_norm)
            return ResBlock(spatial_dims, channels, width, *conditioned, resample, num_groups)

        def attention(width: int) -> AttentionBlock:
            heads = num_heads if num_head_channels == -1 else width // num_head_channels
            return AttentionBlock(width, heads, use_new_attention_order, num_groups)

        def resized(width: int, resample: Any, layer: type[nn.Module]) -> nn.Module:
            return residual(width, width, resample) if resblock_updown else layer(spatial_dims, width, conv_resample)

        first = nn.Linear(model_channels, embedded)
        self.time_embed = nn.Sequential(first, nn.SiLU(), nn.Linear(embedded, embedded))
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, embedded)
        channels = widths[0]
        self.input_blocks = nn.ModuleList([ConditionedBlock([convolution(spatial_dims, in_channels, channels)])])
        skipped = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [residual(channels, width)]
                if 2**level in attention_resolutions:
                    layers.append(attention(width))
                self.input_blocks.append(ConditionedBlock(layers))
                channels = width
                skipped.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(ConditionedBlock([resized(width, halve, Downsample)]))
                skipped.append(width)

        middle = [residual(channels, channels), attention(channels), residual(channels, channels)]
        self.middle_block = ConditionedBlock(middle)
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(num_res_blocks + 1):
                layers = [residual(channels + skipped.pop(), width)]
                reduction = 2**level
                if reduction in attention_resolutions:
                    layers.append(attention(width))
                if level > 0 and index == num_res_blocks:
                    layers.append(resized(width, double, Upsample))
                    reduction //= 2
                self.add_block(width, reduction)
                self.output_blocks.append(ConditionedBlock(layers))
                channels = width

        convolve = with_zero_weights(convolution(spatial_dims, channels, out_channels))
        norm = Float32GroupNorm(channels, num_groups)
        self.out: nn.Sequential | None = nn.Sequential(norm, nn.SiLU(), convolve)

    def truncated(self, last_block: int) -> ADMUNet:
        """Return this network without all that :meth:`features` of blocks up to ``last_block`` does not need.

        It shares its parameters with this one, cannot be called, and has the ``config`` of the whole: to rebuild it,
        make the whole (on the meta device, where it takes no memory) and truncate that.

        Args:
            last_block: number of the last decoder block to keep.

        Raises:
            UserError: there is no such block.
        """
        self.check_blocks([last_block], "truncated")
        part = ADMUNet.__new__(type(self))
        # The containers are copied, so that taking a module out of one network leaves the other whole.
        part.__dict__.update({key: copy.copy(v) if isinstance(v, dict) else v for key, v in self.__dict__.items()})
        part.output_blocks = nn.ModuleList(list(self.output_blocks)[: last_block + 1])
        part._feature_info = self._feature_info[: last_block + 1]
        part.out = None
        return part

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """See :meth:`BlockNetwork.forward`; ``y``: ``[B]`` class numbers of a class-conditional network."""
        if torch.jit.is_scripting():  # the same in words that TorchScript understands
            embedding = self._embed(x, timesteps, y)
            h, skips = x, [torch.jit.annotate(Tensor, x)][:0]
            for block in self.input_blocks:
                h = block(h, embedding)
                skips.append(h)
            h = self.middle_block(h, embedding)
            for block in self.output_blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            assert self.out is not None
            return self.out(h)
        else:
            if self.out is None:
                cut = f"this network was truncated after decoder block {len(self.output_blocks) - 1}"
                raise UserError(f"ADMUNet: {cut}: it gives features, but no image; load the whole from its model.pt.")
            h, _ = self._decode(x, timesteps, y, range(len(self.output_blocks)), keep=())
            return self.out(h)

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int], y: Tensor | None = None) -> list[Tensor]:
        """See :meth:`BlockNetwork.features`; ``y`` as in :meth:`forward`."""
        self.check_blocks(blocks)
        _, kept = self._decode(x, timesteps, y, range(max(blocks) + 1), keep=blocks)
        return [kept[block] for block in blocks]

    def block_modules(self) -> list[nn.Module]:
        return list(self.output_blocks)

    def _decode(
        self, x: Tensor, timesteps: Tensor, y: Tensor | None, run: range, keep: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the encoder and the decoder blocks in ``run``; return the last output and those to ``keep``."""
        if (y is None) != (self.label_emb is None):
            need = "needs class numbers y" if y is None else "is not class-conditional and takes no y"
            raise UserError(f"ADMUNet: this network {need}.")
        self.check_inputs(x, timesteps)
        embedding = self._embed(x, timesteps, y)
        h = x
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, embedding)
            skips.append(h)
        h = self._run(self.middle_block, h, embedding)
        kept = {}
        for number in run:
            h = self._run(self.output_blocks[number], torch.cat([h, skips.pop()], dim=1), embedding)
            if number in keep:
                kept[number] = h
        return h, kept

    def _embed(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embed(sinusoidal_embedding(timesteps, self.model_channels).to(x.dtype))
        if self.label_emb is not None and y is not None:
            embedding = embedding + self.label_emb(y)
        return embedding

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)


def _check_arguments(
    spatial_dims: int, channel_mult: list[float], attention_resolutions: list[int], dropout: float, **counts: Any
) -> None:
    """Raise a :class:`UserError` for the first argument that is out of range or contradicts another."""
    if spatial_dims not in (2, 3):
        raise UserError(f"ADMUNet: spatial_dims is {spatial_dims!r}, expected 2 or 3.")
    keys = ("model_channels", "num_heads", "in_channels", "out_channels", "num_res_blocks", "num_classes", "num_groups")
    for key in keys:
        value = 1 if key == "num_classes" and counts[key] is None else counts[key]
        if not isinstance(value, int) or value < 1:
            raise UserError(f"ADMUNet: {key} is {value!r}, expected a whole number of at least 1.")
    if not 0 <= dropout < 1:
        raise UserError(f"ADMUNet: dropout is {dropout!r}, expected a probability in [0, 1).")
    if not channel_mult:
        raise UserError("ADMUNet: channel_mult is empty, expected one number for each level.")
    model_channels, groups = counts["model_channels"], counts["num_groups"]
    widths = [multiple * model_channels for multiple in channel_mult]
    for width in widths:
        if width < groups or abs(width / groups - round(width / groups)) > 1e-6:
            made = f"channel_mult {channel_mult} makes a level of {width:g} channels"
            need = f"group normalisation with {groups} groups needs multiples of {groups}"
            raise UserError(f"ADMUNet: model_channels {model_channels} with {made}; {need}.")
    rates = [2**level for level in range(len(channel_mult))]
    for rate in attention_resolutions:
        if rate not in rates:
            have = f"the {len(rates)} levels of channel_mult have the down-sampling rates {rates}"
            raise UserError(f"ADMUNet: attention_resolutions holds {rate!r}, but {have} (rates, not sizes in pixels).")
    key = "num_heads" if counts["num_head_channels"] == -1 else "num_head_channels"
    divisor = counts[key]
    if not isinstance(divisor, int) or divisor < 1:
        raise UserError(f"ADMUNet: {key} is {divisor!r}, expected at least 1, or -1 to use num_heads.")
    for rate, width in zip(rates, widths, strict=True):
        if (rate in attention_resolutions or rate == rates[-1]) and round(width) % divisor:
            level = f"the {width:g} channels of the level with attention at down-sampling rate {rate}"
            raise UserError(f"ADMUNet: {key} {divisor} does not divide {level}.")
