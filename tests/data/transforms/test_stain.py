import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from skimage.data import immunohistochemistry

from medmdm.data.transforms.stain import RandStainJitter, RandStainJitterd
from tests.made import refused


@pytest.fixture
def tissue() -> torch.Tensor:
    """Real tissue, not square, ``[3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(immunohistochemistry()[:40, :56]).permute(2, 0, 1).float() / 127.5 - 1


def test_concentrations_change_as_drawn(tissue: torch.Tensor) -> None:
    # Made of known concentrations, all positive: scikit-image cuts negative ones off.
    concentrations = np.random.default_rng(0).uniform(0.01, 0.04, (40, 56, 3))
    made = torch.from_numpy(np.moveaxis(hed2rgb(concentrations), -1, 0) * 2 - 1).float()
    jitter = RandStainJitter(sigma=0.05)
    jitter.set_random_state(seed=3)
    changed = jitter(made)
    assert changed.shape == made.shape
    assert changed.dtype == torch.float32
    assert ((changed > -1) & (changed < 1)).all()
    expected = concentrations * jitter.factors + jitter.shifts / 13.8155
    found = rgb2hed((np.moveaxis(changed.numpy(), 0, -1) + 1) / 2)
    assert np.allclose(found, expected, atol=1e-4)
    assert np.abs(found - concentrations).max() > 1e-3
    assert not torch.allclose(jitter(tissue), tissue, atol=0.01)


def test_random_state_probability_and_nothing(tissue: torch.Tensor) -> None:
    jitter = RandStainJitterd("image", sigma=0.1)
    first, again, other = (jitter.set_random_state(seed)({"image": tissue})["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(RandStainJitterd("image", sigma=0.0)({"image": tissue})["image"], tissue)
    assert torch.equal(RandStainJitter(sigma=0.1, prob=0.0)(tissue), tissue)


def test_bad_input(tissue: torch.Tensor) -> None:
    refused("RGB", RandStainJitter(), tissue[:1])
    refused("sigma", RandStainJitter, sigma=1.0)
