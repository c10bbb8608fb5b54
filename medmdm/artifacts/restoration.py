"""A pre-trained network as one that takes an image alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.artifacts.backbone import default_timestep
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.backbones.layers import Traced, parameters_of


class Restoration(nn.Module):
    """A pre-trained network at one t: a damaged image -> what the network predicts of it.

    MONAI's tools call a network with an image, where a diffusion model takes t besides. What is predicted is the plan's
    ``target``: the whole image, or the noise in it.

    Args:
        path: a weights file of ours.
        timestep: t; None for the one at which features are read by default.
        trust: see :func:`medmdm.artifacts.load_pretrained`.

    Attributes:
        plan: of the file.
    """

    def __init__(self, path: str | os.PathLike[str], timestep: int | None = None, trust: bool = False) -> None:
        super().__init__()
        self.network, self.plan = load_pretrained(path, trust=trust)
        self.timestep = default_timestep(self.plan) if timestep is None else timestep
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return what is predicted, ``[B, C, *spatial]``, of images ``[B, C, *spatial]`` in [-1, 1]."""
        # By the shape, which a trace follows: len() would fix the number of images.
        times = torch.full((image.shape[0],), self.timestep, dtype=torch.long, device=image.device)
        predicted: Tensor = self.network(image, times)
        return predicted

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of its own, or what a weights file holds: the network's."""
        state = parameters_of(state_dict)
        if state.keys() == self.state_dict().keys():
            return super().load_state_dict(state, strict, assign)
        return self.network.load_state_dict(state, strict, assign)

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` a trace at the size of the training crops: not every network can be scripted."""
        return Traced(self, (int(self.plan["channels"]), *self.plan["crop_size"]))
