import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.testing import assert_close

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import NORMALIZATIONS, normalize, surroundings
from medmdm.corruption import Compose, Downsample, FrequencyMasking, GaussianNoise, MaskedNoise, PatchMasking
from medmdm.errors import UserError
from tests.made import Make, refused

pytestmark = pytest.mark.usefixtures("no_grad")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def full_pass(network: ADMUNet, x: Tensor, t: int) -> list[Tensor]:
    outputs: list[Tensor] = []
    blocks = network.output_blocks
    hooks = [block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in blocks]
    network(x, torch.full((len(x),), t))
    for hook in hooks:
        hook.remove()
    return outputs


def test_a_truncated_network_shares_and_rebuilds(make: Make) -> None:
    network = make()
    before = list(network.state_dict())
    part = network.truncated(2)
    assert [info["block"] for info in part.feature_info] == [0, 1, 2]
    assert part.config == network.config
    assert part.input_blocks is network.input_blocks
    whole = network.state_dict(keep_vars=True)
    for name, parameter in part.state_dict(keep_vars=True).items():
        assert parameter is whole[name]
    gone = set(whole) - set(part.state_dict())
    assert gone
    assert all(name.startswith(("out.", "output_blocks.3", "output_blocks.4", "output_blocks.5")) for name in gone)
    assert list(network.state_dict()) == before
    assert network(images(1, 3, 8, 8), torch.tensor([0])).shape == (1, 3, 8, 8)

    again = ADMUNet(**part.config).truncated(2)
    again.load_state_dict(part.state_dict())
    x, time = images(1, 3, 8, 12), torch.tensor([9])
    assert torch.equal(again.features(x, time, [2])[0], network.features(x, time, [2])[0])
    assert len(again.truncated(0).output_blocks) == 1
    refused("truncated after decoder block 2", part, x, time)
    refused("no block 3; this network has the decoder blocks 0 to 2", part.features, x, time, [3])
    refused("no block 3", part.truncated, 3)


def test_the_masked_image_is_what_the_backbone_sees(make: Make) -> None:
    network, x = make(), images(2, 3, 16, 24)
    extractor = FeatureExtractor(network, (1, 4), (300,), PatchMasking(patch_size=4), normalize="none")
    (corrupted,) = extractor.corruptions(x, 300)
    expected = full_pass(network, corrupted.x_t, 300)
    for mine, block in zip(extractor(x), (1, 4), strict=True):
        assert torch.equal(mine, expected[block])


def test_seeded_masks_hide_as_much_as_t_says(make: Make) -> None:
    extractor = FeatureExtractor(make(), (1,), (300,), PatchMasking(patch_size=4))
    x = images(2, 3, 16, 24) + 2  # nowhere zero
    ((x_t, visible),) = extractor.corruptions(x, 300)
    assert torch.equal(x_t, torch.where(visible.bool().expand_as(x), x, torch.zeros(())))
    patches = visible.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert torch.equal(patches.amin(4), patches.amax(4))
    assert patches.amax(4).flatten(1).sum(1).tolist() == [16.0, 16.0]  # floor(24 * 0.7)


@pytest.mark.parametrize("corruption", [PatchMasking(patch_size=4), GaussianNoise(), MaskedNoise(patch_size=4)])
def test_a_window_shape_has_one_mask_whatever_the_batch(make: Make, corruption: Any) -> None:
    extractor = FeatureExtractor(make(), (1,), (300,), corruption, seed=3)
    x = images(4, 3, 16, 24)
    whole = extractor.corruptions(x, 300)[0]
    torch.manual_seed(1)
    again = FeatureExtractor(make(1), (2,), (300, 10), corruption, seed=3).corruptions(x.flip(0), 300)[0]
    assert torch.equal(again.x_t.flip(0), whole.x_t)
    for i in range(4):
        one = extractor.corruptions(x[i : i + 1], 300)[0]
        assert torch.equal(one.x_t[0], whole.x_t[i])
        assert torch.equal(one.visible[0], whole.visible[i])
    other = FeatureExtractor(make(), (1,), (300,), corruption, seed=4).corruptions(x, 300)[0]
    assert not torch.equal(other.x_t, whole.x_t)
    assert not torch.equal(extractor.corruptions(x.transpose(2, 3), 300)[0].x_t.transpose(2, 3), whole.x_t)


@pytest.mark.parametrize("corruption", [GaussianNoise(), MaskedNoise(patch_size=4, noise_rate=1.0)])
def test_seeded_noise_is_the_ddpm_equation(make: Make, corruption: Any) -> None:
    extractor = FeatureExtractor(make(), (1,), (400,), corruption)
    x = images(2, 3, 32, 48)
    ((x_t, visible),) = extractor.corruptions(x, 400)
    kept = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:401])
    noise = (x_t - kept**0.5 * x * visible) / (1 - kept) ** 0.5
    assert_close(noise[0], noise[1], rtol=0, atol=1e-5)
    shown = noise[0][:, visible[0, 0].bool()]
    assert abs(float(shown.mean())) < 0.06
    assert abs(float(shown.std()) - 1) < 0.05
    assert float(noise[0][:, ~visible[0, 0].bool()].abs().sum()) == 0


def test_a_partition_hides_every_patch_exactly_once(make: Make) -> None:
    for t, given, count in ((250, None, 4), (50, None, 20), (999, None, 2), (0, None, 24), (50, 7, 7), (50, 99, 24)):
        extractor = FeatureExtractor(make(), (1,), (t,), PatchMasking(patch_size=4), "partition", given)
        views = extractor.corruptions(images(2, 3, 16, 24) + 2, t)
        assert len(views) == count  # at most the 24 patches
        hidden = torch.stack([1 - view.visible for view in views])
        assert torch.equal(hidden.sum(0), torch.ones(2, 1, 16, 24))
        assert hidden.flatten(1).sum(1).amin() > 0
        for view in views:
            assert torch.equal(view.x_t != 0, view.visible.bool().expand_as(view.x_t))


def test_a_partition_is_the_mean_of_its_views(make: Make) -> None:
    network, x = make(), images(1, 3, 16, 24)
    extractor = FeatureExtractor(network, (1, 4), (250, 500), PatchMasking(patch_size=4), "partition", 3, "none")
    views = list(extractor.views(x))
    assert len(views) == 3
    assert [len(view) for view in views] == [4, 4, 4]
    for mine, same in zip(extractor(x), zip(*views, strict=True), strict=True):
        assert_close(mine, sum(same) / 3)
        assert not torch.equal(same[0], same[1])
    assert torch.equal(views[0][3], full_pass(network, extractor.corruptions(x, 500)[0].x_t, 500)[4])


def test_the_smaller_of_two_partitions_begins_anew(make: Make) -> None:
    network, x = make(), images(1, 3, 16, 24)
    extractor = FeatureExtractor(network, (1,), (250, 500), PatchMasking(patch_size=4), "partition", normalize="none")
    views = list(extractor.views(x))
    assert len(views) == 4
    large, small = ([full_pass(network, c.x_t, t)[1] for c in extractor.corruptions(x, t)] for t in (250, 500))
    assert (len(large), len(small)) == (4, 2)
    for k, view in enumerate(views):
        assert_close(view[0], large[k])
        assert_close(view[1], small[k % 2])


@pytest.mark.parametrize("corruption", [None, PatchMasking()])
def test_without_masking_the_image_is_shown_as_it_is(make: Make, corruption: Any) -> None:
    network, x = make(), images(1, 3, 16, 24)
    masking = "seeded" if corruption is None else "none"
    extractor = FeatureExtractor(network, (2,), (50,), corruption, masking, normalize="none")
    assert torch.equal(extractor(x)[0], full_pass(network, x, 50)[2])


@pytest.mark.parametrize(("size", "padded"), [((16, 24), (20, 40)), ((1, 41), (20, 60)), ((21, 3), (40, 20))])
def test_odd_sizes_are_padded_at_the_lower_right(make: Make, size: tuple, padded: tuple) -> None:
    extractor = FeatureExtractor(make(), (1, 4), (300,), PatchMasking(patch_size=5))
    assert extractor.multiple == 20  # of the network's 4 and the patch's 5
    assert extractor.padded_size(size) == padded
    x = images(2, 3, *size)
    edges = [(0, 0), (0, 0), *((0, new - old) for old, new in zip(size, padded, strict=True))]
    by_hand = torch.from_numpy(np.pad(x.numpy(), edges, mode="edge"))
    for mine, expected in zip(extractor(x), extractor(by_hand), strict=True):
        assert torch.equal(mine, expected)


def test_multiple_of_oblong_patches_and_of_masked_noise(make: Make) -> None:
    assert FeatureExtractor(make(), (1,), (50,), PatchMasking(patch_size=(3, 8))).multiple == 24
    assert FeatureExtractor(make(), (1,), (50,), MaskedNoise(patch_size=6)).multiple == 12
    assert FeatureExtractor(make(), (1,), (50,), GaussianNoise()).multiple == 4
    assert FeatureExtractor(make(), (1,), (50,), FrequencyMasking()).multiple == 4
    both = Compose(1000, [PatchMasking(patch_size=12), Downsample(levels=3)])
    assert FeatureExtractor(make(), (1,), (50,), both).multiple == 24
    read = FeatureExtractor(make(), (4,), (50,), both, "none")
    assert read.padded_size((25, 50)) == (48, 72)
    assert read(images(1, 3, 25, 50))[0].shape[2:] == (48, 72)


@pytest.mark.parametrize(("channels", "dims", "size"), [(1, 2, (9, 14)), (1, 3, (5, 8, 9))])
def test_one_channel_and_volumes(make: Make, channels: int, dims: int, size: tuple) -> None:
    network = make(spatial_dims=dims, in_channels=channels, channel_mult=(1, 2), attention_resolutions=(2,))
    extractor = FeatureExtractor(network, (0, 3), (400,), PatchMasking(patch_size=2))
    maps = extractor(images(2, channels, *size))
    expected = [info["channels"] for info in extractor.feature_info]
    assert [f.shape[1] for f in maps] == expected
    assert sum(expected) == extractor.num_features
    for f, info in zip(maps, extractor.feature_info, strict=True):
        assert f.shape[2:] == tuple(n // info["reduction"] for n in extractor.padded_size(size))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_maps_are_normalised_as_if_up_sampled(make: Make, kind: str) -> None:
    extractor = FeatureExtractor(make(), (0, 2, 4), (50,), PatchMasking(patch_size=4), normalize=kind)
    raw = extractor.raw(images(2, 3, 15, 20))
    for mine, expected in zip(extractor(images(2, 3, 15, 20)), normalize(raw, (16, 20), kind), strict=True):
        assert torch.equal(mine, expected)


def test_the_same_image_always_gives_the_same_features(make: Make) -> None:
    network = make(dropout=0.5)
    extractor = FeatureExtractor(network, (1, 4), (300, 50), MaskedNoise(patch_size=4))
    x = images(1, 3, 16, 24)
    first = extractor(x)
    torch.manual_seed(99)
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    for a, b, c in zip(first, extractor(x), extractor(torch.cat([images(1, 3, 16, 24, seed=5), x])), strict=True):
        assert torch.equal(a, b)
        assert_close(a[0], c[1])
    assert [(i["block"], i["timestep"]) for i in extractor.feature_info] == [(1, 300), (4, 300), (1, 50), (4, 50)]
    again = FeatureExtractor(network, corruption=extractor.corruption, **extractor.config)
    assert all(torch.equal(a, b) for a, b in zip(first, again(x), strict=True))


@pytest.mark.parametrize("masking", ["seeded", "partition"])
@pytest.mark.slow
def test_context_is_scipys_uniform_filter_of_each_map(make: Make, masking: str) -> None:
    network = make()
    settings: dict[str, Any] = {"timesteps": (300, 50), "corruption": PatchMasking(patch_size=4), "masking": masking}
    plain = FeatureExtractor(network, (1, 4), normalize="none", **settings)
    extractor = FeatureExtractor(network, (1, 4), normalize="none", **settings, context=(1, 7, 12))
    x = images(2, 3, 15, 24)
    maps, expected = extractor(x), plain(x)
    read = plain.feature_info
    assert [i["reduction"] for i in read] == [2, 1, 2, 1]
    assert extractor.feature_info == [*read, *({**info, "context": n} for n in (1, 7, 12) for info in read)]
    assert extractor.num_features == 4 * plain.num_features
    widths = [1, 1, 1, 1, 5, 7, 5, 7, 7, 13, 7, 13]  # 3.5 is rounded to 4, even numbers are raised
    expected += [torch.from_numpy(uniform_filter(f.numpy(), (1, 1, n, n))) for f, n in zip(expected * 3, widths)]  # noqa: B905
    for f, g in zip(maps, expected, strict=True):
        assert_close(f, g, rtol=0, atol=1e-5)
    for view, own in zip(extractor.views(x), plain.views(x), strict=True):
        assert_close(view[4 + 4 + 1], torch.from_numpy(uniform_filter(own[1].numpy(), (1, 1, 7, 7))), rtol=0, atol=1e-5)


def test_deviations_follow_their_means_and_the_config_makes_it_again(make: Make) -> None:
    network = make()
    masks = PatchMasking(patch_size=4)
    extractor = FeatureExtractor(network, (1, 4), (300,), masks, context=[6, 12], context_deviation=True)
    kinds = [(i["block"], i.get("context"), "deviation" in i) for i in extractor.feature_info]
    around = [(b, window, deviation) for window in (6, 12) for b in (1, 4) for deviation in (False, True)]
    assert kinds == [(1, None, False), (4, None, False), *around]
    x = images(1, 3, 16, 24)
    raw = extractor.raw(x)
    mean, deviation = surroundings(raw[1], 7, deviation=True)
    assert torch.equal(raw[4], mean)
    assert torch.equal(raw[5], deviation)
    again = FeatureExtractor(network, corruption=masks, **json.loads(json.dumps(extractor.config)))
    assert again.feature_info == extractor.feature_info
    assert all(torch.equal(a, b) for a, b in zip(extractor(x), again(x), strict=True))
    for nothing in (None, ()):
        assert not {"context", "context_deviation"} & set(FeatureExtractor(network, (1,), context=nothing).config)


def test_remembered_masks_are_bounded_and_drawn_anew_alike(make: Make) -> None:
    extractor = FeatureExtractor(make(), (1,), (300,), PatchMasking(patch_size=4))
    x = images(1, 3, 16, 24)
    first = extractor.corruptions(x, 300)[0].visible
    for height, width in itertools.product(range(4, 44, 4), range(4, 44, 4)):
        extractor.prepare((height, width))
    assert len(extractor._drawn) <= 32
    assert torch.equal(extractor.corruptions(x, 300)[0].visible, first)


def test_masks_are_not_drawn_inside_a_trace(make: Make) -> None:
    extractor = FeatureExtractor(make(), (1,), (300,), PatchMasking(patch_size=4))
    with pytest.raises(UserError, match=r"16x24 pixels are not drawn yet.*extractor.prepare\(size\)"):
        torch.export.export(extractor, (images(1, 3, 16, 24),))


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"blocks": (2, 6)}, r"of which the backbone has 0 to 5, got \(2, 6\)"),
    ({"blocks": 3}, "blocks must be a list of decoder blocks"),
    ({"timesteps": "50"}, "timesteps must be a list of numbers from 0 to 999, got '50'"),
    ({"blocks": ()}, r"got \(\)"),
    ({"timesteps": (1000,)}, "from 0 to 999"),
    ({"timesteps": (-1,)}, "from 0 to 999"),
    ({"timesteps": ()}, "timesteps must be a list"),
    ({"timesteps": (500,), "corruption": PatchMasking(num_timesteps=500)}, "from 0 to 499"),
    ({"partitions": 1}, "partitions must be at least 2"),
    ({"context": [12, 0]}, r"context must be a list of windows in pixels, of 1 or more each, got \[12, 0\]"),
    ({"context": 12}, "context must be a list of windows in pixels.* got 12"),
    ({"context": "12"}, "got '12'"),
    ({"context_deviation": True}, "context_deviation is that of the windows in context, and there are none"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"masking": "random"}, "seeded, none, partition, got 'random'"),
    ({"normalize": "l2"}, "global_l2, rms, standardize, none, got 'l2'"),
    ({"masking": "partition", "corruption": GaussianNoise()}, "trained with PatchMasking; use 'seeded'"),
    ({"masking": "partition"}, "trained with PatchMasking"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(make: Make, arguments: dict, sentence: str) -> None:
    refused(sentence, FeatureExtractor, make(), **{"blocks": (1,), **arguments})
