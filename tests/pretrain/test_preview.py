from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from medmdm.corruption import Blur, Compose, Corruption, GaussianNoise, PatchMasking
from medmdm.pretrain.preview import Preview, fill_with_mean, preview_grid


class Engine:
    def __init__(self, restore: Any) -> None:
        self.state = SimpleNamespace(iteration=10, epoch_length=20, device=torch.device("cpu"))
        self.restore = restore


def crops(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("shape", [(3, 3, 16, 24), (2, 1, 24, 16), (1, 5, 16, 16), (2, 1, 16, 24, 16)])
@pytest.mark.parametrize(
    "corruption",
    [PatchMasking(), GaussianNoise(), Blur(max_sigma=2.0), Compose(corruptions=[PatchMasking(), GaussianNoise()])],
    ids=["masking", "noise", "blur", "both"],
)
def test_scores_and_picture(shape: tuple[int, ...], corruption: Corruption, tmp_path: Path) -> None:
    clean = crops(*shape)
    preview = Preview(tmp_path, clean, corruption, timesteps=[100, 900])
    engine = Engine(lambda x_t, t: torch.zeros_like(x_t))
    preview(engine)
    scores = engine.state.heldout
    names = [f"{n}_t{t}" for t in (100, 900) for n in ("ssim", "psnr", "ssim_mean_fill")]
    assert list(scores) == preview.names == names
    pasted = isinstance(corruption, PatchMasking)
    assert scores["ssim_t100"] > scores["ssim_t900"] or not pasted
    damaged = preview.damaged[1]
    guess = torch.zeros_like(clean)
    if pasted:  # the visible pixels, which nothing else leaves as they were
        guess = torch.where(damaged.visible.bool(), clean, guess)
    expected = [peak_signal_noise_ratio(c.numpy(), g.numpy(), data_range=2) for c, g in zip(clean, guess, strict=True)]
    assert scores["psnr_t900"] == pytest.approx(np.mean(expected), rel=1e-4)
    with Image.open(tmp_path / "previews" / "step_00000010.png") as picture:
        assert picture.mode == "RGB"


def test_a_perfect_network_scores_one_and_damage_is_the_same_each_time(tmp_path: Path) -> None:
    clean = crops(2, 3, 16, 16)
    preview = Preview(tmp_path, clean, PatchMasking(), timesteps=[500])
    seen: list[torch.Tensor] = []

    def restore(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x_t)
        return clean[len(seen) % 2 - 1 : len(seen) % 2 or None]

    engine = Engine(restore)
    preview(engine)
    assert engine.state.heldout["ssim_t500"] == pytest.approx(1)
    preview(engine)
    assert torch.equal(seen[0], seen[2])
    again = Preview(tmp_path, clean, PatchMasking(), timesteps=[500])
    assert torch.equal(again.damaged[0].x_t, preview.damaged[0].x_t)
    other = Preview(tmp_path, clean, PatchMasking(), timesteps=[500], seed=1)
    assert not torch.equal(other.damaged[0].x_t, preview.damaged[0].x_t)


def test_features_are_shown_in_the_same_colours_in_all_crops(tmp_path: Path) -> None:
    """Whatever the image holds twice is shown twice, in the last column."""
    clean = crops(1, 3, 16, 24).repeat(2, 1, 1, 1)
    clean[1] = clean[1].flip(-1)
    preview = Preview(tmp_path, clean, PatchMasking(), timesteps=[500])
    engine: Any = Engine(lambda x_t, t: x_t)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([x, x**2], 1), torch.nn.functional.avg_pool2d(x, 2)]

    engine.features = features
    preview(engine)
    picture = np.asarray(Image.open(tmp_path / "previews" / "step_00000010.png"))
    assert np.array_equal(picture, engine.state.picture)
    scale = round(128 / 24)
    wide, high, gap = 24 * scale, 16 * scale, 4
    left = gap + 3 * (wide + gap)  # original, given, restored, features
    tiles = [picture[16 + gap + n * (high + gap) :][:high, left : left + wide] for n in range(2)]
    assert tiles[0].std() > 20
    np.testing.assert_allclose(tiles[0].astype(int), tiles[1][:, ::-1].astype(int), atol=1)

    without: Any = Engine(lambda x_t, t: x_t)
    without.features = lambda x: None  # a network without blocks
    preview(without)
    assert without.state.picture.shape[1] == picture.shape[1] - wide - gap
    broken: Any = Engine(lambda x_t, t: x_t)
    broken.features = lambda x: [x * float("nan")]
    preview(broken)
    assert broken.state.picture.shape == without.state.picture.shape


def test_fill_with_mean_equals_a_loop() -> None:
    clean = crops(2, 3, 16, 16)
    damage = PatchMasking()(clean, torch.tensor([500, 750]), torch.Generator().manual_seed(0))
    filled = fill_with_mean(clean, damage)
    for n in range(2):
        for c in range(3):
            mean = clean[n, c].mean()
            for i in range(16):
                for j in range(16):
                    expected = clean[n, c, i, j] if damage.visible[n, 0, i, j] else mean
                    assert float(filled[n, c, i, j]) == pytest.approx(float(expected), abs=1e-6)


def test_grid_keeps_orientation_and_colour() -> None:
    image = -torch.ones(1, 3, 32, 64)
    image[0, 0, :8, -16:] = 1  # red in the upper right corner
    grid = np.asarray(preview_grid([image, image], ["a", "b"], note="note"))
    scale, cell = 2, 64 * 2 + 4
    assert grid.shape == (16 + 32 * scale + 4 + 4 + 16, 2 * cell + 4, 3)
    tile = grid[20 : 20 + 64, 4 : 4 + 128]
    assert (tile[:16, -32:] == [255, 0, 0]).all()
    assert (tile[16:] == 0).all()
    assert (tile[:, :96] == 0).all()
