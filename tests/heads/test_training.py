import functools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from monai.transforms import RandRotate90d
from torch import Tensor, nn

from medmdm.components import to_config
from medmdm.data.transforms.augmentation import Augmentation, histology
from medmdm.heads import training as module
from medmdm.heads.consistency import Consistency
from medmdm.heads.end_to_end import FromScratch
from medmdm.heads.task import Reading, Task, random_crop
from medmdm.heads.training import Training
from tests.made import WINDOW, made_example, refused, task


class Probe(nn.Module):
    """Remembers the crops that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.extend(x.clone())
        return self.layer(x)

    def __deepcopy__(self, memo: Any) -> nn.Module:
        other = Probe()
        other.load_state_dict(self.state_dict())
        return other


def run(network: nn.Module, seed: int = 0, **arguments: Any) -> tuple[nn.Module, dict[str, Any]]:
    recipe = Training(**{"averaging": 0.0, "weight_decay": 0.0, "augmentation": None, "foreground": 0.0, **arguments})
    groups = [{"params": list(network.parameters()), "lr": 1e-2}]
    return recipe.run(network, groups, task([made_example(n) for n in range(3)], seed=seed), network.train)


def probe() -> Probe:
    torch.manual_seed(0)
    return Probe()


def test_crops_are_a_function_of_the_seed_and_their_number() -> None:
    turned = Augmentation(RandRotate90d(("image", "label"), prob=0.5))
    ways: list[dict[str, Any]] = [
        {"batch_size": 2, "augmentation": turned}, {"batch_size": 4, "augmentation": turned}, {"batch_size": 2},
        {"batch_size": 2, "augmentation": turned, "seed": 1},
    ]  # fmt: skip
    seen = []
    for way in ways:
        network = probe()
        run(network, steps=8 // way["batch_size"], **way)
        seen.append(torch.stack(network.seen))
    a, b, plain, other = seen
    assert torch.equal(a, b)
    assert a.shape == (8, 3, *WINDOW)
    assert len({x.numpy().tobytes() for x in a}) == 8
    assert not torch.equal(a, other)
    assert not torch.equal(a, plain)


def recorded_rates(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> list[float]:
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", recorded)
        run(probe(), batch_size=1, **arguments)
    return rates


@pytest.mark.parametrize(
    ("whole", "turns", "size"),
    [(False, False, (40, 40)), (True, False, (40, 21)), (True, True, (21, 21))],
)
def test_crops_are_not_padded_where_images_are_read_whole(whole: bool, turns: bool, size: tuple[int, int]) -> None:
    network, examples = probe(), [made_example(0, (50, 33)), made_example(1, (44, 21))]
    recipe = Training(steps=3, batch_size=2, crop_size=(40, 40), augmentation=Augmentation(turns=turns))
    task = Task(examples, 2, Reading((16, 16), whole=whole))
    recipe.run(network, [{"params": list(network.parameters()), "lr": 1e-2}], task, network.train)
    assert {crop.shape[1:] for crop in network.seen} == {size}


def test_unlabelled_images_that_would_make_crops_tiny_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    examples = [made_example(0, (50, 33)), made_example(1, (44, 30))]
    unlabelled = [torch.zeros(3, *size) for size in ((44, 31), (14, 60), (60, 14), (20, 26))]
    consistency = Consistency(ramp=(0, 0))
    for whole, turns, images, size in (
        (False, True, 4, (40, 40)), (True, False, 2, (20, 26)), (True, True, 2, (20, 20)),
    ):  # fmt: skip
        network = probe()
        recipe = Training(steps=2, batch_size=2, crop_size=(40, 40), augmentation=Augmentation(turns=turns))
        task = Task(examples, 2, Reading((16, 16), whole=whole), unlabelled=unlabelled)
        groups = [{"params": list(network.parameters()), "lr": 1e-2}]
        _, evidence = recipe.run(network, groups, task, network.train, consistency)
        assert evidence["unlabelled"]["images"] == images
        assert {crop.shape[1:] for crop in network.seen} == {size}
    assert "2 unlabelled images less than half as large as crops of [30, 30]: not learnt from." in caplog.text


def test_the_learning_rate_rises_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = recorded_rates(monkeypatch, steps=60)
    assert rates[:20] == pytest.approx([1e-2 * k / 20 for k in range(1, 21)])
    assert rates[20:] == pytest.approx([5e-3 * (1 + math.cos(math.pi * k / 40)) for k in range(40)])
    assert recorded_rates(monkeypatch, steps=1) == [1e-2]


def test_the_average_by_hand() -> None:
    network = probe()
    weights = []
    original = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:

        def recorded(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            weights.append(network.layer.weight.detach().clone())
            return out

        patch.setattr(torch.optim.AdamW, "step", recorded)
        averaged, _ = run(network, steps=5, averaging=0.2)
    expected = weights[0]
    for n, weight in enumerate(weights[1:], start=1):
        share = min(0.2, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * weight
    torch.testing.assert_close(averaged.layer.weight, expected)  # type: ignore[union-attr]
    assert not torch.equal(expected, weights[-1])


def test_minutes_become_steps_and_as_many_steps_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))  # a second a step
    network = probe()
    _, timed = run(network, minutes=1.0, batch_size=1)
    assert 55 <= timed["steps"] <= 65
    other = probe()
    run(other, steps=timed["steps"], batch_size=1)
    assert torch.equal(network.layer.weight, other.layer.weight)


def test_rare_classes_are_sought_and_empty_masks_survive() -> None:
    rare, empty = made_example(0, (64, 64)), made_example(1, (64, 64))
    rare.label.zero_()
    rare.label[40:42, 5:7] = 2
    empty.label.zero_()
    cut = functools.partial(random_crop, window=(16, 24))
    assert all((cut(rare, seed=seed, foreground=1.0).label == 2).any() for seed in range(20))
    assert sum(bool((cut(rare, seed=seed).label == 2).any()) for seed in range(20)) < 15
    for seed in range(5):
        assert torch.equal(cut(empty, seed=seed, foreground=1.0).image, cut(empty, seed=seed).image)


def test_turned_crops_stay_aligned_with_their_labels() -> None:
    example = made_example(0, (40, 56), noise=0.0)
    turned = [random_crop(example, (24, 32), seed, (0, 1), Augmentation(turns=True)) for seed in range(16)]
    for crop in turned:
        assert crop.image.shape == (3, 24, 32)
        assert torch.equal(crop.image[0] > 0, crop.label == 0)  # the image says its class
    assert len({crop.image.numpy().tobytes() for crop in turned}) == 16


def test_a_given_augmentation_is_not_changed_by_a_fit() -> None:
    given = Training(steps=2, augmentation=histology())
    before = to_config(given, strict=False)
    given.run(probe(), [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-2}], task([made_example(0)]), lambda: None)
    assert to_config(given, strict=False) == before  # a study's key of the cell is made of it, before and after


@pytest.mark.parametrize("modality", ["histology", "radiology", None])
def test_the_augmentation_follows_the_modality(modality: str | None) -> None:
    example = made_example()
    of = Task([example], 2, Reading(WINDOW), modality=modality)
    found = Training().augmentation_for(of)
    assert (found is None) == (modality is None)
    assert found is None or found.turns == (modality == "histology")
    own = histology()
    assert Training(augmentation=own).augmentation_for(of) == own
    assert Training(augmentation=None).augmentation_for(of) is None


@pytest.mark.parametrize(("modality", "axes"), [("histology", (0, 1)), ("radiology", ()), (None, (0, 1))])
def test_what_has_a_left_and_a_right_is_not_mirrored(modality: str | None, axes: tuple[int, ...]) -> None:
    network = functools.partial(UNet, 2, 3, 2, channels=(8, 16), strides=(2,))
    of = Task([made_example()], 2, Reading(WINDOW), modality=modality)
    assert FromScratch(network, 2, Training(steps=1)).fit(of).model.flips == axes
    assert FromScratch(network, 2, Training(steps=1, flips=[1])).fit(of).model.flips == (1,)


def unlabelled_fit(**arguments: Any) -> tuple[Any, Any]:
    examples = [made_example(n) for n in range(3)]
    images = [made_example(n).image for n in range(10, 14)]
    network = functools.partial(UNet, 2, 3, 2, channels=(8, 16), strides=(2,))
    recipe = Training(steps=12, batch_size=2, learning_rate=5e-3, precision="float32")
    consistency = Consistency(**{"batch_size": 2, "threshold": 0.5, "ramp": (0.3, 0.6), "tolerance": 10.0, **arguments})
    head = FromScratch(network, 2, recipe, consistency)
    of = Task(examples, 2, Reading(WINDOW), unlabelled=images, modality="histology")
    fitted = head.fit(of)
    return fitted.model, fitted.evidence


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.slow
def test_unlabelled_images_change_the_weights_and_the_same_seed_gives_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, evidence = unlabelled_fit()
    again, _ = unlabelled_fit()
    assert torch.equal(weights(model), weights(again))
    without, _ = unlabelled_fit(weight=0.0)
    assert not torch.equal(weights(model), weights(without))
    assert evidence["unlabelled"]["images"] == 4
    assert evidence["unlabelled"]["kept"]
    assert all(0 < share <= 1 for share in evidence["unlabelled"]["share_sure"])
    with caplog.at_level(logging.WARNING):
        kept, evidence = unlabelled_fit(tolerance=-10.0)
    assert "unlabelled images hurt" in caplog.text
    assert not evidence["unlabelled"]["kept"]
    assert torch.equal(weights(kept), weights(without))  # the supervised weights, to the bit


def test_mistakes_get_a_sentence() -> None:
    refused("at least 1", Training, steps=0)
    refused("minutes", Training, minutes=0)
    refused("learning_rate must be above 0", Training, learning_rate=0)
    refused("weight_decay at least 0", Training, weight_decay=-1e-4)
    refused("averaging must lie in", Training, averaging=1.0)
    refused("foreground must lie in", Training, foreground=1.5)
    refused("precision", Training, precision="half")
    refused("flips must be numbers of axes", Training, flips="both")
    refused("no augmentation 'histologie' .did you mean 'histology'", Training, augmentation="histologie")
    refused("lower the learning rate", run, nn.Sequential(nn.Conv2d(3, 2, 1), Exploding()), steps=3)


class Exploding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * np.inf
