import pytest
import torch
from torch import Tensor

from medmdm.backbones.colours import FeatureColours, coloured
from medmdm.backbones.feature_maps import stack


def maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.linspace(3, 0.5, shape[1]).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("channels", [[5], [4, 3], [3]])
def test_equals_the_singular_vectors_of_all_pixels(channels: list[int]) -> None:
    images = [[maps(1, c, 6 // (i + 1), 10 // (i + 1), seed=9 * n + i) for i, c in enumerate(channels)] for n in (1, 2)]
    size = (6, 10)
    colours = FeatureColours.fit(images, size)
    pixels = torch.cat([stack(one, size)[0].flatten(1).T for one in images]).double()
    centred = pixels - pixels.mean(0)
    vectors = torch.linalg.svd(centred, full_matrices=False)[2][:3].T
    torch.testing.assert_close((colours.axes.T @ vectors).abs(), torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (colours.axes.gather(0, colours.axes.abs().argmax(0, keepdim=True)) > 0).all()
    values = centred @ colours.axes
    for n, one in enumerate(images):
        found = colours(one, size)
        assert found.shape == (1, 3, *size)
        own = values[60 * n : 60 * (n + 1)]
        low, high = (torch.quantile(values, share, dim=0) for share in (0.02, 0.98))
        expected = (2 * (own - low) / (high - low) - 1).clamp(-1, 1).T.reshape(3, *size)
        torch.testing.assert_close(found[0].double(), expected, atol=1e-5, rtol=0)


def test_colours_are_the_same_for_all_images_and_each_time() -> None:
    first, second = [maps(1, 4, 5, 7)], [maps(1, 4, 5, 7, seed=1)]
    colours = FeatureColours.fit([first, second], (5, 7))
    again = FeatureColours.fit([first, second], (5, 7))
    assert torch.equal(colours.axes, again.axes)
    both = torch.cat([*first, *second])
    torch.testing.assert_close(colours([both], (5, 7)), torch.cat([colours(first, (5, 7)), colours(second, (5, 7))]))
    # What shows: a pixel of the same features has the same colour wherever it is.
    moved = [first[0].flip(-1)]
    torch.testing.assert_close(colours(moved, (5, 7)), colours(first, (5, 7)).flip(-1))


@pytest.mark.parametrize("channels", [1, 2])
def test_of_few_features_the_other_colours_stay_in_the_middle(channels: int) -> None:
    image = [maps(1, channels, 5, 7)]
    found = FeatureColours.fit([image], (5, 7))(image, (5, 7))
    assert found[:, :channels].std() > 0.1
    assert (found[:, channels:] == 0).all()


def test_features_that_do_not_vary_are_grey() -> None:
    image = [torch.full((1, 4, 5, 7), 3.3)]
    assert (FeatureColours.fit([image], (5, 7))(image, (5, 7)) == 0).all()


def test_volumes() -> None:
    image = [torch.randn(1, 4, 2, 3, 4, generator=torch.Generator().manual_seed(0))]
    assert FeatureColours.fit([image], (4, 6, 8))(image, (4, 6, 8)).shape == (1, 3, 4, 6, 8)


def test_large_pictures_are_coloured_in_fewer_places() -> None:
    image = [maps(1, 4, 160, 240).cumsum(2).cumsum(3)]  # smooth
    (found,) = coloured([image], (160, 240))  # type: ignore[misc]
    exact = FeatureColours.fit([image], (160, 240))(image, (160, 240))[0]
    assert found.shape == (3, 160, 240)
    assert float((found - exact).abs().mean()) < 0.1
    small = [maps(1, 4, 5, 7)]
    (found,) = coloured([small], (5, 7))  # type: ignore[misc]
    assert torch.equal(found, FeatureColours.fit([small], (5, 7))(small, (5, 7))[0])
    assert coloured([[*small, torch.full((1, 1, 2, 2), float("nan"))]], (5, 7)) is None
