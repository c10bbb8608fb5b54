from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import multiscale_basic_features
from torch import Tensor

from medmdm.artifacts.backbone import open_backbone
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.components import instantiate, to_config
from tests.bundle_runs import write_backbone
from tests.made import refused


def made_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((3, 17, 26), {}), ((1, 40, 9), {}), ((3, 20, 20), {"sigma_min": 1, "sigma_max": 5}), ((2, 6, 7, 9), {})],
    ids=["colours", "grey", "scales", "volume"],
)
def test_equals_scikit_image(shape: tuple[int, ...], scales: dict[str, Any]) -> None:
    x = made_images(2, *shape)
    network = FilterBank(shape[0], len(shape) - 1, **scales)
    (features,) = network.features(x, torch.zeros(2), [0])
    for image, found in zip(x, features, strict=True):
        expected = multiscale_basic_features(image.numpy(), **scales, channel_axis=0)
        np.testing.assert_array_equal(found.movedim(0, -1), expected)
    assert network.feature_info == [{"block": 0, "channels": features.shape[1], "reduction": 1}]
    assert not list(network.parameters())
    assert torch.equal(network(x, torch.zeros(2)), x)


def test_is_rebuilt_and_told_apart() -> None:
    network = FilterBank(1, 2, 1.0, 4.0)
    again = instantiate(to_config(network))
    assert again.config == network.config
    assert torch.equal(network.state_dict()["sigmas"], torch.tensor([1.0, 2.0, 4.0]))
    assert not torch.equal(FilterBank(1, 2, 1.5, 6.0).sigmas, network.sigmas)


def test_refuses() -> None:
    refused("in_channels is 0", FilterBank, 0)
    refused("spatial_dims is 1", FilterBank, 3, 1)
    refused("sigma_min is 4 and sigma_max 2", FilterBank, sigma_min=4, sigma_max=2)
    refused("sigma_min is 0 and", FilterBank, sigma_min=0)
    network, t = FilterBank(), torch.zeros(1)
    refused("there is no block 1", network.features, made_images(1, 3, 4, 4), t, [1])
    refused(r"expected \[batch, 3, height, width\]", network.features, made_images(1, 1, 4, 4), t, [0])
    refused("expected 2 pixels or more along each axis", network.features, made_images(1, 3, 1, 4), t, [0])
    with pytest.raises(Exception, match="scikit-image's, which cannot be exported"):
        torch.jit.trace(FeatureExtractor(network, [0], masking="none"), made_images(1, 3, 8, 8), check_trace=False)


def test_opened_next_to_the_raw_pixels(tmp_path: Path) -> None:
    write_backbone(tmp_path / "model.pt")
    opened = open_backbone(tmp_path / "model.pt", initialise="filters")
    assert isinstance(opened.extractor, CachedExtractor)
    assert opened.extractor.config["masking"] == "none"
    assert opened.plan["network"] == to_config(FilterBank())
    assert not opened.plan["ledger"]["images"]
    (features,) = opened.extractor.extractor.raw(made_images(1, 3, 16, 24))
    expected = multiscale_basic_features(made_images(3, 16, 24).numpy(), channel_axis=0)
    np.testing.assert_array_equal(features[0].movedim(0, -1), expected)
    raw = open_backbone(tmp_path / "model.pt", initialise="raw")
    assert raw.plan["network"]["_target_"] == "medmdm.backbones.RawPixels"
    assert raw.identity != opened.identity
    refused(
        r"initialise is 'filter' \(did you mean 'filters'\?\)",
        open_backbone,
        tmp_path / "model.pt",
        initialise="filter",
    )
