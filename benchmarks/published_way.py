"""The published way to read features and classify pixels, written out for ``segmentation.py`` to compare with.

The whole network runs with hooks on all decoder blocks; their outputs are up-sampled to the crop, concatenated, divided
by their norm, flattened, and classified by an MLP over rows of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones.extractor import FeatureExtractor
from medmdm.heads.classifier_network import PixelClassifier

CLASSES = 2


def published_features(extractor: FeatureExtractor, x_t: Tensor, exact: bool = False) -> Tensor:
    """Run the whole network on a corrupted crop and return ``[P, C]``, normalised."""
    outputs: dict[int, Tensor] = {}
    blocks: Any = extractor.backbone.output_blocks
    hooks = [
        block.register_forward_hook(lambda _, __, output, number=number: outputs.update({number: output}))
        for number, block in enumerate(blocks)
    ]
    with torch.no_grad():
        extractor.backbone(x_t, torch.tensor(extractor.config["timesteps"]))
    for hook in hooks:
        hook.remove()
    return published_stack([outputs[number] for number in extractor.config["blocks"]], x_t.shape[2:], exact)


def published_stack(maps: Sequence[Tensor], size: Sequence[int], exact: bool = False) -> Tensor:
    """Up-sample, concatenate, divide by the norm, flatten.

    PyTorch adds up a norm in single precision on CPUs and is 5e-4 off on a stack of 113 million numbers; ``exact`` is
    to compare results with.
    """
    with torch.no_grad():
        large = [F.interpolate(f, size=tuple(size), mode="bilinear", align_corners=False) for f in maps]
        x = torch.cat(large, dim=1)
        del large
        x = x / (exact_norm(x) if exact else x.norm())
        return x[0].flatten(1).T


def exact_norm(x: Tensor) -> Tensor:
    """Return the norm, added up in double precision."""
    return torch.stack([part.double().square().sum() for part in x.flatten().split(1 << 20)]).sum().sqrt().to(x.dtype)


def published_classifier(channels: int, hidden: Sequence[int] = (128, 32)) -> nn.Sequential:
    """Make the paper's MLP over rows of pixels."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(channels, width), nn.ReLU(), nn.BatchNorm1d(width)]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, CLASSES))


def copy_member(head: PixelClassifier, member: int) -> nn.Sequential:
    """Return the paper's MLP with the weights of a trained member of ours."""
    mlp, state = published_classifier(head.config["in_channels"], head.config["hidden"]), head.member(member)
    linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    norms = [layer for layer in mlp if isinstance(layer, nn.BatchNorm1d)]
    for i, linear in enumerate(linears):
        linear.load_state_dict({"weight": state[f"weights.{i}"][0], "bias": state[f"biases.{i}"][0]})
    for i, norm in enumerate(norms):
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        norm.load_state_dict({part: state[f"norms.{i}.{part}"] for part in parts})
    return mlp.eval()
