"""A small network with weights that reach the output (the zero-initialised layers would hide everything)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from medmdm.networks import ADMUNet

SMALL: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2, 4),
    "num_head_channels": 16,
}


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


@pytest.fixture(scope="session")
def make() -> Callable[..., ADMUNet]:
    """Build a small network with random weights; arguments change its configuration."""

    def build(seed: int = 0, **arguments: Any) -> ADMUNet:
        return with_random_weights(ADMUNet(**{**SMALL, **arguments}), seed)  # type: ignore[return-value]

    return build


@pytest.fixture(scope="session")
def randomise() -> Callable[..., torch.nn.Module]:
    """Replace all weights of a network by random ones."""
    return with_random_weights
