"""Networks of fixed multiples on images of any size."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, UNet
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.errors import UserError
from medmdm.heads.segmenter import PaddedNetwork


class Strict(nn.Module):
    """Halves and doubles; refuses what it cannot halve."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        assert all(n % 4 == 0 for n in x.shape[2:])
        self.seen.append(x)
        return [x * 0, x[:, :2] * 2]


@pytest.mark.parametrize("shape", [(8, 12), (7, 13), (1, 1), (4, 9, 6)], ids=str)
def test_any_size_is_padded_by_its_edge_and_cut_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    strict = Strict()
    out = PaddedNetwork(strict, 4, 2)(x)
    assert torch.equal(out, x[:, :2] * 2)
    (seen,) = strict.seen
    for axis, n in enumerate(shape, start=2):
        assert seen.shape[axis] == -(-n // 4) * 4
        for extra in range(n, seen.shape[axis]):
            assert torch.equal(seen.select(axis, extra), seen.select(axis, n - 1))


def test_sizes_that_fit_go_straight_through() -> None:
    network = UNet(2, 1, 3, channels=(4, 8, 8), strides=(2, 2)).eval()
    x = torch.randn(1, 1, 16, 24)
    assert torch.equal(PaddedNetwork(network, 4, 3).eval()(x), network(x))
    padded = network(F.pad(x[..., :14, :21], (0, 3, 0, 2), mode="replicate"))
    assert torch.equal(PaddedNetwork(network, 4).eval()(x[..., :14, :21]), padded[..., :14, :21])


def test_the_last_of_several_outputs_is_read() -> None:
    network = BasicUNetPlusPlus(2, 3, 2, features=(8,) * 6, deep_supervision=True).eval()
    x = torch.randn(1, 3, 16, 32)
    outputs = network(x)
    assert len(outputs) > 1
    assert torch.equal(PaddedNetwork(network, 16, 2).eval()(x), outputs[-1])


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="gives 2 classes, but the data has 5: set its out_channels"):
        PaddedNetwork(Strict(), 4, 5)(torch.zeros(1, 3, 8, 8))


def test_tracing() -> None:
    network = PaddedNetwork(UNet(2, 3, 2, channels=(4, 8), strides=(2,)), 2, 2).eval()
    x = torch.randn(1, 3, 15, 10)
    traced = torch.jit.trace(network, torch.zeros(1, 3, 15, 10))
    assert torch.allclose(traced(x), network(x), atol=1e-6)
