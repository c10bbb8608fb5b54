import pytest
import torch

from medmdm.corruption import Corruption, FixedTimesteps, GaussianNoise, MaskedNoise, PatchMasking
from medmdm.objectives import L1Loss, Objective
from tests.made import refused

X0 = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("corruption", [GaussianNoise(), MaskedNoise(patch_size=4)], ids=["noise", "masked noise"])
@pytest.mark.parametrize("t", [10, 600])
def test_a_perfect_prediction_of_the_noise_gives_the_image(corruption: Corruption, t: int) -> None:
    objective = Objective(corruption, FixedTimesteps(t), L1Loss(), target="noise")
    x_t, times, noise, visible = objective.pose(X0, torch.Generator().manual_seed(1))
    assert times.tolist() == [t, t]
    sigma = torch.ones_like(noise)  # learnt beside, and not judged
    assert objective.loss(torch.cat([noise, sigma], dim=1), noise, visible) == 0
    image = objective.restored(torch.cat([noise, sigma], dim=1), x_t, times)
    assert torch.allclose(image * visible, X0 * visible, atol=1e-4)


def test_the_image_is_its_own_prediction_and_losses_see_what_they_take() -> None:
    hidden = Objective(PatchMasking(), FixedTimesteps(500), L1Loss(visible_weight=0.0))
    x_t, t, target, visible = hidden.pose(X0, torch.Generator().manual_seed(1))
    assert target is X0
    assert torch.equal(hidden.restored(X0, x_t, t), X0)
    assert torch.equal(x_t, X0 * visible)
    plain = Objective(PatchMasking(), FixedTimesteps(500), lambda pred, target: (pred - target).abs().mean())
    assert plain.loss(X0 + 1, X0, visible) == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "sentence"), [("noise", "PatchMasking adds none"), ("imag", "did you mean 'image'")]
)
def test_a_target_that_there_is_not(target: str, sentence: str) -> None:
    refused(sentence, Objective, PatchMasking(), FixedTimesteps(1), L1Loss(), target=target)
