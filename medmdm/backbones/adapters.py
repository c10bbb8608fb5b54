"""Other backbones behind the interface of ours, and the baselines that a pre-trained one has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.networks.nets import BasicUNet, DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from medmdm.backbones.layers import BlockNetwork
from medmdm.components import buildable, declared
from medmdm.errors import UserError


@buildable
class MONAIDiffusionBackbone(BlockNetwork):
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
        super().__init__(declared(locals()), 2 ** max(len(channels) - 1, 0))
        try:
            self.network = DiffusionModelUNet(**self._config)
        except (ValueError, TypeError) as error:
            raise UserError(f"MONAIDiffusionBackbone: {error}") from error
        for level, up_block in enumerate(self.network.up_blocks):
            for index in range(len(up_block.resnets)):
                is_raised = index == len(up_block.resnets) - 1 and up_block.upsampler is not None
                self.add_block(self._config["channels"][-1 - level], self.reduction // 2 ** (level + is_raised))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.check_inputs(x, timesteps)
        return self.network(x, timesteps)

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        self.check_blocks(blocks)
        self.check_inputs(x, timesteps)
        unet = self.network
        embedding = unet.time_embed(get_timestep_embedding(timesteps, unet.block_out_channels[0]).to(x.dtype))
        h = unet.conv_in(x)
        skips = [h]
        for down_block in unet.down_blocks:
            h, outputs = down_block(hidden_states=h, temb=embedding)
            skips.extend(outputs)
        h = unet.middle_block(hidden_states=h, temb=embedding)
        kept: dict[int, Tensor] = {}
        parts = [(up_block, index) for up_block in unet.up_blocks for index in range(len(up_block.resnets))]
        for number, (up_block, index) in enumerate(parts[: max(blocks) + 1]):
            h = up_block.resnets[index](torch.cat([h, skips.pop()], dim=1), embedding)
            if getattr(up_block, "attentions", None) is not None:
                h = up_block.attentions[index](h).contiguous()
            if index == len(up_block.resnets) - 1 and up_block.upsampler is not None:
                h = up_block.upsampler(h, embedding)
            if number in blocks:
                kept[number] = h
        return [kept[block] for block in blocks]

    def block_modules(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for up_block in self.network.up_blocks:
            attentions = getattr(up_block, "attentions", None)
            for index, resnet in enumerate(up_block.resnets):
                raised = index == len(up_block.resnets) - 1 and up_block.upsampler is not None
                found.append(up_block.upsampler if raised else resnet if attentions is None else attentions[index])
        return found


@buildable
class BasicUNetBackbone(BlockNetwork):
    """MONAI's ``BasicUNet``, a plain U-Net of five levels, as a backbone: small, fast and good with few labels.

    Its four decoder blocks are numbered from the bottleneck up, at 1/8, 1/4, 1/2 and all of the input's resolution.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: width of the five encoder levels, and of the last decoder block.
        num_groups: of the group normalisations; it divides each width.
        tells_t: give the network t, as one more input channel of the value t / 1000.
        tells_hidden: one more input channel, 1 where all channels of a pixel are exactly 0, as in a hidden patch
            (mid-grey tissue is told from hidden tissue then).
        skip: share of the full-resolution skip connection, 1 for a U-Net, 0 for none: visible pixels cannot be copied
            through it then.

    Raises:
        UserError: the arguments do not go together.

    Example:
        >>> backbone = BasicUNetBackbone(features=(8, 8, 16, 16, 32, 8))
        >>> [f.shape[1:] for f in backbone.features(torch.zeros(1, 3, 32, 48), torch.tensor([500]), [0, 3])]
        [torch.Size([16, 4, 6]), torch.Size([8, 32, 48])]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        features: Sequence[int] = (16, 32, 64, 128, 256, 16),
        num_groups: int = 8,
        tells_t: bool = False,
        tells_hidden: bool = False,
        skip: float = 1.0,
    ) -> None:
        super().__init__(declared(locals()), 16)
        if len(features) != 6 or any(width % num_groups for width in features):
            raise UserError(
                f"BasicUNetBackbone: features must be six widths that num_groups {num_groups} divides, got "
                f"{list(features)}."
            )
        told = in_channels + tells_t + tells_hidden
        norm = ("group", {"num_groups": num_groups})
        self.network = BasicUNet(spatial_dims, told, out_channels, features, norm=norm)
        for reduction, width in zip((8, 4, 2, 1), (*features[3:0:-1], features[5]), strict=True):
            self.add_block(width, reduction)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        output: Tensor = self.network.final_conv(self.features(x, timesteps, [3])[0])
        return output

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        self.check_blocks(blocks)
        self.check_inputs(x, timesteps)
        unet, told = self.network, [x]
        if self._config["tells_t"]:
            t = timesteps.to(x.dtype).reshape(-1, *(1 for _ in x.shape[1:])) / 1000
            told.append(t.expand(-1, 1, *x.shape[2:]))
        if self._config["tells_hidden"]:
            told.append((x == 0).all(1, keepdim=True).to(x.dtype))
        first = unet.conv_0(torch.cat(told, 1))
        skips = [first]
        for down in (unet.down_1, unet.down_2, unet.down_3, unet.down_4):
            skips.append(down(skips[-1]))
        h, kept = skips.pop(), {}
        skips[0] = first if self._config["skip"] == 1 else first * self._config["skip"]
        for number, up in enumerate((unet.upcat_4, unet.upcat_3, unet.upcat_2, unet.upcat_1)[: max(blocks) + 1]):
            h = kept[number] = up(h, skips.pop())
        return [kept[block] for block in blocks]

    def block_modules(self) -> list[nn.Module]:
        return [self.network.upcat_4, self.network.upcat_3, self.network.upcat_2, self.network.upcat_1]


@buildable
class RawPixels(BlockNetwork):
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

    restores = False
    sigmas: Tensor

    def __init__(self, in_channels: int = 3, sigmas: Sequence[float] = ()) -> None:
        super().__init__(declared(locals()))
        if in_channels < 1:
            raise UserError(f"RawPixels: in_channels is {in_channels!r}, expected 1 or more.")
        if not all(sigma > 0 for sigma in sigmas):
            raise UserError(f"RawPixels: sigmas is {list(sigmas)}, expected numbers above 0 (pixels).")
        self._config["sigmas"] = [float(sigma) for sigma in sigmas]
        self.add_block(in_channels * (1 + len(sigmas)), reduction=1)
        # In the state dict, so that what is keyed by the weights tells one set of sigmas from another.
        self.register_buffer("sigmas", torch.tensor(self._config["sigmas"]))
        for number, sigma in enumerate(self._config["sigmas"]):
            kernel = gaussian_1d(torch.tensor(sigma), approx="sampled", normalize=True)
            self.register_buffer(f"kernel_{number}", kernel, persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x``, ``[B, in_channels, *spatial]``: nothing is restored."""
        return x

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the image and its smoothed copies, stacked, for each of ``blocks`` (all 0)."""
        self.check_blocks(blocks)
        channels = self._config["in_channels"]
        if not torch.jit.is_tracing() and x.shape[1] != channels:
            raise UserError(f"RawPixels: x has the shape {tuple(x.shape)}, expected {channels} channels.")
        kernels = [self.get_buffer(f"kernel_{number}") for number in range(len(self._config["sigmas"]))]
        smoothed = [separable_filtering(x, [kernel] * (x.ndim - 2), mode="replicate") for kernel in kernels]
        return [torch.cat([x, *smoothed], dim=1)] * len(blocks)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights of a network anew, as its constructor draws them under a seed: the baseline "random weights".

    What the constructor sets to zero (the last convolutions of residual blocks) is zero again. The generators of the
    program are left as they are.

    Args:
        network: has ``config``, the arguments of its constructor. It is changed in place, and returned.
        seed: other seeds, other weights.

    Raises:
        UserError: the network has no ``config``.

    Example:
        It makes a baseline of a weights file in a config::

            {"_target_": "medmdm.backbones.randomise", "seed": 1,
             "network": {"_target_": "medmdm.artifacts.load_network", "path": "runs/demo/model.pt"}}
    """
    config = getattr(network, "config", None)
    if not isinstance(config, dict):
        reason = f"{type(network).__name__} does not say how it was made (config), so it cannot be made again"
        raise UserError(f"randomise: {reason}; make a new one instead of loading weights.")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        fresh = type(network)(**config)
    network.load_state_dict(fresh.state_dict())
    return network
