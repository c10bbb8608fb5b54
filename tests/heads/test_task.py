import functools
import json
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss, TverskyLoss
from monai.networks.nets import UNet
from monai.transforms import RandGaussianNoised, RandRotate90d
from torch import Tensor

from medmdm.components import instantiate, to_config
from medmdm.data.reading import Example
from medmdm.data.transforms.augmentation import Augmentation
from medmdm.heads import (
    ClosedFormHead,
    Consistency,
    FineTuning,
    FromScratch,
    PixelClassifierHead,
    Reading,
    Training,
)  # fmt: skip
from medmdm.heads.task import random_crop, views
from medmdm.labels import IGNORE
from tests.made import made_example, made_extractor, refused, task

NETWORK = functools.partial(UNet, spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8), strides=(2,))
ROTATION = functools.partial(RandRotate90d, keys=["image", "label"], prob=0.5)
HEADS: list[Any] = [
    ClosedFormHead(), ClosedFormHead("ridge", [1e-2], [{"blocks": [1], "timesteps": [50]}, {"blocks": [0]}], False, 3),
    PixelClassifierHead(), PixelClassifierHead(3, (16, 8), 1e-2, 9, 8, 7, 6, 50, 4, [1, 2], 0.5, "vote"), FineTuning(),
    FineTuning(Training(steps=3, flips=(1,), augmentation="radiology"), Consistency(ramp=(0, 1)), "decoder", 0.1, 9),
    FromScratch(NETWORK),
    FromScratch(NETWORK, 2, Training(loss_function=TverskyLoss(alpha=0.3), augmentation=Augmentation(ROTATION))),
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_a_head_is_made_again_from_its_config(head: Any) -> None:
    config = json.loads(json.dumps(to_config(head)))
    again = instantiate(config, trust=True)
    assert to_config(again) == config
    assert type(again) is type(head)
    if not isinstance(head, FromScratch):  # functions are not compared
        assert again == head


class Doubled:
    """Its attribute is not the argument of its name."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = 2 * factor


def test_what_does_not_keep_its_arguments_is_refused() -> None:
    whole = to_config(Training(loss_function=TverskyLoss(alpha=0.3)))["loss_function"]
    assert (whole["_target_"], whole["alpha"], whole["beta"]) == ("monai.losses.TverskyLoss", 0.3, 0.5)
    for part in (
        Training(augmentation=Augmentation(intensity=RandGaussianNoised(["image"]))),
        Training(loss_function=DiceCELoss()),
        FromScratch(lambda: None),  # type: ignore[arg-type, return-value]
        FromScratch(UNet(2, 3, 2, (4, 8), (2,))),
        Training(loss_function=Doubled()),
    ):
        refused('"_mode_": "callable"', to_config, part)


@pytest.mark.parametrize("reading", [Reading((16, 24), overlap=0.5), Reading((16, 24), whole=True)], ids=str)
def test_a_reading_has_an_inferer_and_a_config(reading: Reading) -> None:
    assert isinstance(reading.inferer(7), SimpleInferer if reading.whole else SlidingWindowInferer)
    assert instantiate(to_config(reading), trust=True) == reading


@pytest.mark.parametrize("head", [
    ClosedFormHead(choices=[{"blocks": (0, 1)}, {"timesteps": [50]}]),
    PixelClassifierHead(2, (4,), max_epochs=2),
    FineTuning(Training(steps=2, batch_size=2)),
    FromScratch(NETWORK, 32, Training(steps=2, batch_size=2)),
], ids=lambda head: type(head).__name__)  # fmt: skip
def test_evidence_is_json(head: Any) -> None:
    evidence = head.fit(task([made_example(0), made_example(1)]), made_extractor()).evidence
    assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence


def test_a_task_is_checked_before_anything_is_fitted() -> None:
    example = made_example(classes=3)
    for examples, classes, window, words in (
        ([], 2, (32, 32), "training list is empty"),
        ([made_example()], 1, (32, 32), "two classes or more"),
        ([example], 3, (8, 8, 8), "window must be 2 whole numbers"),
        ([example], 2, (32, 32), "the label of made_0 .*2.*the classes are 0, 1"),
    ):
        refused(words, task, examples, classes, window=window)
    example.label[example.label == 2] = IGNORE
    task([example], 2)


def numbered(*shape: int, channels: int = 1) -> Example:
    """A label (and image) that gives every pixel a number, so that crops say where they come from."""
    count = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return Example(count.float().expand(channels, *shape) + 1000, count, "numbered", "volume")


def aligned(view: Example) -> bool:
    known = view.label != IGNORE
    return torch.equal(view.image[0][known] - 1000, view.label[known].float())


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.75])
@pytest.mark.parametrize("shape", [(40, 56), (13, 40), (7, 5), (16, 24), (1, 90)], ids=str)
def test_windows_are_those_of_monais_sliding_window(shape: tuple[int, int], overlap: float) -> None:
    window = (16, 24)
    example = numbered(*shape)
    mine = views(example, "windows", window, overlap)
    seen: list[Tensor] = []

    def predictor(batch: Tensor) -> Tensor:
        seen.extend(batch)
        return batch

    padded = views(example, "windows", [max(a, b) for a, b in zip(shape, window, strict=True)])[0].image
    SlidingWindowInferer(window, 4, overlap)(padded[None], predictor)
    assert len(mine) == len(seen)
    assert {tuple(v.image.flatten().tolist()) for v in mine} == {tuple(w.flatten().tolist()) for w in seen}
    labels = torch.cat([view.label.flatten() for view in mine])
    assert set(range(example.label.numel())) <= set(labels.tolist()) | {IGNORE}
    assert all(aligned(view) for view in mine)
    assert all((view.case, view.group) == ("numbered", "volume") for view in mine)


def test_small_images_are_mirrored_and_what_is_added_is_ignored() -> None:
    example = Example(torch.arange(6.0).reshape(1, 2, 3), torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.uint8))
    (view,) = views(example, "windows", (4, 4))
    assert view.image[0].tolist() == [[3, 4, 5, 4], [0, 1, 2, 1], [3, 4, 5, 4], [0, 1, 2, 1]]
    i = IGNORE
    assert view.label.tolist() == [[i] * 4, [0, 1, 0, i], [1, 1, 0, i], [i] * 4]
    assert view.label.dtype == torch.uint8


def test_volumes_and_single_pixels() -> None:
    assert len(views(numbered(8, 12, 10), "windows", (8, 6, 10), 0.0)) == 2
    crop = random_crop(numbered(8, 12, 10), (4, 5, 16), seed=1, flips=(0, 1, 2))
    assert crop.image.shape == (1, 4, 5, 16)
    assert crop.label.shape == (4, 5, 16)
    assert aligned(crop)
    (view,) = views(Example(torch.ones(3, 1, 1), torch.ones(1, 1).long()), "windows", (4, 6))
    assert view.image.shape == (3, 4, 6)
    assert int((view.label != IGNORE).sum()) == 1


def test_whole_images_are_left_alone() -> None:
    example = numbered(5, 7)
    (view,) = views(example, "whole", (4, 4))
    assert view is example


def test_crops_are_fixed_by_seed_and_case() -> None:
    example = numbered(40, 40, channels=3)

    def draw(e: Example = example, seed: int = 0, count: int = 5) -> list[list[int]]:
        crops = views(e, "crops", (8, 12), per_image=count, seed=seed)
        assert all(crop.image.shape == (3, 8, 12) and aligned(crop) for crop in crops)
        return [crop.label.flatten().tolist() for crop in crops]

    crops = draw(count=40)
    assert draw() == crops[:5]
    assert len({tuple(crop) for crop in crops}) > 35
    assert draw(seed=1) != crops[:5]
    assert draw(Example(example.image, example.label, "another")) != crops[:5]
    mirrored = sum(crop[0] > crop[1] for crop in crops)
    assert 8 < mirrored < 32
    assert all(abs(crop[12] - crop[0]) == 40 and crop[12] > crop[0] for crop in crops)  # left-right only


def test_further_transforms_move_image_and_label_together() -> None:
    transform = Augmentation(RandRotate90d(("image", "label"), prob=1.0))
    crops = [random_crop(numbered(30, 30), (12, 12), seed, (0, 1), transform) for seed in range(12)]
    assert all(aligned(crop) for crop in crops)
    again = [random_crop(numbered(30, 30), (12, 12), seed, (0, 1), transform) for seed in range(12)]
    assert all(torch.equal(a.label, b.label) for a, b in zip(crops, again, strict=True))
    steps = {int(crop.label[0, 1] - crop.label[0, 0]) for crop in crops}
    assert {1, -1} & steps
    assert {30, -30} & steps  # rotated


def test_metadata_does_not_travel_into_networks() -> None:
    example = Example(MetaTensor(torch.zeros(1, 9, 9)), MetaTensor(torch.zeros(9, 9).long()))
    for view in [example, random_crop(example, (4, 4), 0), *views(example, "windows", (4, 4))]:
        assert type(view.image) is Tensor
        assert type(view.label) is Tensor


def test_unknown_views_are_refused() -> None:
    refused("'tiles'", views, numbered(4, 4), "tiles")
