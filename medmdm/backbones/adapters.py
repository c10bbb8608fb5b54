"""Other backbones behind the interface of ours, and the baselines that a pre-trained one has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from medmdm.components import buildable
from medmdm.errors import UserError

__all__ = ["MONAIDiffusionBackbone", "RawPixels", "randomise"]


@buildable
class MONAIDiffusionBackbone(nn.Module):
    """MONAI's ``DiffusionModelUNet`` as a backbone: pre-trained, rebuilt and read for features as ours is.

    The arguments are MONAI's, without text or class conditioning; the defaults make it as wide and deep as the network
    of arXiv 2308.05695. Decoder blocks are numbered from the bottleneck up, ``num_res_blocks + 1`` to a level, as those
    of :class:`medmdm.backbones.ADMUNet`: a residual block, its attention if the level has it, and at the end of a level
    the up-sampling.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_res_blocks: residual blocks a level, one number or one a level.
        channels: width of each level.
        attention_levels: whether each level has self-attention.
        norm_num_groups: groups of the normalisations; it divides each width.
        norm_eps: of the normalisations.
        resblock_updown: residual blocks change the size between levels, instead of convolutions.
        num_head_channels: channels of an attention head, one number or one a level.
        include_fc: whether attention ends in a linear layer.
        use_combined_linear: one layer for queries, keys and values.
        use_flash_attention: torch's scaled dot-product attention, which needs less memory.

    Raises:
        UserError: the arguments do not go together.

    Example:
        >>> backbone = MONAIDiffusionBackbone(num_res_blocks=1, channels=(32, 64), attention_levels=(False, True),
        ...                                   num_head_channels=32)
        >>> [f.shape[1:] for f in backbone.features(torch.zeros(1, 3, 16, 24), torch.tensor([500]), [0, 1, 3])]
        [torch.Size([64, 8, 12]), torch.Size([64, 16, 24]), torch.Size([32, 16, 24])]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        num_res_blocks: Sequence[int] | int = 2,
        channels: Sequence[int] = (192, 192, 384, 384, 768, 768),
        attention_levels: Sequence[bool] = (False, False, False, True, True, True),
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        resblock_updown: bool = True,
        num_head_channels: int | Sequence[int] = 64,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = True,
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "num_res_blocks": _plain(num_res_blocks),
            "channels": _plain(channels),
            "attention_levels": _plain(attention_levels),
            "norm_num_groups": norm_num_groups,
            "norm_eps": norm_eps,
            "resblock_updown": resblock_updown,
            "num_head_channels": _plain(num_head_channels),
            "include_fc": include_fc,
            "use_combined_linear": use_combined_linear,
            "use_flash_attention": use_flash_attention,
        }
        try:
            self.network = DiffusionModelUNet(**self._config)
        except (ValueError, TypeError) as error:
            raise UserError(f"MONAIDiffusionBackbone: {error}") from error
        self._feature_info: list[dict[str, int]] = []
        for level, up_block in enumerate(self.network.up_blocks):
            width = self._config["channels"][-1 - level]
            for index in range(len(up_block.resnets)):
                is_raised = index == len(up_block.resnets) - 1 and up_block.upsampler is not None
                reduction = self.reduction // 2 ** (level + is_raised)
                self._feature_info.append({"block": len(self._feature_info), "channels": width, "reduction": reduction})

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {key: _plain(value) for key, value in self._config.items()}

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """For each decoder block its number, the channels of its output and how much smaller that is than the input."""
        return [dict(info) for info in self._feature_info]

    @property
    def reduction(self) -> int:
        """The total down-sampling rate; it divides the size of every input."""
        return int(2 ** (len(self._config["channels"]) - 1))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the clean image, or the noise, from a corrupted image.

        Args:
            x: ``[B, in_channels, *spatial]``; sizes are multiples of :attr:`reduction`.
            timesteps: ``[B]``.

        Returns:
            ``[B, out_channels, *spatial]``.

        Raises:
            UserError: a shape does not fit.
        """
        self._check_inputs(x, timesteps)
        output: Tensor = self.network(x, timesteps)
        return output

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
        _check_blocks(blocks, len(self._feature_info))
        self._check_inputs(x, timesteps)
        unet = self.network
        embedding = unet.time_embed(get_timestep_embedding(timesteps, unet.block_out_channels[0]).to(x.dtype))
        h = unet.conv_in(x)
        skips = [h]
        for down_block in unet.down_blocks:
            h, outputs = down_block(hidden_states=h, temb=embedding)
            skips.extend(outputs)
        h = unet.middle_block(hidden_states=h, temb=embedding)
        kept: dict[int, Tensor] = {}
        number = 0
        for up_block in unet.up_blocks:
            attentions = getattr(up_block, "attentions", None)
            for index, resnet in enumerate(up_block.resnets):
                h = resnet(torch.cat([h, skips.pop()], dim=1), embedding)
                if attentions is not None:
                    h = attentions[index](h).contiguous()
                if index == len(up_block.resnets) - 1 and up_block.upsampler is not None:
                    h = up_block.upsampler(h, embedding)
                if number in blocks:
                    kept[number] = h
                if number == max(blocks):
                    return [kept[block] for block in blocks]
                number += 1
        raise AssertionError("the blocks were checked")

    def _check_inputs(self, x: Tensor, timesteps: Tensor) -> None:
        if torch.jit.is_tracing():
            return  # a traced shape is a tensor: the comparisons below would warn and be frozen
        dims, channels = self._config["spatial_dims"], self._config["in_channels"]
        if x.ndim != dims + 2 or x.shape[1] != channels:
            axes = "height, width" if dims == 2 else "depth, height, width"
            raise UserError(
                f"MONAIDiffusionBackbone: x has the shape {tuple(x.shape)}, expected [batch, {channels}, {axes}]."
            )
        if any(size % self.reduction for size in x.shape[2:]):
            raise UserError(
                f"MONAIDiffusionBackbone: the spatial size {tuple(x.shape[2:])} is not divisible by {self.reduction}, "
                "the total down-sampling rate; crop or pad the input."
            )
        if timesteps.shape != x.shape[:1]:
            raise UserError(
                f"MONAIDiffusionBackbone: timesteps have the shape {tuple(timesteps.shape)}, expected one for each of "
                f"the {x.shape[0]} images of the batch."
            )


@buildable
class RawPixels(nn.Module):
    """The image itself as features, and smoothed copies of it: the baseline "raw pixels", which nothing has learnt.

    It has one block, number 0, at full resolution, and no parameters; timesteps are not looked at. Read it with
    ``masking="none"``, for hidden patches are hidden from it.

    Args:
        in_channels: channels of the image.
        sigmas: standard deviations in pixels of Gaussians; each adds a smoothed copy, edges repeated outwards.

    Raises:
        UserError: a number is out of range.

    Example:
        >>> [f.shape for f in RawPixels(sigmas=[2.0]).features(torch.zeros(1, 3, 5, 7), torch.tensor([0]), [0])]
        [torch.Size([1, 6, 5, 7])]
    """

    sigmas: Tensor

    def __init__(self, in_channels: int = 3, sigmas: Sequence[float] = ()) -> None:
        super().__init__()
        if in_channels < 1:
            raise UserError(f"RawPixels: in_channels is {in_channels!r}, expected 1 or more.")
        if not all(sigma > 0 for sigma in sigmas):
            raise UserError(f"RawPixels: sigmas is {list(sigmas)}, expected numbers above 0 (pixels).")
        self._config: dict[str, Any] = {"in_channels": in_channels, "sigmas": [float(sigma) for sigma in sigmas]}
        # In the state dict, so that what is keyed by the weights tells one set of sigmas from another.
        self.register_buffer("sigmas", torch.tensor(self._config["sigmas"]))
        for number, sigma in enumerate(self._config["sigmas"]):
            kernel = gaussian_1d(torch.tensor(sigma), approx="sampled", normalize=True)
            self.register_buffer(f"kernel_{number}", kernel, persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {**self._config, "sigmas": list(self._config["sigmas"])}

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """The one block, its channels, and that it is as large as the input."""
        channels = self._config["in_channels"] * (1 + len(self._config["sigmas"]))
        return [{"block": 0, "channels": channels, "reduction": 1}]

    @property
    def reduction(self) -> int:
        """1: any size of input will do."""
        return 1

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x``, ``[B, in_channels, *spatial]``: nothing is restored."""
        return x

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the image and its smoothed copies, stacked, for each of ``blocks`` (all 0).

        Args:
            x: ``[B, in_channels, *spatial]``.
            timesteps: not looked at.
            blocks: ``[0]``.

        Raises:
            UserError: another block is asked for, or the image has other channels.
        """
        _check_blocks(blocks, 1)
        if not torch.jit.is_tracing() and x.shape[1] != self._config["in_channels"]:
            raise UserError(
                f"RawPixels: x has the shape {tuple(x.shape)}, expected {self._config['in_channels']} channels."
            )
        smoothed = [
            separable_filtering(x, [self.get_buffer(f"kernel_{number}")] * (x.ndim - 2), mode="replicate")
            for number in range(len(self._config["sigmas"]))
        ]
        stacked = torch.cat([x, *smoothed], dim=1)
        return [stacked] * len(blocks)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights of a network anew, as its constructor draws them under a seed: the baseline "random weights".

    What the constructor sets to zero (the last convolutions of residual blocks) is zero again. The generators of the
    program are left as they are.

    Args:
        network: has ``config``, the arguments of its constructor, as the backbones here do. It is changed in place.
        seed: other seeds, other weights.

    Returns:
        The same network.

    Raises:
        UserError: the network has no ``config``.

    Example:
        It makes a baseline of a weights file in a config::

            {"_target_": "medmdm.backbones.randomise", "seed": 1,
             "network": {"_target_": "medmdm.artifacts.load_network", "path": "runs/demo/model.pt"}}
    """
    config = getattr(network, "config", None)
    if not isinstance(config, dict):
        raise UserError(
            f"randomise: {type(network).__name__} does not say how it was made (config), so it cannot be made again; "
            "make a new one instead of loading weights."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        fresh = type(network)(**config)
    network.load_state_dict(fresh.state_dict())
    return network


def _check_blocks(blocks: Sequence[int], total: int) -> None:
    wrong = [block for block in blocks if block not in range(total)]
    if wrong or not blocks:
        what = f"there is no block {wrong[0]!r}" if wrong else "no block is asked for"
        known = f"the decoder blocks 0 to {total - 1}" if total > 1 else "block 0 only"
        raise UserError(f"features: {what}; this network has {known}.")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) else list(value)
