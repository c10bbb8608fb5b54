"""What all backbones have in common: what they were made of, their numbered blocks, and the check of their inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.errors import UserError

__all__ = ["BlockNetwork"]


class BlockNetwork(nn.Module):
    """A network ``forward(x, timesteps)`` whose decoder blocks can be read: ``features(x, timesteps, blocks)``.

    Args:
        config: the constructor's arguments, see :func:`medmdm.components.declared`.
        reduction: the total down-sampling rate; it divides the size of every input.
    """

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

    def add_block(self, channels: int, reduction: int) -> None:
        """Count one more decoder block."""
        self._feature_info.append({"block": len(self._feature_info), "channels": channels, "reduction": reduction})

    def check_blocks(self, blocks: Sequence[int]) -> None:
        """Refuse numbers of decoder blocks that there are not."""
        total = len(self._feature_info)
        wrong = [block for block in blocks if block not in range(total)]
        if wrong or not blocks:
            what = f"there is no block {wrong[0]!r}" if wrong else "no block is asked for"
            known = f"the decoder blocks 0 to {total - 1}" if total > 1 else "block 0 only"
            raise UserError(f"features: {what}; this network has {known}.")

    def check_inputs(self, x: Tensor, timesteps: Tensor) -> None:
        """Refuse images of other axes, channels or sizes than the network takes, and another number of timesteps."""
        if torch.jit.is_tracing():
            return  # a traced shape is a tensor: the comparisons below would warn and be frozen
        name = type(self).__name__
        dims, channels = self._config["spatial_dims"], self._config["in_channels"]
        if x.ndim != dims + 2 or x.shape[1] != channels:
            axes = "height, width" if dims == 2 else "depth, height, width"
            raise UserError(f"{name}: x has the shape {tuple(x.shape)}, expected [batch, {channels}, {axes}].")
        if any(size % self.reduction for size in x.shape[2:]):
            raise UserError(
                f"{name}: the spatial size {tuple(x.shape[2:])} is not divisible by {self.reduction}, the total "
                f"down-sampling rate of {self.reduction.bit_length()} levels; crop or pad the input."
            )
        if timesteps.shape != x.shape[:1]:
            raise UserError(
                f"{name}: timesteps have the shape {tuple(timesteps.shape)}, expected one for each of the "
                f"{x.shape[0]} images of the batch."
            )
