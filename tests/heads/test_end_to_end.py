import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, SwinUNETR, UNet
from torch import Tensor, nn

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.files import weights_hash
from medmdm.heads.end_to_end import FineTuning, FromScratch
from medmdm.heads.map_losses import MapLosses
from medmdm.heads.slice_by_slice import task_of_slices
from medmdm.heads.task import Task
from medmdm.heads.training import Training
from medmdm.labels import IGNORE
from tests.made import dice, made_example, made_extractor, refused, task

SWIN: dict[str, Any] = {"depths": (1,) * 4, "num_heads": (1,) * 4}
NETWORKS: dict[str, Any] = {
    "UNet": functools.partial(UNet, 2, 3, 2, channels=(8, 16), strides=(2,)),
    "AttentionUnet": functools.partial(AttentionUnet, 2, 3, 2, channels=(8, 16), strides=(2,)),
    "BasicUNetPlusPlus": functools.partial(BasicUNetPlusPlus, 2, 3, 2, features=(8, 8, 8, 8, 8, 8)),
    "SwinUNETR": functools.partial(SwinUNETR, 3, 2, spatial_dims=2, feature_size=12, **SWIN),
}


def support(count: int = 3, **arguments: Any) -> Task:
    return task([made_example(seed) for seed in range(count)], **arguments)


def training(**arguments: Any) -> Training:
    return Training(**{"steps": 4, "batch_size": 2, **arguments})


def tuning(parts: str = "all", backbone_rate: float = 1.0, **arguments: Any) -> FineTuning:
    return FineTuning(training(**arguments), parts=parts, backbone_rate=backbone_rate)


def scratch(network: Any, multiple: int = 32, **arguments: Any) -> FromScratch:
    return FromScratch(network, multiple, training(**arguments))


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    state = after.state_dict()
    return {".".join(name.split(".")[:2]) for name, value in before.items() if not torch.equal(value, state[name])}


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.slow
def test_fine_tuning_trains_a_copy_of_the_whole_backbone(cached: bool) -> None:
    extractor = made_extractor(blocks=[0, 1])  # of 0 to 3: which blocks frozen features come from does not matter
    before = bits(extractor.backbone)
    fitted = tuning().fit(support(), CachedExtractor(extractor) if cached else extractor)
    assert changed(before, extractor.backbone) == set()
    assert not any(p.requires_grad for p in extractor.parameters())
    tuned = fitted.model.extractor
    assert isinstance(tuned, FeatureExtractor)
    how = {"blocks": [3], "timesteps": [0], "masking": "none", "normalize": "none"}
    assert {key: tuned.config[key] for key in how} == how
    moved = changed(before, tuned.backbone)
    assert {"input_blocks.0", "middle_block.1", "output_blocks.0", "output_blocks.3"} <= moved
    assert not {"out.0", "out.2"} & moved  # the reconstruction's own layers
    assert not fitted.model.training
    assert not any(p.requires_grad for p in fitted.model.parameters())


def test_fine_tuning_of_the_decoder_leaves_the_encoders_bits() -> None:
    extractor = made_extractor()
    before = bits(extractor.backbone)
    fitted = tuning(parts="decoder").fit(support(), extractor)
    assert changed(before, fitted.model.extractor.backbone) == {f"output_blocks.{n}" for n in range(4)}


def test_the_backbones_rate_is_a_share_of_the_heads() -> None:
    extractor = made_extractor()
    fitted = tuning(backbone_rate=0.0, weight_decay=0.0).fit(support(), extractor)
    assert weights_hash(fitted.model.extractor.backbone.state_dict()) == weights_hash(extractor.backbone.state_dict())


@pytest.mark.slow
def test_fine_tuning_learns() -> None:
    fitted = tuning(steps=40, learning_rate=5e-3, averaging=0.8).fit(support(), made_extractor())
    test = made_example(9, (41, 30))
    out = fitted.model(test.image[None])
    assert out.shape == (1, 2, 41, 30)
    assert dice(out, test.label) > 0.9
    losses = fitted.evidence["losses"]
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_networks_from_scratch(name: str) -> None:
    def fit(seed: int) -> Any:
        return scratch(NETWORKS[name], steps=2).fit(support(seed=seed, window=(64, 64)))

    fitted = fit(1)
    assert fitted.model(made_example(9, (41, 30)).image[None]).shape == (1, 2, 41, 30)
    assert fitted.evidence["parameters"] == sum(p.numel() for p in NETWORKS[name]().parameters())
    torch.rand(5)  # what else draws random numbers does not matter
    again, other = fit(1), fit(2)
    assert changed(bits(fitted.model), again.model) == set()
    assert changed(bits(fitted.model), other.model)
    assert not fitted.model.training
    assert not any(p.requires_grad for p in fitted.model.parameters())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.slow
def test_a_network_from_scratch_learns(classes: int) -> None:
    network = functools.partial(UNet, 2, 3, classes, channels=(8, 16), strides=(2,))
    examples = [made_example(seed, classes=classes, noise=0.1) for seed in range(3)]
    fitted = scratch(network, 2, learning_rate=1e-2, steps=50, averaging=0.8).fit(task(examples, classes))
    test = made_example(9, classes=classes, noise=0.1)
    out = fitted.model(test.image[None])
    assert all(dice(out, test.label, number) > 0.9 for number in range(classes))
    assert len(fitted.evidence["losses"]) == 20  # means of stretches of 50 steps


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_networks_trained_one_by_one() -> None:
    network, image = NETWORKS["UNet"], made_example(9, (41, 30)).image[None]
    whole = FromScratch(network, 32, training(flips=(1,)), members=2).fit(support(seed=3))
    single = FromScratch(network, 32, training(flips=(1,)))
    each = [single.fit(support(seed=seed)).model for seed in (3, 3 + 7919)]
    assert changed(bits(each[0].network), each[1].network)
    expected = torch.stack([model(image).softmax(1) for model in each]).mean(0)
    torch.testing.assert_close(whole.model(image).softmax(1), expected)
    assert len(list(whole.model.voices(image))) == 4
    assert whole.model.with_uncertainty(image)[:, -1].max() > each[0].with_uncertainty(image)[:, -1].mean()
    assert whole.evidence["parameters"] == 2 * single.fit(support()).evidence["parameters"]
    assert whole.evidence["losses"] != whole.evidence["members"][0]["losses"]
    refused("members must be at least 1", FromScratch, network, members=0)


@pytest.mark.slow
def test_networks_of_several_axes_are_those_of_their_slices_and_are_averaged() -> None:
    network = functools.partial(UNet, 2, 3, 2, channels=(4, 8), strides=(2,))
    whole, other = (made_example(seed, (6, 16, 12)) for seed in (0, 1))
    volumes = task([whole], window=(6, 10, 8), whole=True)
    refused("axes are of volumes", FromScratch(network, 2, training(), axes=["axial"]).fit, support())
    recipe = training(flips=(1,))
    fitted = FromScratch(network, 2, recipe, members=2, axes=["sagittal", "axial"]).fit(volumes)
    expected: Tensor = torch.zeros(())
    for axis, place in (("sagittal", 2), ("axial", 0)):
        alone = FromScratch(network, 2, recipe, members=2).fit(task_of_slices(volumes, axis)).model
        read = [alone(one[None]).softmax(1)[0] for one in other.image.unbind(1 + place)]
        expected = expected + torch.stack(read, 1 + place) / 2
    torch.testing.assert_close(fitted.model(other.image[None]).softmax(1)[0], expected)
    assert len(fitted.evidence["members"]) == 3
    assert len(list(fitted.model.voices(other.image[None]))) == 8  # two axes, two members, two mirror images
    assert fitted.model.with_uncertainty(other.image[None]).shape == (1, 4, 6, 16, 12)


def test_a_network_for_other_images_is_refused_before_it_is_trained() -> None:
    three_dimensions = functools.partial(UNet, 3, 3, 2, channels=(4, 8), strides=(2,))
    refused(r"The network cannot read a crop of \[3, 32, 32\] .*spatial_dims", scratch(three_dimensions).fit, support())
    one_channel = functools.partial(UNet, 2, 1, 2, channels=(4, 8), strides=(2,))
    refused(r"The network cannot read a crop of \[3, 32, 32\] .*channels", scratch(one_channel).fit, support())


def test_axes_that_cannot_be_are_refused() -> None:
    network = NETWORKS["UNet"]
    refused("axes must be a list of axes", FromScratch, network, axes="axial")
    refused("the slice axis is 'top'", FromScratch, network, axes=["top"])
    refused("axes names one twice: axial, axial", FromScratch, network, axes=["axial", "axial"])
    volumes = task([made_example(0, (6, 16, 12))], window=(6, 10, 8))
    head = FromScratch(network, training=training(crop_size=(4, 4, 4)), axes=["axial"])
    refused(r"crop_size must be 2 whole numbers.*got \[4, 4, 4\]", head.fit, volumes)
    refused(r"crop_size must be 3 whole numbers", scratch(network, crop_size=(4, 4)).fit, volumes)
    refused("axes are for classes alone", head.fit, volumes, None, MapLosses(("distance",)))


@pytest.mark.slow
def test_volumes_and_scribbles() -> None:
    examples = [made_example(seed, (8, 16, 12)) for seed in range(2)]
    examples[0].label[2:] = IGNORE  # many crops hold nothing that is known
    network = functools.partial(UNet, 3, 3, 2, channels=(4, 8), strides=(2,))
    fitted = scratch(network, 2, steps=6, batch_size=1).fit(task(examples, window=(4, 8, 8)))
    assert np.isfinite(fitted.evidence["losses"]).all()
    fitted = tuning().fit(task(examples, window=(4, 8, 8)), made_extractor(network={"spatial_dims": 3}))
    assert fitted.model(examples[0].image[None]).shape == (1, 2, 8, 16, 12)


def test_from_json() -> None:
    network = {"_target_": "UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    recipe = {"_target_": "medmdm.heads.Training", "steps": 1}
    turned = {"_target_": "RandRotate90d", "keys": ["image", "label"], "prob": 0.5}
    weighted = {"_target_": "medmdm.heads.CrossEntropyDiceLoss", "class_weights": [1, 2]}
    augmentation = {"_target_": "medmdm.data.Augmentation", "spatial": turned}
    config = {
        "scratch": {
            "_target_": "medmdm.heads.FromScratch",
            "network": {**network, "channels": [4, 8], "strides": [2]},
            "training": {**recipe, "loss_function": weighted, "augmentation": augmentation},
            "unlabelled": {"_target_": "medmdm.heads.Consistency", "batch_size": 1},
        },
        "tuned": {
            "_target_": "medmdm.heads.FineTuning",
            "training": {**recipe, "augmentation": "radiology"},
            "parts": "decoder",
        },
    }
    parser = ConfigParser(json.loads(json.dumps(config)))
    for name in config:
        fitted = parser.get_parsed_content(name).fit(support(), made_extractor())
        assert fitted.model(made_example(9).image[None]).shape == (1, 2, 32, 48)


class Headless(nn.Module):
    reduction = 1
    feature_info = [{"block": 0, "channels": 3, "reduction": 1}]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def features(self, x: Tensor, timesteps: Tensor, blocks: list[int]) -> list[Tensor]:
        return [self.layer(x)]


def test_mistakes_get_a_sentence() -> None:
    refused("'encoder'", FineTuning, parts="encoder")
    headless = FeatureExtractor(Headless(), [0], [0], masking="none")
    refused("no decoder of a known name", tuning(parts="decoder").fit, support(), headless)
    refused("gives 2 classes, but the data has 3", scratch(NETWORKS["UNet"], steps=1).fit, support(classes=3))
