from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet, DiffusionModelUNet
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from medmdm.artifacts.pretrained import load_pretrained
from medmdm.backbones.adapters import BasicUNetBackbone, MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.errors import UserError
from medmdm.files import save_torch
from tests.bundle_runs import Workflow, saved_by
from tests.made import SMALL, refused, with_random_weights

MONAI_SMALL: dict[str, Any] = {
    "num_res_blocks": 1, "channels": (32, 32, 64), "attention_levels": (False, True, True), "num_head_channels": 16,
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {},
    {"resblock_updown": False, "use_flash_attention": False, "include_fc": False},
    {"num_res_blocks": [2, 1, 3], "num_head_channels": [8, 16, 32], "use_combined_linear": True},
    {"channels": (32,), "attention_levels": (True,)},
    {"spatial_dims": 3, "channels": (32, 32), "attention_levels": (False, True), "in_channels": 1, "out_channels": 1},
]


@pytest.fixture
def make():
    def build(**arguments: Any) -> MONAIDiffusionBackbone:
        return with_random_weights(MONAIDiffusionBackbone(**{**MONAI_SMALL, **arguments}))

    return build


def inputs(network: nn.Module, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    spatial = [network.reduction * n for n in (2, 3, 1)][: network.config.get("spatial_dims", 2)]
    x = torch.rand((batch, network.config["in_channels"], *spatial), generator=generator) * 2 - 1
    return x, torch.randint(1000, (batch,), generator=generator)


def hooked(network: MONAIDiffusionBackbone, x: Tensor, t: Tensor) -> list[Tensor]:
    """Outputs of all decoder blocks, seen by hooks in MONAI's own forward pass."""
    seen: list[Tensor] = []
    handles = []
    for up_block in network.network.up_blocks:
        last = len(up_block.resnets) - 1
        for index, resnet in enumerate(up_block.resnets):
            module = up_block.attentions[index] if hasattr(up_block, "attentions") else resnet
            if index == last and up_block.upsampler is not None:
                module = up_block.upsampler
            handles.append(module.register_forward_hook(lambda module, args, out: seen.append(out)))
    network.network(x, t)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("arguments", VARIANTS)
@torch.no_grad()
def test_features_are_those_of_the_full_pass_bit_for_bit(make, arguments):
    network = make(**arguments)
    x, t = inputs(network)
    expected = hooked(network, x, t)
    info = network.feature_info
    assert [one["block"] for one in info] == list(range(len(expected)))
    for number, full in enumerate(expected):
        (alone,) = network.features(x, t, [number])
        assert torch.equal(alone, full)
        size = [n // info[number]["reduction"] for n in x.shape[2:]]
        assert list(alone.shape) == [len(x), info[number]["channels"], *size]
    backwards = network.features(x, t, [len(expected) - 1, 0])
    assert torch.equal(backwards[0], expected[-1])
    assert torch.equal(backwards[1], expected[0])


@torch.no_grad()
def test_forward_is_monais(make):
    network = make()
    x, t = inputs(network)
    plain = DiffusionModelUNet(**network.config).eval()
    plain.load_state_dict(network.network.state_dict())
    assert torch.equal(network(x, t), plain(x, t))
    assert not torch.equal(network(x, t), network(x, t + 100))


@torch.no_grad()
def test_nothing_runs_after_the_last_block(make):
    network = make()
    ran: list[int] = []
    resnets = [resnet for up_block in network.network.up_blocks for resnet in up_block.resnets]
    for number, resnet in enumerate(resnets):
        resnet.register_forward_hook(lambda module, args, out, number=number: ran.append(number))
    network.network.out.register_forward_hook(lambda *_: ran.append(-1))
    network.features(*inputs(network), [2, 1])
    assert ran == [0, 1, 2]


def test_numbering_is_that_of_the_papers_network():
    with torch.device("meta"):
        assert MONAIDiffusionBackbone().feature_info == ADMUNet().feature_info
        assert MONAIDiffusionBackbone().reduction == ADMUNet().reduction == 32


def test_wrong_arguments_and_inputs(make):
    with pytest.raises(UserError, match=r"MONAIDiffusionBackbone: .*multiple of norm_num_groups"):
        MONAIDiffusionBackbone(channels=(30, 60), attention_levels=(False, False))
    network = make()
    x, t = inputs(network)
    refused("there is no block 6; this network has the decoder blocks 0 to 5", network.features, x, t, [0, 6])
    refused("no block is asked for", network.features, x, t, [])
    refused(r"expected \[batch, 3, height, width\]", network, x[:, :1], t)
    refused(r"\(8, 13\) is not divisible by 4", network, torch.zeros(1, 3, 8, 13), t[:1])
    refused("expected one for each of the 2 images", network, x, t[:1])


class Cut(nn.Module):
    """Features of an image at a fixed timestep, as a segmenter has them."""

    def __init__(self, backbone: nn.Module, blocks: list[int]) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, blocks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        t = torch.full((x.shape[0],), 50, device=x.device)
        return tuple(self.backbone.features(x, t, self.blocks))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["trace", "export"])
@pytest.mark.parametrize("kind", ["monai", "raw"])
@torch.no_grad()
def test_exports(make, how, kind):
    network = make() if kind == "monai" else RawPixels(sigmas=[1.0, 3.0])
    x, _ = inputs(make())
    cut = Cut(network, [1, 3] if kind == "monai" else [0]).eval()
    exported = torch.jit.trace(cut, x) if how == "trace" else torch.export.export(cut, (x,)).module()
    other = x.flip(3) * 0.5
    for a, b in zip(exported(other), cut(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["monai", "raw", "raw without sigmas"])
def test_rebuilt_from_its_plan(make, kind, tmp_path):
    network = make() if kind == "monai" else RawPixels(sigmas=[2.0] if kind == "raw" else [])
    plan = {"network": {"_target_": f"medmdm.networks.{type(network).__name__}", **network.config}}
    save_torch({"model": network.state_dict(), "plan": plan}, tmp_path / "model.pt")
    again, _ = load_pretrained(tmp_path / "model.pt")
    x, t = inputs(network)
    assert type(again) is type(network)
    with torch.no_grad():
        assert torch.equal(again.features(x, t, [0])[0], network.eval().features(x, t, [0])[0])


def test_pre_trains_by_the_bundle(workflow: Workflow, tmp_path: Path):
    definition = {
        "_target_": "medmdm.backbones.MONAIDiffusionBackbone", "in_channels": "@channels", "out_channels": "@channels",
        **{key: list(value) if isinstance(value, tuple) else value for key, value in MONAI_SMALL.items()},
    }  # fmt: skip
    saved_by(workflow(network_def=definition, max_steps=2, log_every=1, preview_every=2))
    network, plan = load_pretrained(tmp_path / "run" / "model.pt")
    assert isinstance(network, MONAIDiffusionBackbone)
    assert plan["network"] == {"_target_": "medmdm.backbones.MONAIDiffusionBackbone", **network.config}
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


@pytest.mark.parametrize("shape", [(3, 17, 26), (1, 1, 1), (2, 3, 40), (1, 6, 7, 8)])
def test_raw_pixels_are_the_image_and_what_scipy_smooths(shape):
    x = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = RawPixels(in_channels=shape[0], sigmas=[0.7, 3])
    (features,) = network.features(x, torch.zeros(2), [0])
    expected = [x.numpy()]
    for sigma in (0.7, 3):
        axes = (0, 0, *[sigma] * (len(shape) - 1))
        expected.append(gaussian_filter(x.numpy().astype(np.float64), axes, mode="nearest", truncate=4.0))
    np.testing.assert_allclose(features, np.concatenate(expected, axis=1), atol=2e-6)
    assert network.feature_info == [{"block": 0, "channels": features.shape[1], "reduction": 1}]
    assert torch.equal(network(x, torch.zeros(2)), x)


def test_raw_pixels_without_smoothing():
    network = RawPixels()
    x = torch.rand(1, 3, 4, 5)
    assert torch.equal(network.features(x, torch.zeros(1), [0])[0], x)
    assert not list(network.parameters())
    assert network.reduction == 1


def test_raw_pixels_are_told_apart_by_their_state():
    one, two = RawPixels(sigmas=[1.0]).state_dict(), RawPixels(sigmas=[2.0]).state_dict()
    assert one.keys() == two.keys()
    assert not torch.equal(one["sigmas"], two["sigmas"])


def test_raw_pixels_refuse():
    refused("in_channels is 0", RawPixels, in_channels=0)
    refused(r"sigmas is \[1, 0\]", RawPixels, sigmas=[1, 0])
    with pytest.raises(UserError, match="there is no block 1; this network has block 0 only"):
        RawPixels().features(torch.zeros(1, 3, 4, 4), torch.zeros(1), [1])
    refused("expected 3 channels", RawPixels().features, torch.zeros(1, 1, 4, 4), torch.zeros(1), [0])


def test_extractor_reads_the_adapters(make):
    x = torch.rand(1, 3, 10, 13) * 2 - 1
    raw = FeatureExtractor(RawPixels(sigmas=[1.0]), blocks=[0], timesteps=[0], masking="none", normalize="none")
    (features,) = raw(x)
    assert torch.equal(features[:, :3], x)
    monai = FeatureExtractor(make(), blocks=[0, 3], timesteps=[50], masking="none")
    assert [f.shape[1:] for f in monai(x)] == [(64, 3, 4), (32, 12, 16)]


def backbones() -> list[nn.Module]:
    torch.manual_seed(123)
    return [ADMUNet(**SMALL), MONAIDiffusionBackbone(**MONAI_SMALL)]


@pytest.mark.parametrize("which", [0, 1])
def test_randomise_is_the_constructor_under_a_seed(which):
    trained = backbones()[which]
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    kind, config = type(trained), trained.config
    torch.manual_seed(7)
    expected = kind(**config).state_dict()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert randomise(trained, 7) is trained
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = trained.state_dict()
    assert all(torch.equal(drawn[name], value) for name, value in expected.items())
    again, other = randomise(backbones()[which], 7).state_dict(), randomise(backbones()[which], 8).state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert any(not torch.equal(other[name], value) for name, value in expected.items())


def test_randomised_residual_branches_are_closed():
    """As at the start of pre-training: the last convolution of each residual block is zero, its first is not."""
    state = randomise(ADMUNet(**SMALL), 1).state_dict()
    last = [value for name, value in state.items() if name.endswith("out_layers.3.weight")]
    first = [value for name, value in state.items() if name.endswith("in_layers.2.weight")]
    assert last
    assert all(not value.any() for value in last)
    assert all(value.std() > 0 for value in first)


def test_randomise_keeps_mode_and_type():
    network = ADMUNet(**SMALL).eval().double()
    randomise(network, 3)
    assert not network.training
    assert next(network.parameters()).dtype == torch.float64


def test_randomise_in_a_config():
    definition = {
        "_target_": "medmdm.backbones.ADMUNet",
        **{k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()},
    }
    config = {"baseline": {"_target_": "medmdm.backbones.randomise", "network": definition, "seed": 4}}
    network = ConfigParser(config).get_parsed_content("baseline")
    expected = randomise(ADMUNet(**SMALL), 4).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_randomise_needs_a_config():
    refused("Linear does not say how it was made", randomise, nn.Linear(2, 3), 0)


BASIC: dict[str, Any] = {"features": (8, 8, 16, 16, 24, 16), "num_groups": 4}


@pytest.mark.parametrize("changes", [{}, {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}], ids=str)
def test_the_plain_unet_is_monais(changes: dict[str, Any]) -> None:
    network = with_random_weights(BasicUNetBackbone(**{**BASIC, **changes}))
    norm = ("group", {"num_groups": 4})
    dims, channels, out = (network.config[key] for key in ("spatial_dims", "in_channels", "out_channels"))
    same = BasicUNet(dims, channels, out, BASIC["features"], norm=norm).eval()
    same.load_state_dict(network.network.state_dict())
    seen: list[Tensor] = []
    for up in (same.upcat_4, same.upcat_3, same.upcat_2, same.upcat_1):
        up.register_forward_hook(lambda module, args, out: seen.append(out))
    x, t = inputs(network)
    assert torch.equal(network(x, t), same(x))
    found = network.features(x, t, [3, 0, 2, 1])
    assert all(torch.equal(a, seen[block]) for a, block in zip(found, (3, 0, 2, 1), strict=True))
    for feature, info in zip(network.features(x, t, range(4)), network.feature_info, strict=True):
        assert feature.shape[1] == info["channels"]
        assert feature.shape[2] * info["reduction"] == x.shape[2]


def test_the_plain_unet_is_told_what_it_is_asked_to() -> None:
    def built(**told: Any) -> nn.Module:
        return with_random_weights(BasicUNetBackbone(**BASIC, **told))

    plain, timed, masked = built(), built(tells_t=True), built(tells_hidden=True)
    x, t = inputs(plain)
    assert torch.equal(plain(x, t), plain(x, t + 1))
    assert not torch.equal(timed(x, t), timed(x, (t + 500) % 1000))
    hidden = x.clone()
    hidden[:, :, :16, :16] = 0
    seen: list[Tensor] = []
    masked.network.conv_0.register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # type: ignore[union-attr]
    masked(hidden, t)
    assert seen[0].shape[1] == 4
    assert torch.equal(seen[0][:, 3] == 1, (hidden == 0).all(1))
    uncut, cut = built(), built(skip=0.0)
    with torch.no_grad():
        for network in (uncut, cut):
            network.network.down_1.register_forward_hook(lambda module, args, out: out * 0)  # type: ignore[union-attr]
    assert not torch.equal(uncut(x, t)[0], uncut(-x, t)[0])
    assert torch.equal(cut(x, t), cut(-x, t))  # nothing comes through but the cut connection


def test_mistakes_with_the_plain_unet_get_a_sentence() -> None:
    refused("six widths that num_groups 8 divides", BasicUNetBackbone, features=(12, 12, 16, 16, 32, 12))
    refused("not divisible by 16", BasicUNetBackbone(**BASIC), torch.zeros(1, 3, 24, 32), torch.tensor([0]))
