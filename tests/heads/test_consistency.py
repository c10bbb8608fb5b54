import numpy as np
import pytest
import torch

from medmdm.heads.consistency import Consistency
from tests.made import refused


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[[[2.0, 0.0, 1.0]], [[0.0, 1.0, 1.0]]]])  # [1, 2, 1, 3]
    said = torch.tensor([[[[0.95, 0.2, 0.6]], [[0.05, 0.8, 0.4]]]])
    first = -np.log(np.exp(2) / (np.exp(2) + 1))
    second = -np.log(np.exp(1) / (np.exp(1) + 1))
    assert float(Consistency(threshold=0.75).loss(logits, said)) == pytest.approx((first + second) / 3)
    assert float(Consistency(threshold=0.9).loss(logits, said)) == pytest.approx(first / 3)
    assert float(Consistency(threshold=0.99).loss(logits, said)) == 0


def test_the_weight_rises() -> None:
    consistency = Consistency(weight=2.0, ramp=(0.2, 0.6))
    assert [consistency.weight_at(p) for p in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 1, 2, 2])
    assert Consistency(ramp=(0, 0)).weight_at(0.0) == 1


@pytest.mark.parametrize("size", [(32, 20), (8, 12, 16)])
def test_a_rectangle_of_the_next_crop_is_pasted_with_what_was_said_of_it(size: tuple[int, ...]) -> None:
    strong = torch.arange(3.0).reshape(3, 1, *(1 for _ in size)).expand(3, 2, *size).clone()
    said = strong.clone() + 10
    mixed, said_mixed = Consistency().mix(strong, said, np.random.default_rng(0))
    assert torch.equal(mixed + 10, said_mixed)
    for target in range(3):
        pasted = (mixed[target] == (target + 1) % 3)[0]
        share = float(pasted.float().mean())
        assert 0.15 < share < 0.6
        assert float((mixed[target, 0] == target).float().mean()) == pytest.approx(1 - share)
        extents = [len(torch.unique(index)) for index in pasted.nonzero().T]
        assert pasted.sum() == np.prod(extents)  # a box
    assert torch.equal(strong[:, 0].flatten(1).amax(1), torch.arange(3.0))  # the inputs are left as they were
    same, _ = Consistency(cutmix=False).mix(strong, said, np.random.default_rng(0))
    assert same is strong
    alone, _ = Consistency().mix(strong[:1], said[:1], np.random.default_rng(0))
    assert torch.equal(alone, strong[:1])


def test_mistakes_get_a_sentence() -> None:
    for wrong in ({"weight": -1}, {"threshold": 1.0}, {"batch_size": 0}, {"ramp": (0.5, 0.2)}):
        refused("unlabelled: weight", Consistency, **wrong)
