import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, SwinUNETR, UNet
from monai.transforms import RandRotate90d
from torch import Tensor, nn

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.errors import UserError
from medmdm.files import weights_hash
from medmdm.heads.end_to_end import FineTuning, FromScratch
from medmdm.heads.pixel_classifier import PixelClassifierHead
from medmdm.heads.task import Task
from medmdm.labels import IGNORE
from tests.made import WINDOW, dice, made_example, made_extractor, refused, task

SWIN: dict[str, Any] = {"depths": (1,) * 4, "num_heads": (1,) * 4}
NETWORKS: dict[str, Any] = {
    "UNet": functools.partial(UNet, 2, 3, 2, channels=(8, 16), strides=(2,)),
    "AttentionUnet": functools.partial(AttentionUnet, 2, 3, 2, channels=(8, 16), strides=(2,)),
    "BasicUNetPlusPlus": functools.partial(BasicUNetPlusPlus, 2, 3, 2, features=(8, 8, 8, 8, 8, 8)),
    "SwinUNETR": functools.partial(SwinUNETR, 3, 2, spatial_dims=2, feature_size=12, **SWIN),
}


def support(count: int = 3, **arguments: Any) -> Task:
    return task([made_example(seed) for seed in range(count)], **arguments)


def tuning(**arguments: Any) -> FineTuning:
    head = PixelClassifierHead(members=1, hidden=(16, 8), max_epochs=4, pixels=200)
    return FineTuning(**{"head": head, "steps": 4, "batch_size": 2, **arguments})


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    state = after.state_dict()
    return {".".join(name.split(".")[:2]) for name, value in before.items() if not torch.equal(value, state[name])}


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
def test_fine_tuning_changes_a_copy_as_far_as_features_are_read(cached: bool) -> None:
    extractor = made_extractor(blocks=[0, 1])  # of 0 to 3
    before = bits(extractor.backbone)
    fitted = tuning().fit(support(), CachedExtractor(extractor) if cached else extractor)
    assert changed(before, extractor.backbone) == set()
    assert not any(p.requires_grad for p in extractor.parameters())
    tuned = fitted.model.extractor
    assert isinstance(tuned, FeatureExtractor)
    assert tuned.config == extractor.config
    assert {"time_embed.0", "input_blocks.0", "middle_block.1", "output_blocks.0", "output_blocks.1"} <= changed(
        before, tuned.backbone
    )
    assert not {"output_blocks.2", "output_blocks.3", "out.0", "out.2"} & changed(before, tuned.backbone)
    assert not fitted.model.training
    assert not any(p.requires_grad for p in fitted.model.parameters())


def test_fine_tuning_of_the_decoder_leaves_the_encoders_bits() -> None:
    extractor = made_extractor(blocks=[1, 2])
    before = bits(extractor.backbone)
    fitted = tuning(parts="decoder").fit(support(), extractor)
    assert changed(before, fitted.model.extractor.backbone) == {f"output_blocks.{n}" for n in range(3)}


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_trained_head(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = made_extractor()
    fine = tuning(learning_rate=0.0, backbone_learning_rate=0.0, weight_decay=0.0)
    first = fine.head.fit(support(), extractor).model
    fitted = fine.fit(support(), extractor)
    for (name, mine), other in zip(fitted.model.head.named_parameters(), first.head.parameters(), strict=True):
        assert torch.equal(mine, other), name
    assert weights_hash(fitted.model.extractor.backbone.state_dict()) == weights_hash(extractor.backbone.state_dict())


@pytest.mark.slow
def test_fine_tuning_learns() -> None:
    fitted = tuning(steps=12, backbone_learning_rate=1e-3, learning_rate=1e-2).fit(support(), made_extractor())
    test = made_example(9, (41, 30))
    out = fitted.model(test.image[None])
    assert out.shape == (1, 2, 41, 30)
    assert dice(out, test.label) > 0.9
    losses = fitted.evidence["losses"]
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_from_scratch(name: str) -> None:
    def fit(seed: int) -> Any:
        return FromScratch(NETWORKS[name], steps=2, batch_size=2).fit(support(seed=seed, window=(64, 64)))

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
def test_a_network_from_scratch_learns(classes: int) -> None:
    network = functools.partial(UNet, 2, 3, classes, channels=(8, 16), strides=(2,))
    examples = [made_example(seed, classes=classes, noise=0.1) for seed in range(3)]
    fitted = FromScratch(network, multiple=2, learning_rate=1e-2, steps=50, batch_size=2).fit(task(examples, classes))
    test = made_example(9, classes=classes, noise=0.1)
    out = fitted.model(test.image[None])
    assert all(dice(out, test.label, number) > 0.9 for number in range(classes))
    assert len(fitted.evidence["losses"]) == 20  # means of stretches of 50 steps


@pytest.mark.slow
def test_volumes_and_scribbles() -> None:
    examples = [made_example(seed, (8, 16, 12)) for seed in range(2)]
    examples[0].label[2:] = IGNORE  # many crops hold nothing that is known
    network = functools.partial(UNet, 3, 3, 2, channels=(4, 8), strides=(2,))
    fitted = FromScratch(network, multiple=2, steps=6, batch_size=1).fit(task(examples, window=(4, 8, 8)))
    assert np.isfinite(fitted.evidence["losses"]).all()
    fitted = tuning().fit(task(examples, window=(4, 8, 8)), made_extractor(network={"spatial_dims": 3}))
    assert fitted.model(examples[0].image[None]).shape == (1, 2, 8, 16, 12)


class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.extend(x.clone())
        return self.layer(x)


def run(network: Probe, steps: int, batch_size: int, transform: Any = None, seed: int = 0) -> list[float]:
    torch.manual_seed(0)
    groups = [{"params": list(network.parameters()), "lr": 1e-2}]
    trainer = FromScratch(lambda: network, steps=steps, batch_size=batch_size, weight_decay=0.0, transform=transform)
    return trainer.train(network, groups, support(seed=seed), network.train)


def test_crops_are_a_function_of_the_seed_and_their_number() -> None:
    probes = [Probe() for _ in range(4)]
    transform = RandRotate90d(("image", "label"), prob=0.5)
    for probe, batch, seed in zip(probes, (2, 4, 2, 2), (0, 0, 0, 1), strict=True):
        run(probe, 8 // batch, batch, transform if probe is not probes[2] else None, seed)
    a, b, plain, other = (torch.stack(probe.seen) for probe in probes)
    assert torch.equal(a, b)
    assert a.shape == (8, 3, *WINDOW)
    assert len({x.numpy().tobytes() for x in a}) == 8
    assert not torch.equal(a, other)
    assert not torch.equal(a, plain)


def test_the_learning_rate_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    losses = run(Probe(), 30, 1)
    assert rates == pytest.approx([1e-2 * (1 - k / 30) ** 0.9 for k in range(30)])
    assert len(losses) == 20


def test_from_json() -> None:
    network = {"_target_": "UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    head = {"members": 1, "hidden": [4], "max_epochs": 1, "pixels": 10}
    config = {
        "scratch": {
            "_target_": "medmdm.heads.FromScratch",
            "network": {**network, "channels": [4, 8], "strides": [2]},
            "steps": 1,
            "loss_function": {"_target_": "medmdm.heads.CrossEntropyDiceLoss", "class_weights": [1, 2]},
            "transform": {"_target_": "RandRotate90d", "keys": ["image", "label"], "prob": 0.5},
        },
        "tuned": {
            "_target_": "medmdm.heads.FineTuning",
            "head": {"_target_": "medmdm.heads.PixelClassifierHead", **head},
            "parts": "decoder",
            "steps": 1,
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
    refused("head#members is 10", FineTuning, PixelClassifierHead())
    for make in (FineTuning, functools.partial(FromScratch, NETWORKS["UNet"])):
        with pytest.raises(UserError, match="at least 1"):
            make(steps=0)  # type: ignore[operator]
    with pytest.raises(UserError, match="no decoder of a known name"):
        tuning(parts="decoder").fit(support(), FeatureExtractor(Headless(), [0], [0], masking="none"))
    refused("lower the learning rate", FromScratch(NETWORKS["UNet"], learning_rate=1e30, steps=9).fit, support())
    refused("gives 2 classes, but the data has 3", FromScratch(NETWORKS["UNet"], steps=1).fit, support(classes=3))
