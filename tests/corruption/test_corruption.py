import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler

from medmdm.components import instantiate, to_config
from medmdm.corruption import (
    BlockMasking,
    Compose,
    ContentMasking,
    Corruption,
    FixedTimesteps,
    FrequencyMasking,
    GaussianNoise,
    MaskedNoise,
    PatchMasking,
    PatchRotation,
    PatchShift,
    PatchShuffle,
    RandomChoice,
    RegionMasking,
    TubeMasking,
    UniformTimesteps,
)  # fmt: skip
from medmdm.errors import UserError
from tests.corruption.made import images, seeded
from tests.made import refused

CORRUPTIONS = [
    PatchMasking(patch_size=4),
    GaussianNoise(),
    GaussianNoise(schedule="cosine"),
    MaskedNoise(patch_size=4, noise_rate=0.5),
    BlockMasking(patch_size=4),
    ContentMasking(patch_size=4),
    ContentMasking(patch_size=4, content="entropy"),
    TubeMasking(patch_size=2),
    RegionMasking(regions=6, compactness=10),
    PatchShuffle(patch_size=4),
    PatchRotation(patch_size=4),
    PatchShift(patch_size=4, max_shift=3),
    FrequencyMasking(),
    FrequencyMasking(patch_size=4),
    Compose(corruptions=[PatchMasking(patch_size=4), GaussianNoise()]),
    RandomChoice(corruptions=[PatchMasking(patch_size=4), PatchShuffle(patch_size=4)]),
    RandomChoice(corruptions=[PatchMasking(patch_size=4), GaussianNoise()]),
]
_ZEROS, _HALF = torch.zeros(8, 1, 8, 8), torch.full((8,), 500)
AFFINE = [one for one in CORRUPTIONS if one(_ZEROS, _HALF, torch.Generator().manual_seed(0)).scale is not None]


def name_of(part: object) -> str:
    """Return a test id that is the same in every process."""
    return f"{type(part).__name__}-{getattr(part, 'schedule', '')}"


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 3),
    st.sampled_from([1, 7, 100, 1000]),
    st.integers(0, 2**31),
)
def test_number_of_hidden_patches(grid, patch, channels, num_timesteps, seed) -> None:
    count = math.prod(grid)
    t = torch.linspace(0, num_timesteps - 1, 6).long()
    x0 = images(6, channels, grid[0] * patch, grid[1] * patch) + 2  # nowhere zero
    x_t, visible = PatchMasking(num_timesteps, patch)(x0, t, seeded(seed))
    assert visible.shape == (6, 1, *x0.shape[2:])
    assert torch.equal(x_t, torch.where(visible.bool(), x0, torch.zeros_like(x0)))
    blocks = visible.reshape(6, grid[0], patch, grid[1], patch).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.amin(3), blocks.amax(3))  # a patch is hidden as a whole
    kept = [math.floor(count * (1 - Fraction(int(i), num_timesteps))) for i in t]
    assert blocks.amin(3).sum((1, 2)).tolist() == kept


def test_hidden_patches_are_uniform_and_independent_over_images() -> None:
    # 4000 images with 3 of 12 patches hidden: each position is hidden in a quarter of them, each pair of images and
    # each pair of positions as often as independence (within an image: drawing without replacement) demands.
    repeats = 4000
    x0 = torch.ones(repeats, 1, 6, 8)
    t = torch.full((repeats,), 250)
    hidden = 1 - PatchMasking(1000, 2)(x0, t, seeded(3)).visible[:, 0, ::2, ::2].flatten(1)
    assert hidden.sum(1).unique().tolist() == [3]
    expected, spread = 0.25, math.sqrt(0.25 * 0.75 / repeats)
    assert (hidden.mean(0) - expected).abs().max() < 4.5 * spread
    together = (hidden.T @ hidden / repeats)[~torch.eye(12, dtype=torch.bool)]
    assert (together - 3 * 2 / (12 * 11)).abs().max() < 4.5 * math.sqrt(0.0455 * 0.9545 / repeats)
    neighbours = (hidden[:-1] * hidden[1:]).mean()
    assert abs(float(neighbours) - 0.0625) < 4.5 * math.sqrt(0.0625 * 0.9375 / (12 * repeats))


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=name_of)
@pytest.mark.parametrize("shape", [(3, 1, 8, 12), (2, 3, 16, 4), (2, 2, 8, 4, 12)])
def test_shapes_and_determinism(corrupt: Corruption, shape: tuple[int, ...]) -> None:
    x0, t = images(*shape), torch.arange(shape[0]) * 300
    first, again = corrupt(x0, t, seeded(5)), corrupt(x0, t, seeded(5))
    assert first.x_t.shape == x0.shape
    assert first.visible.shape == (shape[0], 1, *shape[2:])
    assert set(first.visible.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(first.x_t, again.x_t)
    assert torch.equal(first.visible, again.visible)
    assert any(not torch.equal(first.x_t, corrupt(x0, t, seeded(seed)).x_t) for seed in range(6, 12))
    assert (first.noise is not None) == corrupt.has_noise


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=name_of)
def test_one_generator_an_image_makes_damage_independent_of_the_batch(corrupt: Corruption) -> None:
    x0, t = images(4, 2, 8, 12), torch.tensor([10, 400, 700, 999])
    whole = corrupt(x0, t, [seeded(i) for i in range(4)])
    for i in range(4):
        assert torch.equal(corrupt(x0[i : i + 1], t[i : i + 1], [seeded(i)]).x_t[0], whole.x_t[i])
    with pytest.raises(ValueError, match="one for each"):
        corrupt(x0, t, [seeded(0)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_gaussian_noise_is_the_ddpm_equation(schedule: str) -> None:
    corrupt = GaussianNoise(1000, schedule)
    if schedule == "linear":
        expected = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    else:
        f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        expected = np.cumprod(1 - np.clip(1 - f[1:] / f[:-1], 0, 0.999))
    assert np.allclose(corrupt.alphas_cumprod.numpy(), expected, rtol=2e-4, atol=1e-7)
    x0, t = images(3, 1, 5, 7), torch.tensor([0, 500, 999])  # any size: nothing is cut into patches
    result = corrupt(x0, t, seeded(1))
    a = torch.tensor(expected[t.numpy()], dtype=torch.float32)[:, None, None, None]
    assert torch.allclose(result.x_t, a.sqrt() * x0 + (1 - a).sqrt() * result.noise, atol=1e-4)
    assert result.visible.min() == 1
    many = corrupt(torch.zeros(1, 1, 300, 300), torch.tensor([500]), seeded(2))
    assert float(many.noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(many.noise.std()) == pytest.approx(1, abs=0.02)


def test_masked_noise_hides_and_adds_noise() -> None:
    x0, t = images(2, 3, 16, 16), torch.tensor([500, 900])
    result = MaskedNoise(patch_size=4, noise_rate=0.5)(x0, t, seeded(0))
    noisy = DDPMScheduler(1000, schedule="linear_beta").add_noise(x0, result.noise, torch.tensor([250, 450]))
    assert torch.equal(result.x_t, noisy * result.visible)
    assert result.visible[:, 0, ::4, ::4].sum((1, 2)).tolist() == [8, 1]


@pytest.mark.parametrize("corrupt", AFFINE, ids=name_of)
@pytest.mark.parametrize("shape", [(4, 1, 8, 12), (4, 2, 8, 4, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scale_and_offset_are_what_black_and_white_images_show(corrupt, shape, dtype) -> None:
    """In float64, and then to the bit in a network's own type."""
    t, zero = torch.tensor([0, 10, 700, 999]), torch.zeros(shape, dtype=torch.float64)
    result = corrupt(zero, t, seeded(4))
    white = corrupt(zero + 1, t, seeded(4)).x_t
    scale, offset = result.scale.expand_as(zero), zero if result.offset is None else result.offset
    assert torch.equal(scale.to(dtype), (white - result.x_t).to(dtype))
    assert torch.equal(offset.to(dtype), result.x_t.to(dtype))
    x0 = images(*shape).to(dtype)
    own = corrupt(x0, t, seeded(4))
    assert torch.equal(own.x_t, x0 * own.scale + (0 if own.offset is None else own.offset))


@pytest.mark.parametrize(("corrupt", "x0", "t", "sentence"), [
    (PatchMasking(), torch.zeros(1, 1, 8, 12), torch.tensor([0]), "patches"),
    (PatchMasking(), torch.zeros(1, 8, 8), torch.tensor([0]), r"\[B, C, H, W\]"),
    (PatchMasking(), torch.zeros(2, 1, 8, 8), torch.tensor([0]), "each of 2 images"),
    (PatchMasking(), torch.zeros(1, 1, 8, 8), torch.tensor([0.5]), "one integer"),
    (PatchMasking(), torch.zeros(1, 1, 8, 8), torch.tensor([1000]), r"0\.\.\.999"),
    (GaussianNoise(), torch.zeros(1, 1, 8, 8), torch.tensor([-1]), r"0\.\.\.999"),
])  # fmt: skip
def test_bad_input_gets_a_sentence(corrupt: Corruption, x0: torch.Tensor, t: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        corrupt(x0, t)


def test_bad_arguments_get_a_sentence() -> None:
    refused("did you mean 'cosine'", GaussianNoise, schedule="cosin")
    refused("patch_size", PatchMasking, patch_size=0)
    refused("num_timesteps", PatchMasking, 0)
    refused("noise_rate", MaskedNoise, noise_rate=1.5)
    refused("timestep must lie", FixedTimesteps, 1000)


def test_timesteps() -> None:
    counts = torch.bincount(UniformTimesteps(10)(20_000, seeded(0)), minlength=10)
    assert counts.shape == (10,)
    assert ((counts - 2000).abs() < 4.5 * math.sqrt(20_000 * 0.09)).all()
    per_image = UniformTimesteps(1000)(3, [seeded(i) for i in range(3)])
    assert per_image.tolist() == [int(UniformTimesteps(1000)(1, [seeded(i)])) for i in range(3)]
    assert FixedTimesteps(700)(3).tolist() == [700, 700, 700]


@pytest.mark.parametrize("part", [*CORRUPTIONS, UniformTimesteps(50), FixedTimesteps(3, 50)], ids=name_of)
def test_config_round_trip(part: Corruption) -> None:
    config = to_config(part)
    assert config["_target_"] == f"medmdm.corruption.{type(part).__name__}"
    assert ConfigParser({"part": config}).get_parsed_content("part") == part == instantiate(config)


@pytest.mark.parametrize(
    "target",
    ["os.system", "medmdm.corruption.Corruption", "medmdm.corruption.base.draw", "medmdm.corruption.Corrupted", None],
)
def test_only_corruptions_and_draws_are_built_on_the_word_of_a_file(target: str | None) -> None:
    refused("is neither medmdm's nor MONAI's", instantiate, {"_target_": target})


def test_a_config_that_does_not_fit_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"PatchMasking has no argument 'path_size' \(did you mean 'patch_size'\?\)"):
        instantiate({"_target_": "medmdm.corruption.PatchMasking", "path_size": 4})
    with pytest.raises(UserError, match=r"UniformTimesteps is no Corruption"):
        instantiate({"_target_": "medmdm.corruption.UniformTimesteps"}, kind=Corruption)
    refused(r"'medmdm\.nowhere\.Mine' cannot be imported", instantiate, {"_target_": "medmdm.nowhere.Mine"}, trust=True)
    assert instantiate({"_target_": "builtins.dict", "a": 1}, trust=True) == {"a": 1}
