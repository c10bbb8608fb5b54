"""A small frozen backbone with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from medmdm.corruption import PatchMasking
from medmdm.networks import ADMUNet, FeatureExtractor
from tests.networks.conftest import with_random_weights


@pytest.fixture(scope="session")
def make_extractor() -> Callable[..., FeatureExtractor]:
    """Build the extractor of a network of 32 channels and two levels; ``network`` and other arguments change it."""

    def build(seed: int = 0, network: dict[str, Any] | None = None, **arguments: Any) -> FeatureExtractor:
        sizes = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
        backbone = ADMUNet(**{**sizes, "num_head_channels": 32, **(network or {})})
        settings = {"blocks": [0, 1, 2], "timesteps": [50], "corruption": PatchMasking(patch_size=4), **arguments}
        return FeatureExtractor(with_random_weights(backbone, seed), **settings)

    return build
