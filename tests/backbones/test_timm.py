import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from medmdm.backbones import FeatureExtractor, TimmBackbone
from medmdm.backbones.feature_maps import stack
from medmdm.components import instantiate, to_config
from tests.made import refused
from tests.timm_stand_in import FETCHED, Pyramid, timm

__all__ = ["timm"]
pytestmark = pytest.mark.usefixtures("timm")
TIME = torch.zeros(2)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_stages_are_blocks_of_normalised_images() -> None:
    backbone = TimmBackbone("pyramid").eval()
    assert backbone.feature_info == [
        {"block": 0, "channels": 4, "reduction": 2},
        {"block": 1, "channels": 6, "reduction": 4},
        {"block": 2, "channels": 8, "reduction": 8},
    ]
    assert (backbone.reduction, backbone.usual_blocks, backbone.restores) == (8, [0, 1, 2], False)
    x = images(2, 3, 16, 24)
    found = backbone.features(x, TIME, [2, 0])
    seen = (x + 1) / 2
    for channel, (mean, std) in enumerate([(0.2, 0.5), (0.4, 0.25), (0.9, 0.125)]):
        seen[:, channel] = (seen[:, channel] - mean) / std
    expected: Any = backbone.network(seen)
    torch.testing.assert_close(found, [expected[2], expected[0]])
    assert torch.equal(backbone(x, TIME), x)


@pytest.mark.parametrize("size", [(16, 24), (8, 8)])  # of 8 x 8 pixels the first map is 4 x 4 x 4
def test_channels_last_are_moved(size: tuple[int, int]) -> None:
    last, first = TimmBackbone("swin_stand_in").eval(), TimmBackbone("pyramid").eval()
    last.load_state_dict(first.state_dict())
    x = images(2, 3, *size)
    torch.testing.assert_close(last.features(x, TIME, [0, 2]), first.features(x, TIME, [0, 2]))


@pytest.mark.parametrize(("size", "padded"), [((30, 17), (42, 28)), ((14, 28), (14, 28)), ((5, 3), (14, 14))])
def test_a_transformer_reads_images_of_any_size(size: tuple[int, int], padded: tuple[int, int]) -> None:
    extractor = FeatureExtractor(TimmBackbone("vit_stand_in_patch14"), [1], masking="none")
    (found,) = extractor(images(1, 3, *size))
    assert extractor.padded_size(size) == padded
    assert found.shape == (1, 5, padded[0] // 14, padded[1] // 14)
    assert stack([found], padded).shape == (1, 5, *padded)


def test_stages_and_arguments_are_chosen() -> None:
    backbone = TimmBackbone("pyramid", out_indices=[1])
    assert backbone.feature_info == [{"block": 0, "channels": 6, "reduction": 4}]
    assert backbone.reduction == 4
    network: Any = TimmBackbone("vit_stand_in_patch14", arguments={"init_values": 0.5}).network
    assert (network.scale, network.dynamic) == (0.5, True)


def test_images_of_other_channels() -> None:
    backbone = TimmBackbone("pyramid", in_channels=1)
    assert backbone.config["mean"] == [0.5]
    assert backbone.config["std"] == pytest.approx([0.875 / 3])
    assert TimmBackbone("pyramid", 2, mean=[0.1, 0.2], std=[1, 2]).config["mean"] == [0.1, 0.2]
    refused("mean has 3 numbers for 2 channels", TimmBackbone, "pyramid", 2, mean=[0, 0, 0])
    refused("expected numbers above 0", TimmBackbone, "pyramid", std=[1, 0, 1])
    refused("in_channels is 0", TimmBackbone, "pyramid", 0)


def test_is_made_again_from_its_config_without_fetching() -> None:
    backbone = TimmBackbone("pyramid", out_indices=[0, 2]).eval()
    again: Any = instantiate(to_config(backbone))
    assert isinstance(again.network, Pyramid)
    again.load_state_dict(backbone.state_dict())
    assert again.config == backbone.config
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(again.eval().features(x, TIME, [0, 1]), backbone.features(x, TIME, [0, 1]))
    assert FETCHED == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": "hf-hub:someone/net"}, "without an address or a path"),
        ({"model": "local-dir:/etc"}, "without an address or a path"),
        ({"model": "../pyramid"}, "without an address or a path"),
        ({"model": ["pyramid"]}, "without an address or a path"),
        ({"model": "pyramid", "arguments": {"pretrained": True}}, "no 'pretrained'"),
        ({"model": "pyramid", "arguments": {"pretrained_cfg": {"url": "x"}}}, "no 'pretrained_cfg'"),
        ({"model": "pyramid", "arguments": {"checkpoint_path": "/x"}}, "no 'checkpoint_path'"),
        ({"model": "pyramid", "arguments": {"cache_dir": "/x"}}, "no 'cache_dir'"),
        ({"model": "pyramid", "arguments": {"act_layer": "file:/x"}}, "expected the name of a layer"),
        ({"model": "pyramid", "weights": "/etc/passwd"}, "no argument 'weights'"),
    ],
)
def test_a_weights_file_cannot_reach_out(arguments: dict[str, Any], sentence: str) -> None:
    refused(sentence, instantiate, {"_target_": "medmdm.backbones.TimmBackbone", **arguments})
    assert FETCHED == []


def test_refuses(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(r"cannot make 'pyramide'.*did you mean 'pyramid'.*Unknown model", TimmBackbone, "pyramide")
    refused("cannot make 'pyramid'.*unexpected keyword", TimmBackbone, "pyramid", arguments={"depth": 3})
    refused("cannot make 'pyramid'.*index", TimmBackbone, "pyramid", out_indices=[7])
    backbone = TimmBackbone("pyramid")
    refused("there is no block 3", backbone.features, images(2, 3, 8, 8), TIME, [3])
    refused(r"expected \[batch, 3, height, width\]", backbone.features, images(2, 1, 8, 8), TIME, [0])
    refused(r"\(8, 12\) is not divisible by 8", backbone.features, images(2, 3, 8, 12), TIME, [0])
    refused("stage 2 of liar gives a map", TimmBackbone("liar").features, images(2, 3, 8, 8), TIME, [2])
    fixed = TimmBackbone("vit_stand_in_patch14", arguments={"dynamic_img_size": False})
    refused("cannot read 14x42 pixels: Input width", fixed.features, images(2, 3, 14, 42), TIME, [0])
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(r"pip install 'medmdm\[timm\]'", TimmBackbone, "pyramid")
