"""Networks of timm as backbones: features that others have learnt, read as those of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.backbones.layers import BlockNetwork
from medmdm.components import buildable, declared
from medmdm.errors import UserError, nearest

#: What a config may tell timm of a network: sizes, switches and names of layers; nothing that is fetched or opened.
ARGUMENTS = (
    "act_layer", "class_token", "depth", "dynamic_img_pad", "dynamic_img_size", "dynamic_mask", "embed_dim",
    "global_pool", "img_size", "init_values", "mlp_layer", "mlp_ratio", "no_embed_class", "norm_layer", "num_heads",
    "output_stride", "patch_size", "qkv_bias", "reg_tokens", "strict_img_size", "swiglu_mlp", "window_size",
)  # fmt: skip
#: A name of timm's, such as ``vit_small_patch16_224.dino``; those that name a hub or a folder have other characters.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
#: What lets transformers read images of any size; tried one after the other.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


@buildable
class TimmBackbone(BlockNetwork):
    """A network of timm (PyTorch Image Models) that knows ``features_only``: its stages are the blocks.

    Weights are random: :func:`medmdm.artifacts.load_timm` gives it those of a file. Blocks are numbered as timm numbers
    the stages, from the finest to the coarsest; of a transformer they are layers of one resolution. Images in [-1, 1]
    are brought to [0, 1] and normalised by ``mean`` and ``std``. Nothing is corrupted and timesteps are not looked at.

    Needs timm (``pip install 'medmdm[timm]'``) with a torchvision that fits the PyTorch installed.

    Args:
        model: name of timm's, such as ``"resnet18"`` or ``"vit_small_patch16_224"``. Those that are read from a hub or
            a folder (``hf-hub:...``) are refused.
        in_channels: channels of the images.
        out_indices: numbers of the stages (or layers) that become blocks 0, 1, ...; None for timm's choice.
        mean: of each channel in [0, 1], subtracted; None for what timm says of this network.
        std: of each channel, by which is divided; as ``mean``.
        arguments: further ones of the network's constructor, of :data:`ARGUMENTS`, such as ``{"init_values": 1e-5}``.

    Raises:
        UserError: timm is not there or cannot make the network, or an argument is none of these.

    Example:
        >>> network = TimmBackbone("resnet18")  # doctest: +SKIP
        >>> maps = network.features(torch.zeros(1, 3, 64, 96), torch.tensor([0]), [1, 4])  # doctest: +SKIP
        >>> [f.shape[1:] for f in maps]  # doctest: +SKIP
        [torch.Size([64, 16, 24]), torch.Size([512, 2, 3])]
    """

    restores = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        config = declared(locals())
        if in_channels < 1:
            raise UserError(f"TimmBackbone: in_channels is {in_channels!r}, expected 1 or more.")
        network: Any = create(model, in_channels, out_indices, arguments)
        known = getattr(network, "pretrained_cfg", None) or {}
        for key, given, usual in (("mean", mean, (0.485, 0.456, 0.406)), ("std", std, (0.229, 0.224, 0.225))):
            # Written down, so that the network stays the same whatever a later timm says of it.
            config[key] = _per_channel(key, given or known.get(key) or usual, in_channels, given is not None)
        reductions = [int(n) for n in network.feature_info.reduction()]
        super().__init__(config, math.lcm(*reductions))
        for channels, reduction in zip(network.feature_info.channels(), reductions, strict=True):
            self.add_block(int(channels), reduction)
        self.network = network
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).reshape(1, -1, 1, 1), persistent=False)

    @property
    def usual_blocks(self) -> list[int]:
        """All: features of several resolutions side by side."""
        return [info["block"] for info in self._feature_info]

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x``, ``[B, in_channels, H, W]``: nothing is restored."""
        return x

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the outputs of stages, see :class:`medmdm.backbones.BlockNetwork`; all of them are computed."""
        self.check_blocks(blocks)
        self.check_inputs(x, timesteps)
        try:
            maps = self.network(((x + 1) / 2 - self.mean) / self.std)
        except (AssertionError, ValueError) as error:  # a transformer of one size of images
            size = "x".join(map(str, x.shape[2:]))
            raise UserError(f"TimmBackbone: {self._config['model']} cannot read {size} pixels: {error}") from error
        return [self._channels_first(maps[block], x, block) for block in blocks]

    def _channels_first(self, f: Tensor, x: Tensor, block: int) -> Tensor:
        channels, reduction = (self._feature_info[block][key] for key in ("channels", "reduction"))
        expected = [n // reduction for n in x.shape[2:]]
        if list(f.shape[1:]) == [*expected, channels]:  # as Swin transformers give them
            # Where height, width and channels are equal only timm can tell.
            alike = list(f.shape[1:]) == [channels, *expected]
            return f.movedim(-1, 1) if not alike or getattr(self.network, "output_fmt", "") == "NHWC" else f
        if not torch.jit.is_tracing() and list(f.shape[1:]) != [channels, *expected]:
            found = f"a map of the shape {tuple(f.shape)} where {[channels, *expected]} was announced"
            raise UserError(f"TimmBackbone: stage {block} of {self._config['model']} gives {found}.")
        return f


def create(
    model: str,
    in_channels: int,
    out_indices: Sequence[int] | None,
    arguments: Mapping[str, Any] | None,
    **weights: Any,
) -> nn.Module:
    """Make a network of timm that returns a list of feature maps.

    Args:
        model: as the next three, see :class:`TimmBackbone`.
        in_channels: channels of the images.
        out_indices: of the stages.
        arguments: of the network.
        **weights: timm's arguments for pre-trained weights; without them nothing is fetched.

    Raises:
        UserError: as :class:`TimmBackbone`.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision of another PyTorch raises a RuntimeError
        need = "install it with pip install 'medmdm[timm]', with a torchvision that fits your PyTorch"
        raise UserError(f"TimmBackbone needs timm, which cannot be imported ({error}): {need}.") from error
    if not (isinstance(model, str) and _NAME.fullmatch(model)):
        expected = "expected a plain name of timm's, without an address or a path"
        raise UserError(f"TimmBackbone: model is {model!r}, {expected}.")
    given = _checked(arguments or {})
    if isinstance(given.get("mlp_layer"), str):
        given["mlp_layer"] = getattr(timm.layers, layer := given["mlp_layer"], None)
        if not (isinstance(given["mlp_layer"], type) and issubclass(given["mlp_layer"], nn.Module)):
            raise UserError(f"TimmBackbone: arguments#mlp_layer is {layer!r}, which is no layer of timm's.")
    if out_indices is not None:
        given["out_indices"] = tuple(out_indices)
    given = {"pretrained": False, "features_only": True, "in_chans": in_channels, **given, **weights}
    fault: Exception | None = None
    for more in _ANY_SIZE:
        try:
            network: nn.Module = timm.create_model(model, **{**more, **given})
            return network
        except TypeError as error:  # other networks do not know that argument
            fault = error
        except (RuntimeError, ValueError, AssertionError, AttributeError, IndexError, KeyError) as error:
            known = [str(name) for name in timm.list_models()]
            hint = "" if model.split(".")[0] in known else nearest(model, known)
            raise UserError(f"timm cannot make {model!r} for its features{hint}: {error}") from error
    raise UserError(f"timm cannot make {model!r} for its features: {fault}") from fault


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            raise UserError(f"TimmBackbone: arguments has no {key!r}{nearest(key, ARGUMENTS)}.")
        if isinstance(value, str) and not re.fullmatch(r"\w+", value):
            raise UserError(f"TimmBackbone: arguments#{key} is {value!r}, expected the name of a layer.")
    return dict(arguments)


def _per_channel(key: str, values: Sequence[float], channels: int, given: bool) -> list[float]:
    """Return a number for each channel; of the three of colours the mean where there are not three."""
    numbers = [float(value) for value in values]
    if len(numbers) != channels:
        if given:
            raise UserError(f"TimmBackbone: {key} has {len(numbers)} numbers for {channels} channels.")
        numbers = [sum(numbers) / len(numbers)] * channels
    if key == "std" and min(numbers) <= 0:
        raise UserError(f"TimmBackbone: std is {numbers}, expected numbers above 0.")
    return numbers
