"""The ADM U-Net: the network of guided diffusion, which masked diffusion models take over unchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmdm.backbones.arguments import check_arguments
from medmdm.backbones.layers import (
    AttentionBlock,
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
from medmdm.components import buildable
from medmdm.errors import UserError

__all__ = ["ADMUNet"]


@buildable
class ADMUNet(nn.Module):
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
        model_channels: the base width, a multiple of 32 if all of ``channel_mult`` are whole numbers.
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
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "model_channels": model_channels,
            "channel_mult": list(channel_mult),
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": list(attention_resolutions),
            "num_heads": num_heads,
            "num_head_channels": num_head_channels,
            "use_scale_shift_norm": use_scale_shift_norm,
            "resblock_updown": resblock_updown,
            "dropout": dropout,
            "num_classes": num_classes,
            "use_new_attention_order": use_new_attention_order,
            "conv_resample": conv_resample,
            "use_checkpoint": use_checkpoint,
        }
        check_arguments(**self._config)
        self.use_checkpoint = use_checkpoint
        widths = [round(multiple * model_channels) for multiple in channel_mult]
        last = len(widths) - 1
        embedding_channels = 4 * model_channels

        def residual(channels: int, width: int, resample: Any = None) -> ResBlock:
            return ResBlock(spatial_dims, channels, width, embedding_channels, dropout, use_scale_shift_norm, resample)

        def attention(width: int) -> AttentionBlock:
            heads = num_heads if num_head_channels == -1 else width // num_head_channels
            return AttentionBlock(width, heads, use_new_attention_order)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, embedding_channels)

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
            if level < last:
                down = (
                    residual(width, width, halve) if resblock_updown else Downsample(spatial_dims, width, conv_resample)
                )
                self.input_blocks.append(ConditionedBlock([down]))
                skipped.append(width)

        self.middle_block = ConditionedBlock(
            [residual(channels, channels), attention(channels), residual(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        self._feature_info: list[dict[str, int]] = []
        for level, width in reversed(list(enumerate(widths))):
            for index in range(num_res_blocks + 1):
                layers = [residual(channels + skipped.pop(), width)]
                reduction = 2**level
                if reduction in attention_resolutions:
                    layers.append(attention(width))
                if level > 0 and index == num_res_blocks:
                    up = (
                        residual(width, width, double)
                        if resblock_updown
                        else Upsample(spatial_dims, width, conv_resample)
                    )
                    layers.append(up)
                    reduction //= 2
                self._feature_info.append({"block": len(self.output_blocks), "channels": width, "reduction": reduction})
                self.output_blocks.append(ConditionedBlock(layers))
                channels = width

        self.out: nn.Sequential | None = nn.Sequential(
            Float32GroupNorm(channels),
            nn.SiLU(),
            with_zero_weights(convolution(spatial_dims, channels, out_channels)),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {key: list(value) if isinstance(value, list) else value for key, value in self._config.items()}

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """For each decoder block its number, the channels of its output and how much smaller that is than the input."""
        return [dict(info) for info in self._feature_info[: len(self.output_blocks)]]

    @property
    def reduction(self) -> int:
        """The total down-sampling rate; it divides the size of every input."""
        return int(2 ** (len(self._config["channel_mult"]) - 1))

    def truncated(self, last_block: int) -> ADMUNet:
        """Return this network without all that :meth:`features` of blocks up to ``last_block`` does not need.

        It shares its parameters with this one, cannot be called, and has the ``config`` of the whole: to rebuild it,
        make the whole (on the meta device, where it takes no memory) and truncate that.

        Args:
            last_block: number of the last decoder block to keep.

        Raises:
            UserError: there is no such block.
        """
        if last_block not in range(len(self.output_blocks)):
            raise UserError(
                f"truncated: there is no block {last_block!r}; this network has the decoder blocks 0 to "
                f"{len(self.output_blocks) - 1}."
            )
        part = ADMUNet.__new__(type(self))
        # The containers are copied, so that taking a module out of one network leaves the other whole.
        part.__dict__.update({key: copy.copy(v) if isinstance(v, dict) else v for key, v in self.__dict__.items()})
        part.output_blocks = nn.ModuleList(list(self.output_blocks)[: last_block + 1])
        part.out = None
        return part

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict the clean image, or the noise, from a corrupted image.

        Args:
            x: ``[B, in_channels, *spatial]``, usually in [-1, 1]; sizes are multiples of :attr:`reduction`.
            timesteps: ``[B]``, integers or floats, usually in ``[0, 1000)``.
            y: ``[B]`` class numbers of a class-conditional network.

        Returns:
            ``[B, out_channels, *spatial]``.

        Raises:
            UserError: if a shape does not fit, ``y`` is missing or superfluous, or the network was truncated.
        """
        if self.out is None:
            raise UserError(
                f"ADMUNet: this network was truncated after decoder block {len(self.output_blocks) - 1}: it gives "
                "features, but no image; load the whole from its model.pt."
            )
        h, _ = self._decode(x, timesteps, y, range(len(self.output_blocks)), keep=())
        return self.out(h)

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int], y: Tensor | None = None) -> list[Tensor]:
        """Return the outputs of some decoder blocks; nothing after the last of them is computed.

        Args:
            x: as in :meth:`forward`.
            timesteps: as in :meth:`forward`.
            blocks: numbers of decoder blocks, in any order.
            y: as in :meth:`forward`.

        Returns:
            ``[B, C_i, *spatial_i]`` for each of ``blocks`` in the order asked for; see :attr:`feature_info`.

        Raises:
            UserError: if a block does not exist, none is asked for, or an input does not fit.
        """
        total = len(self.output_blocks)
        wrong = [block for block in blocks if block not in range(total)]
        if wrong or not blocks:
            what = f"there is no block {wrong[0]!r}" if wrong else "no block is asked for"
            raise UserError(f"features: {what}; this network has the decoder blocks 0 to {total - 1}.")
        _, kept = self._decode(x, timesteps, y, range(max(blocks) + 1), keep=blocks)
        return [kept[block] for block in blocks]

    def _decode(
        self, x: Tensor, timesteps: Tensor, y: Tensor | None, run: range, keep: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the encoder and the decoder blocks in ``run``; return the last output and those to ``keep``."""
        self._check_inputs(x, timesteps, y)
        embedding = sinusoidal_embedding(timesteps, self._config["model_channels"])
        embedding = self.time_embed(embedding.to(x.dtype))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(y)

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

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)

    def _check_inputs(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> None:
        if (y is None) != (self.label_emb is None):
            need = "needs class numbers y" if y is None else "is not class-conditional and takes no y"
            raise UserError(f"ADMUNet: this network {need}.")
        if torch.jit.is_tracing():
            return  # a traced shape is a tensor: the comparisons below would warn and be frozen
        dims, channels = self._config["spatial_dims"], self._config["in_channels"]
        if x.ndim != dims + 2 or x.shape[1] != channels:
            axes = "height, width" if dims == 2 else "depth, height, width"
            raise UserError(f"ADMUNet: x has the shape {tuple(x.shape)}, expected [batch, {channels}, {axes}].")
        if any(size % self.reduction for size in x.shape[2:]):
            raise UserError(
                f"ADMUNet: the spatial size {tuple(x.shape[2:])} is not divisible by {self.reduction}, the total "
                f"down-sampling rate of {len(self._config['channel_mult'])} levels; crop or pad the input."
            )
        if timesteps.shape != x.shape[:1]:
            raise UserError(
                f"ADMUNet: timesteps have the shape {tuple(timesteps.shape)}, expected one for each of the "
                f"{x.shape[0]} images of the batch."
            )
