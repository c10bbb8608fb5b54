import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from torch.nn import functional as F
from torch.testing import assert_close

from medmdm.backbones import feature_maps
from tests.made import refused

# (output size, [(channels, map size), ...]): square, non-square, no multiples, one pixel, one channel, 3-D, larger maps
CASES = [
    ((32, 32), [(6, (4, 4)), (5, (8, 8)), (3, (32, 32))]), ((40, 56), [(5, (5, 7)), (4, (10, 14)), (3, (20, 28))]),
    ((37, 51), [(5, (5, 7)), (4, (10, 13)), (1, (19, 28))]), ((9, 1), [(2, (3, 1)), (1, (1, 1))]),
    ((8, 12, 10), [(3, (2, 3, 5)), (2, (4, 6, 10))]), ((5, 6), [(2, (7, 9)), (2, (5, 6))]),
]  # fmt: skip
IDS = ["square", "multiples", "odd", "thin", "volume", "larger"]


def draw(shapes: list, batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A mean away from zero: sums must not live from cancellation.
    return [torch.randn(batch, c, *spatial, generator=generator) + 1 for c, spatial in shapes]


def reference(maps: list[torch.Tensor], size: tuple[int, ...]) -> torch.Tensor:
    """``[B, C, P]`` in float64, by torch's interpolation."""
    mode = "bilinear" if len(size) == 2 else "trilinear"
    large = [F.interpolate(f.double(), size=size, mode=mode, align_corners=False) for f in maps]
    return torch.cat(large, dim=1).flatten(2)


@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_stack_is_interpolation_and_concatenation(size: tuple, shapes: list) -> None:
    maps = draw(shapes, batch=2)
    assert_close(feature_maps.stack(maps, size).flatten(2).double(), reference(maps, size), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
@pytest.mark.parametrize("kind", ["global_l2", "rms"])
def test_norm_from_small_maps_is_that_of_the_stack(size: tuple, shapes: list, kind: str) -> None:
    maps = draw(shapes, batch=2)
    x = reference(maps, size).flatten(1)
    norm = x.norm(dim=1) if kind == "global_l2" else x.square().mean(1).sqrt()
    assert_close(1 / feature_maps.factor(maps, size, kind), norm, rtol=1e-5, atol=0)
    scaled = feature_maps.stack(feature_maps.normalize(maps, size, kind), size).flatten(1)
    assert_close(scaled.double(), x / norm[:, None], rtol=1e-4, atol=1e-5)


SURROUNDED = [(2, 3, 9, 14), (1, 1, 7, 5), (1, 4, 1, 1), (1, 2, 1, 6), (2, 1, 3, 2), (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SURROUNDED, ids=str)
@pytest.mark.parametrize("width", [1, 3, 5, 13])
def test_surroundings_are_those_of_scipy_and_of_a_loop(shape: tuple[int, ...], width: int) -> None:
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 100  # a mean far from zero
    mean, deviation = feature_maps.surroundings(f, width, deviation=True)
    spatial = (1, 1, *[width] * (len(shape) - 2))
    expected = uniform_filter(f.double().numpy(), spatial, mode="reflect")
    assert_close(mean.double(), torch.from_numpy(expected), rtol=1e-6, atol=0)
    assert torch.equal(feature_maps.surroundings(f, width)[0], mean)
    reach = [(n // 2, n // 2) for n in spatial]
    padded = np.pad(f.double().numpy(), reach, mode="symmetric")
    brute = np.zeros(shape)
    for place in np.ndindex(*shape):
        brute[place] = padded[tuple(slice(i, i + n) for i, n in zip(place, spatial, strict=True))].std()
    assert_close(deviation.double(), torch.from_numpy(brute), rtol=1e-4, atol=1e-5)


def test_surroundings_of_flat_regions_do_not_deviate() -> None:
    f = torch.full((1, 1, 6, 8), 1234.567)
    mean, deviation = feature_maps.surroundings(f, 5, deviation=True)
    assert_close(mean, f)
    assert deviation.max() < 1e-3
    assert feature_maps.surroundings(f.half(), 5, deviation=True)[1].dtype == torch.float16


@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_standardised_channels_are_those_of_the_stack(size: tuple, shapes: list) -> None:
    maps = draw(shapes, batch=2)
    scaled = feature_maps.stack(feature_maps.normalize(maps, size, "standardize"), size).flatten(2)
    x = reference(maps, size)
    expected = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    assert_close(scaled.double(), expected, rtol=1e-4, atol=1e-4)


def test_standardisation_is_instance_normalisation_where_nothing_is_up_sampled() -> None:
    (f,) = draw([(3, (5, 6))], batch=2)
    (scaled,) = feature_maps.normalize([f], (5, 6), "standardize")
    assert_close(scaled, F.instance_norm(f), rtol=1e-5, atol=1e-5)


def test_a_constant_channel_far_from_zero_stays_finite_and_small() -> None:
    (scaled,) = feature_maps.normalize([torch.full((1, 2, 3, 5), 1e4)], (7, 9), "standardize")
    assert scaled.abs().max() < 1


def test_no_normalisation_leaves_the_maps() -> None:
    maps = draw(CASES[0][1])
    assert all(a is b for a, b in zip(feature_maps.normalize(maps, (32, 32), "none"), maps, strict=True))


def test_an_unknown_normalisation_is_refused() -> None:
    refused("'l2'", feature_maps.normalize, draw(CASES[0][1]), (32, 32), "l2")


def test_a_blank_image_has_no_infinite_features() -> None:
    assert feature_maps.normalize([torch.zeros(1, 3, 4, 4)], (8, 8), "global_l2")[0].abs().max() == 0


@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_gathered_pixels_are_those_of_the_stack(size: tuple, shapes: list) -> None:
    maps = draw(shapes)
    pixels = torch.randint(math.prod(size), (50,), generator=torch.Generator().manual_seed(1))
    expected = reference(maps, size)[0].T[pixels]
    assert_close(feature_maps.gather(maps, pixels, size).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cropped", [False, True], ids=["whole", "cropped"])
@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_sums_of_products_are_those_of_the_pixels(size: tuple, shapes: list, cropped: bool) -> None:
    maps = draw(shapes)
    crop = tuple(max(1, n - 1 - axis) for axis, n in enumerate(size)) if cropped else size
    index = (slice(None), *(slice(0, n) for n in crop))
    x = reference(maps, size)[0].unflatten(1, size)[index].flatten(1)
    y = torch.rand(2, *crop, generator=torch.Generator().manual_seed(2))
    tolerance = {"rtol": 1e-9, "atol": 1e-8}
    assert_close(feature_maps.gram(maps, size, crop), x @ x.T, **tolerance)
    assert_close(feature_maps.sum_products(maps, y, size), x @ y.double().flatten(1).T, **tolerance)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.tuples(st.integers(1, 6), st.integers(1, 6))), min_size=1, max_size=3),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_any_sizes(shapes: list, size: tuple[int, int]) -> None:
    maps = draw(shapes, seed=len(shapes))
    x = reference(maps, size)[0]
    assert_close(feature_maps.gram(maps, size), x @ x.T, rtol=1e-9, atol=1e-9)
    assert 1 / feature_maps.factor(maps, size, "global_l2") == pytest.approx([float(x.norm())], rel=1e-6, abs=1e-12)
    assert_close(feature_maps.gather(maps, torch.arange(math.prod(size)), size).double(), x.T, rtol=0, atol=1e-5)
