import pytest
import torch
from torch import nn

from medmdm.pretrain.optimization import EMA
from tests.made import refused


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9999, True), (0.5, True)])
def test_equals_the_recurrence(decay: float, warmup: bool) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = EMA(network, decay, warmup)
    expected = None
    for n in range(6):
        with torch.no_grad():
            network.weight.add_(torch.randn_like(network.weight))
        ema.update(network)
        beta = min(decay, (1 + n) / (10 + n)) if warmup else decay
        weight = network.weight.detach().double()
        expected = weight.clone() if expected is None else beta * expected + (1 - beta) * weight
    assert torch.allclose(ema.module.weight.double(), expected, atol=1e-6)
    assert not torch.equal(ema.module.weight, network.weight)
    assert not ema.module.weight.requires_grad


def test_state_goes_round() -> None:
    network = nn.Linear(3, 2)
    ema = EMA(network)
    for _ in range(3):
        ema.update(network)
    again = EMA(nn.Linear(3, 2))
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.module.weight, ema.module.weight)
    assert int(again.n_averaged) == 3


def test_bad_decay() -> None:
    refused(r"\[0, 1\)", EMA, nn.Linear(1, 1), decay=1.0)
