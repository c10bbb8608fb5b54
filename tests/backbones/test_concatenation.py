from typing import Any

import pytest
import torch
from torch import Tensor

from medmdm.backbones import ADMUNet, Concatenation, FeatureExtractor, FilterBank, RawPixels, randomise
from medmdm.components import instantiate, to_config
from medmdm.corruption import PatchMasking
from tests.made import SIZES, made_extractor, refused, with_random_weights


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(seed: int = 0, **changes: Any) -> Any:
    return with_random_weights(ADMUNet(**{**SIZES, **changes}), seed)


def test_blocks_are_numbered_through() -> None:
    first, second = network(), network(1, num_res_blocks=2)
    both = Concatenation([first, RawPixels(), second])
    count = len(first.feature_info)
    assert [info["channels"] for info in both.feature_info] == [
        info["channels"] for part in (first, RawPixels(), second) for info in part.feature_info
    ]
    assert [info["block"] for info in both.feature_info] == list(range(count + 1 + len(second.feature_info)))
    assert both.reduction == 2
    assert both.usual_blocks == [
        *first.usual_blocks, count, *(count + 1 + block for block in second.usual_blocks)
    ]  # fmt: skip
    x, t = images(2, 3, 8, 12), torch.tensor([50, 50])
    found = both.features(x, t, [count + 2, 0, count])
    torch.testing.assert_close(found, [*second.features(x, t, [1]), *first.features(x, t, [0]), x], rtol=0, atol=0)
    refused("there is no block 11", both.features, x, t, [11])


@pytest.mark.parametrize("masking", ["none", "seeded", "partition"])
def test_each_sees_what_it_was_trained_on(masking: str) -> None:
    """The features are those of two extractors side by side: one of masked images, one of whole ones."""
    first, second = network(), FilterBank(3, sigma_max=2)
    settings: dict[str, Any] = {"masking": masking, "partitions": 3, "normalize": "none", "timesteps": [300]}
    both = FeatureExtractor(Concatenation([first, second]), [1, 4], corruption=PatchMasking(patch_size=4), **settings)
    x = images(1, 3, 14, 20)
    alone = FeatureExtractor(first, [1], corruption=PatchMasking(patch_size=4), **settings)
    whole = FeatureExtractor(second, [0], masking="none", normalize="none")
    expected = [*alone.raw(x), *whole.raw(alone.pad(x))]
    torch.testing.assert_close(both.raw(x), expected, rtol=1e-6, atol=1e-6)
    for found, own in zip(both.views(x), alone.views(x), strict=True):
        torch.testing.assert_close(found, [*own, expected[1]], rtol=1e-6, atol=1e-6)


def test_parts_of_a_part_see_what_they_were_trained_on() -> None:
    nested = Concatenation([Concatenation([network(), RawPixels()]), FilterBank()])
    extractor = FeatureExtractor(nested, [4], [300], PatchMasking(patch_size=4), normalize="none")
    x = images(1, 3, 14, 20)
    (found,) = extractor.raw(x)
    assert torch.equal(found, extractor.pad(x))
    assert not torch.equal(extractor.corruptions(extractor.pad(x), 300)[0].x_t, found)


def test_is_made_again() -> None:
    both = Concatenation([network(), RawPixels(sigmas=[1.0])])
    assert both.restores
    assert not Concatenation([RawPixels(), FilterBank()]).restores
    again: Any = instantiate(to_config(both))
    again.load_state_dict(both.state_dict())
    x, t = images(1, 3, 8, 8), torch.zeros(1)
    torch.testing.assert_close(again.features(x, t, [0, 4]), both.features(x, t, [0, 4]), rtol=0, atol=0)
    assert again.config == both.config
    other: Any = randomise(Concatenation([network(), RawPixels()]), 5)
    expected = randomise(network(), 5)
    assert torch.equal(other.parts[0].state_dict()["time_embed.0.weight"], expected.state_dict()["time_embed.0.weight"])
    nested = Concatenation([both, FilterBank()])
    assert (nested.in_channels, nested.spatial_dims, len(nested.feature_info)) == (3, 2, 6)


def test_refuses() -> None:
    refused("has 1 of them", Concatenation, [RawPixels()])
    refused(r"different channels: \[3, 1\]", Concatenation, [RawPixels(3), RawPixels(1)])
    refused(r"different spatial axes: \[2, 3\]", Concatenation, [FilterBank(3, 2), FilterBank(3, 3)])
    config = {
        "_target_": "medmdm.backbones.Concatenation",
        "backbones": [{"_target_": "os.system", "command": "x"}] * 2,
    }
    refused("neither medmdm's nor MONAI's", instantiate, config)
    assert made_extractor().backbone.restores
