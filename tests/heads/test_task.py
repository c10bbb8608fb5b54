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


def test_what_does_not_keep_its_arguments_is_refused() -> None:
    whole = to_config(FromScratch(NETWORK, loss_function=TverskyLoss(alpha=0.3)))["loss_function"]
    assert (whole["_target_"], whole["alpha"], whole["beta"]) == ("monai.losses.TverskyLoss", 0.3, 0.5)
    for part in (
        {"transform": RandGaussianNoised(["image"])},
        {"loss_function": DiceCELoss()},
        {"network": lambda: None},
    ):
        with pytest.raises(UserError, match='"_mode_": "callable"'):
            to_config(FromScratch(**{"network": NETWORK, **part}))


@pytest.mark.parametrize("reading", [Reading((16, 24), overlap=0.5), Reading((16, 24), whole=True)], ids=str)
def test_a_reading_is_read_back_from_its_inferer(reading: Reading) -> None:
    inferer = reading.inferer(7)
    assert isinstance(inferer, SimpleInferer if reading.whole else SlidingWindowInferer)
    assert Reading.of(inferer, (16, 24)) == reading
    assert instantiate(to_config(reading), trust=True) == reading


def test_another_inferer_is_refused() -> None:
    with pytest.raises(UserError, match="SlidingWindowInferer with mode 'constant'"):
        Reading.of(SlidingWindowInferer((16, 16), mode="constant"))
