import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import SSIMLoss as MonaiSSIMLoss
from scipy.ndimage import correlate1d

from medmdm.components import instantiate, to_config
from medmdm.objectives import L1Loss, MSELoss, PaperSSIMLoss, SSIMLoss, WeightedSumLoss
from medmdm.objectives.losses import ReconstructionLoss, with_visible
from tests.made import refused

CASES = json.loads((Path(__file__).parents[1] / "golden" / "golden_ssim.json").read_text())
ALL_LOSSES = [PaperSSIMLoss, SSIMLoss, MSELoss, L1Loss]


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator) * 2 - 1
    return (target + 0.3 * torch.randn(shape, generator=generator)).clamp(-1, 1), target


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['shape']}-noise{case['noise_scale']}")
def test_paper_ssim_equals_published_program(case: dict) -> None:
    low, high = case["clamp"]
    x = np.random.RandomState(case["x_seed"]).standard_normal(case["shape"]) * case["x_scale"]
    x = x.clip(low, high).astype(np.float32)
    noise = np.random.RandomState(case["noise_seed"]).standard_normal(case["shape"]) * case["noise_scale"]
    y = torch.from_numpy((x + noise).clip(low, high).astype(np.float32)).requires_grad_()
    loss = PaperSSIMLoss()(y, torch.from_numpy(x))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert float(y.grad.abs().sum()) == pytest.approx(case["grad_abs_sum"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 12, 17), (1, 2, 7, 9, 8)])
def test_paper_ssim_equals_scipy(shape: tuple[int, ...]) -> None:
    pred, target = pair(*shape)
    window = np.exp(-((np.arange(5) - 2) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(image: np.ndarray) -> np.ndarray:
        for axis in range(2, image.ndim):
            image = correlate1d(image, window, axis=axis, mode="constant")
        return image

    x, y = target.double().numpy(), pred.double().numpy()
    mx, my = smooth(x), smooth(y)
    vx, vy, cxy = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    ssim = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4) * (2 * cxy + 9e-4) / (vx + vy + 9e-4)
    expected = np.clip(1 - ssim, 0, 1).mean() / 2
    assert float(PaperSSIMLoss()(pred, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 1, 12, 13, 14)])
def test_ssim_equals_monai(shape: tuple[int, ...]) -> None:
    pred, target = pair(*shape)
    expected = MonaiSSIMLoss(spatial_dims=len(shape) - 2, data_range=2.0)(pred, target)
    assert float(SSIMLoss()(pred, target)) == pytest.approx(float(expected), rel=1e-5)


def test_mse_and_l1_equal_torch() -> None:
    pred, target = pair(2, 3, 9, 5)
    assert torch.equal(MSELoss()(pred, target), torch.nn.MSELoss()(pred, target))
    assert torch.equal(L1Loss()(pred, target), torch.nn.L1Loss()(pred, target))


@pytest.mark.parametrize("kind", ALL_LOSSES)
def test_zero_for_equal_images_and_positive_otherwise(kind: type[ReconstructionLoss]) -> None:
    pred, target = pair(2, 3, 16, 20)
    assert float(kind()(target, target)) == pytest.approx(0, abs=1e-5)
    assert float(kind()(pred, target)) > 0.01


@pytest.mark.parametrize("kind", ALL_LOSSES)
@pytest.mark.parametrize("visible_weight", [0.0, 0.3])
def test_region_weights_equal_a_loop(kind: type[ReconstructionLoss], visible_weight: float) -> None:
    pred, target = pair(3, 2, 16, 24)
    visible = (torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    loss = kind(visible_weight=visible_weight)
    error = loss.error_map(pred, target)
    margin = (16 - error.shape[2]) // 2
    means = []
    for image in range(3):
        total = weights = 0.0
        for c in range(2):
            for i in range(error.shape[2]):
                for j in range(error.shape[3]):
                    w = visible_weight if visible[image, 0, i + margin, j + margin] else 1.0
                    total += w * float(error[image, c, i, j])
                    weights += w
        means.append(total / weights)
    assert float(loss(pred, target, visible)) == pytest.approx(np.mean(means), rel=1e-4)


def test_hidden_only_ignores_what_is_visible_and_survives_nothing_hidden() -> None:
    pred, target = pair(2, 1, 8, 8)
    visible = torch.ones(2, 1, 8, 8)
    visible[0, 0, :4] = 0
    loss = MSELoss(visible_weight=0.0)
    changed = torch.where(visible.bool(), torch.full_like(pred, 9.0), pred)
    assert torch.equal(loss(pred, target, visible), loss(changed, target, visible))
    assert float(loss(pred, target, torch.ones_like(visible))) == 0.0
    with pytest.raises(ValueError, match="needs `visible`"):
        loss(pred, target)


@pytest.mark.parametrize("kind", ALL_LOSSES)
def test_float32_inside_bfloat16_autocast(kind: type[ReconstructionLoss]) -> None:
    pred, target = pair(2, 1, 16, 16)
    pred, target = pred * 0.01, target * 0.01  # low contrast: where bfloat16 goes wrong
    expected = kind()(pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kind()(pred, target), expected)


@pytest.mark.parametrize(
    "loss", [SSIMLoss(1.0, 5), PaperSSIMLoss(visible_weight=0.5), WeightedSumLoss([L1Loss(), MSELoss(0.2)], [1.0, 3.0])]
)
def test_config_round_trip(loss: torch.nn.Module) -> None:
    again = instantiate(json.loads(json.dumps(to_config(loss))), trust=True)
    (pred, target), visible = pair(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    assert torch.equal(again(pred, target, visible), loss(pred, target, visible))
    assert to_config(again) == to_config(loss)


def test_other_losses_do_not_get_visible() -> None:
    (pred, target), hidden = pair(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    for loss in (torch.nn.MSELoss(), torch.nn.functional.mse_loss, WeightedSumLoss([torch.nn.MSELoss()])):
        assert torch.equal(with_visible(loss)(pred, target, hidden), torch.nn.MSELoss()(pred, target))
    assert with_visible(lambda pred, target, visible: visible.sum())(pred, target, hidden) == 0


def test_weighted_sum() -> None:
    pred, target = pair(2, 1, 16, 16)
    total = WeightedSumLoss([PaperSSIMLoss(), L1Loss()], [0.25, 2.0])(pred, target)
    expected = 0.25 * float(PaperSSIMLoss()(pred, target)) + 2 * float(L1Loss()(pred, target))
    assert float(total) == pytest.approx(expected)
    refused("1 losses and 2 weights", WeightedSumLoss, [L1Loss()], [1.0, 2.0])


def test_bad_arguments_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="one shape"):
        L1Loss()(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8))
    refused("visible_weight", L1Loss, visible_weight=2)
    refused("odd", PaperSSIMLoss, window_size=4)
    refused("larger crops", SSIMLoss(), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
