"""How heads are described, and how images are read."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss, TverskyLoss
from monai.networks.nets import UNet
from monai.transforms import RandGaussianNoised, RandRotate90d

from medmdm.components import instantiate, to_config
from medmdm.errors import UserError
from medmdm.heads import ClosedFormHead, FineTuning, FromScratch, PixelClassifierHead, Reading
from medmdm.labels import IGNORE
from tests.made import made_example, made_extractor, task

NETWORK = functools.partial(UNet, spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8), strides=(2,))
ROTATION = functools.partial(RandRotate90d, keys=["image", "label"], prob=0.5)
HEADS: list[Any] = [
    ClosedFormHead(),
    ClosedFormHead("ridge", [1e-2], [{"blocks": [1], "timesteps": [50]}, {"blocks": [0]}], False, 3),
    PixelClassifierHead(),
    PixelClassifierHead(3, (16, 8), 1e-2, 9, 8, 7, 6, 50, 4, [1, 2], 0.5, "vote"),
    FineTuning(),
    FineTuning(PixelClassifierHead(members=1), "decoder", 1e-5, learning_rate=1e-2, steps=3, flips=(0, 1)),
    FromScratch(NETWORK),
    FromScratch(NETWORK, 2, loss_function=TverskyLoss(alpha=0.3), transform=ROTATION, weight_decay=0.0),
]


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
    whole = to_config(FromScratch(NETWORK, loss_function=TverskyLoss(alpha=0.3)))["loss_function"]
    assert (whole["_target_"], whole["alpha"], whole["beta"]) == ("monai.losses.TverskyLoss", 0.3, 0.5)
    for part in (
        {"transform": RandGaussianNoised(["image"])},
        {"loss_function": DiceCELoss()},
        {"network": lambda: None},
        {"network": UNet(2, 3, 2, (4, 8), (2,))},
        {"loss_function": Doubled()},
    ):
        with pytest.raises(UserError, match='"_mode_": "callable"'):
            to_config(FromScratch(**{"network": NETWORK, **part}))


@pytest.mark.parametrize("reading", [Reading((16, 24), overlap=0.5), Reading((16, 24), whole=True)], ids=str)
def test_a_reading_has_an_inferer_and_a_config(reading: Reading) -> None:
    assert isinstance(reading.inferer(7), SimpleInferer if reading.whole else SlidingWindowInferer)
    assert instantiate(to_config(reading), trust=True) == reading


@pytest.mark.parametrize(
    "head",
    [
        ClosedFormHead(choices=[{"blocks": (0, 1)}, {"timesteps": [50]}]),
        PixelClassifierHead(2, (4,), max_epochs=2),
        FineTuning(PixelClassifierHead(1, (4,), max_epochs=2), steps=2, batch_size=2),
        FromScratch(NETWORK, steps=2, batch_size=2),
    ],
    ids=lambda head: type(head).__name__,
)
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
        with pytest.raises(UserError, match=words):
            task(examples, classes, window=window)
    example.label[example.label == 2] = IGNORE
    task([example], 2)
