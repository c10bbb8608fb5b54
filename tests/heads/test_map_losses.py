"""Losses of maps against sums by hand, their gradients, and Kendall's weights."""

import math

import numpy as np
import pytest
import torch
from monai.apps.pathology.losses import HoVerNetLoss
from torch import Tensor

from medmdm.heads.map_losses import MapLosses
from medmdm.heads.object_maps import targets
from medmdm.labels import IGNORE
from tests.heads.test_object_maps import touching
from tests.made import refused

ALL = ("boundary", "distance", "hv", "centres")


def case(ignored: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """What a network gave, labels, and targets."""
    objects = touching()
    label = torch.from_numpy(objects > 0).long()[None]
    if ignored:
        label[:, 3:9, 5:14] = IGNORE
    values = torch.randn(1, 5, *objects.shape, generator=torch.Generator().manual_seed(0))
    return values.double(), label, targets(objects, ALL)[None].double()


def test_each_loss_by_hand() -> None:
    values, label, wanted = case()
    known = (label != IGNORE)[0]
    found = MapLosses(ALL).each(values, label, wanted)
    share = values[0, 0][known].sigmoid()
    target = wanted[0, 0][known]
    by_hand = -(target * share.log() + (1 - target) * (1 - share).log()).mean()
    torch.testing.assert_close(found["boundary"], by_hand)
    for name, place in (("distance", 1), ("centres", 4)):
        torch.testing.assert_close(found[name], ((values - wanted)[0, place][known] ** 2).mean())


def test_horizontal_and_vertical_maps_cost_what_monai_says() -> None:
    values, label, wanted = case(ignored=False)
    objects = torch.stack([label == 0, label == 1], 1).double()
    monai = HoVerNetLoss(lambda_np_ce=0, lambda_np_dice=0)
    expected = monai(
        {"nucleus_prediction": objects, "horizontal_vertical": values[:, 2:4]},
        {"nucleus_prediction": objects, "horizontal_vertical": wanted[:, 2:4]},
    )
    torch.testing.assert_close(MapLosses(ALL).each(values, label, wanted)["hv"], expected)
    assert MapLosses(["hv"]).each(wanted[:, 2:4], label, wanted[:, 2:4])["hv"] == 0


@pytest.mark.parametrize("weights", ["uncertainty", {"classes": 2.0, "hv": 0.5}])
def test_gradients(weights: object) -> None:
    values, label, wanted = case()
    losses = MapLosses(ALL, weights).double()  # type: ignore[arg-type]
    classes = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    values = values.requires_grad_()
    losses(classes, values, label, wanted).backward()
    assert values.grad is not None
    unknown = (label == IGNORE)[0]
    assert not values.grad[0][:, unknown].any()
    assert values.grad[0][:, ~unknown].any(dim=1).all()
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        ends = [losses(classes, values + side * direction, label, wanted) for side in (1e-5, -1e-5)]
    torch.testing.assert_close((values.grad * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_weights_learnt_by_uncertainty_go_to_kendalls() -> None:
    """Where L is fixed, exp(-s) L + s/2 is least at exp(-s) = 1 / 2L, and exp(-s) L/2 + s/2 at 1 / L."""
    values, label, wanted = case()
    losses = MapLosses(["distance"]).double()
    distance = losses.each(values[:, 1:2], label, wanted[:, 1:2])["distance"]
    steps = torch.optim.Adam(losses.parameters(), 0.05)
    for _ in range(600):
        steps.zero_grad()
        losses(torch.tensor(0.2).double(), values[:, 1:2], label, wanted[:, 1:2]).backward()
        steps.step()
    found = losses.weights_now()
    assert found["classes"] == pytest.approx(1 / (2 * 0.2), rel=1e-3)
    assert found["distance"] == pytest.approx(0.5 / float(distance), rel=1e-3)


def test_fixed_weights() -> None:
    values, label, wanted = case()
    losses = MapLosses(ALL, {"classes": 2.0, "hv": 0.5, "centres": 0})
    each = {name: float(loss) for name, loss in losses.each(values, label, wanted).items()}
    expected = 2 * 0.3 + each["boundary"] + each["distance"] + 0.5 * each["hv"]
    assert float(losses(torch.tensor(0.3), values, label, wanted)) == pytest.approx(expected, rel=1e-6)
    assert losses.weights_now() == {"classes": 2, "boundary": 1, "distance": 1, "hv": 0.5, "centres": 0}
    assert not list(losses.parameters())


def test_nothing_labelled_costs_nothing() -> None:
    values, label, wanted = case()
    values = values.requires_grad_()
    losses = MapLosses(ALL, {})
    loss = losses(torch.tensor(0.0), values, torch.full_like(label, IGNORE), wanted)
    loss.backward()
    assert float(loss.detach()) == 0
    assert values.grad is not None
    assert not values.grad.any()


def test_mistakes_get_a_sentence() -> None:
    refused("use 'uncertainty'", MapLosses, ["hv"], "learnt")
    refused("names 'distance'", MapLosses, ["hv"], {"distance": 1})
    for wrong in (-1, math.nan, "1", True):
        refused("0 or more", MapLosses, ["hv"], {"hv": wrong})
    refused("centre_sigma", MapLosses, ["hv"], {}, 0)
    assert np.isclose(sum(MapLosses(["hv"]).weights_now().values()), 1.5)
