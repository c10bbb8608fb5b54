"""Small frozen backbones with random weights, and made images that their features can segment."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.corruption import PatchMasking
from medmdm.data.reading import Example
from medmdm.errors import UserError, find_user_error
from medmdm.heads.task import Reading, Task

Make = Callable[..., ADMUNet]  # the fixture ``make``
SMALL: dict[str, Any] = {
    "model_channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (2, 4),
    "num_head_channels": 16,
}  # fmt: skip


def with_random_weights(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return network.eval()


SIZES: dict[str, Any] = {
    "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,),
    "num_head_channels": 32,
}  # fmt: skip


def made_extractor(seed: int = 0, network: dict[str, Any] | None = None, **arguments: Any) -> FeatureExtractor:
    """The extractor of a network of 32 channels and two levels; ``network`` and other arguments change it."""
    backbone = with_random_weights(ADMUNet(**{**SIZES, **(network or {})}), seed)
    settings = {"blocks": [0, 1, 2], "timesteps": [50], "corruption": PatchMasking(patch_size=4), "normalize": "rms"}
    return FeatureExtractor(backbone, **{**settings, **arguments})


def made_example(
    seed: int = 0, shape: Sequence[int] = (32, 48), classes: int = 2, channels: int = 3, noise: float = 0.3
) -> Example:
    """Blobs of a brightness (and, with three channels, a colour) for each class, under noise.

    Some of every class: the classes are the quantiles of smooth noise.
    """
    generator = torch.Generator().manual_seed(seed)
    modes = {2: "bilinear", 3: "trilinear"}
    coarse = torch.randn(1, 1, *(max(2, n // 8) for n in shape), generator=generator)
    smooth = F.interpolate(coarse, list(shape), mode=modes[len(shape)], align_corners=False)[0, 0]
    bounds = torch.quantile(smooth, torch.linspace(0, 1, classes + 1)[1:-1])
    label = torch.bucketize(smooth, bounds)
    means = torch.stack([torch.linspace(a, -a, classes) for a in (0.6, -0.4, 0.5)][:channels])  # [C, K]
    image = means[:, label] + noise * torch.randn(channels, *shape, generator=generator)
    return Example(image.clamp(-1, 1), label, f"made_{seed}")


def dice(logits: Tensor, label: Tensor, number: int = 1) -> float:
    """Dice of one class of ``[1, K, *spatial]`` on the labelled pixels of ``[*spatial]``."""
    known = label != 255
    pred, true = logits[0].argmax(0)[known] == number, label[known] == number
    return float(2 * (pred & true).sum() / (pred.sum() + true.sum()))


WINDOW = (32, 32)


def task(examples: list[Example], classes: int = 2, seed: int = 0, **reading: Any) -> Task:
    """What is to be learnt from some examples, in windows of 32 x 32 unless said otherwise."""
    return Task(examples, classes, Reading(**{"window": WINDOW, **reading}), seed)


def refused(sentence: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """A call ends in a UserError whose sentence matches a regular expression."""
    with pytest.raises(UserError, match=sentence):
        call(*args, **kwargs)


def refused_in_config(sentence: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """As :func:`refused`, where MONAI's config parser may have wrapped the error."""
    with pytest.raises((UserError, RuntimeError)) as caught:
        call(*args, **kwargs)
    error = find_user_error(caught.value)
    assert error is not None, caught.value
    assert re.search(sentence, str(error)), error
