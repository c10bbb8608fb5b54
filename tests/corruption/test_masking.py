"""Masks that choose what they hide: rectangles, tubes, content."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.filters import threshold_otsu

from medmdm.corruption import BlockMasking, ContentMasking, PatchMasking, TubeMasking
from tests.corruption.made import images, seeded
from tests.made import refused


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 8)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["block", "gradient", "entropy", "tissue", "map"]),
    st.integers(0, 2**31),
)
def test_exactly_as_many_patches_are_hidden_as_by_patch_masking(grid, patch, kind, seed) -> None:
    count, t = math.prod(grid), torch.tensor([0, 1, 250, 500, 999])
    x0 = images(5, 2, grid[0] * patch, grid[1] * patch, seed=seed) + 2  # nowhere zero
    x0[1] = 0.5  # a constant image, as in the corner of a slide
    if kind == "block":
        corrupt, given_map = BlockMasking(1000, patch), {}
    else:
        corrupt = ContentMasking(1000, patch, kind)
        given_map = {"content": x0[:, :1]} if kind == "map" else {}
    x_t, visible = corrupt(x0, t, seeded(seed), **given_map)
    blocks = visible.reshape(5, grid[0], patch, grid[1], patch).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.amin(3), blocks.amax(3))  # a patch is hidden as a whole
    kept = [math.floor(count * (1 - Fraction(int(i), 1000))) for i in t]
    assert blocks.amin(3).sum((1, 2)).tolist() == kept
    assert torch.equal(x_t, x0 * visible)


def test_blocks_are_few_large_and_within_the_ranges() -> None:
    # One rectangle alone (`blocks` 1): what is hidden first must fill its bounding box, whatever its size.
    x0 = torch.ones(200, 1, 32, 48)
    alone = BlockMasking(1000, 1, scale=(0.1, 0.1), aspect=2.0, blocks=1)
    hidden = 1 - alone(x0, torch.full((200,), 50), seeded(0)).visible[:, 0].numpy()  # 76 pixels, the block has ~154
    for mask in hidden:
        (rows, columns), n = np.nonzero(mask), int(mask.sum())
        assert ndimage.label(mask)[1] == 1
        width = np.ptp(columns) + 1
        assert np.ptp(rows) + 1 == math.ceil(n / width)  # row after row of one rectangle
        share = width / 48  # sqrt(0.1) at aspect 1, times or by sqrt(2) at most
        assert 0.1**0.5 / 2**0.5 - 1 / 48 <= share <= 0.1**0.5 * 2**0.5 + 1 / 48
    many = 1 - BlockMasking(1000, 1)(x0, torch.full((200,), 500), seeded(0)).visible[:, 0].numpy()
    scattered = 1 - PatchMasking(1000, 1)(x0, torch.full((200,), 500), seeded(0)).visible[:, 0].numpy()
    pieces = [np.mean([ndimage.label(mask)[1] for mask in masks]) for masks in (many, scattered)]
    assert pieces[0] < 3 < 50 < pieces[1]


def test_blocks_cover_every_place_in_two_and_three_dimensions() -> None:
    for shape in ((400, 1, 6, 8), (400, 1, 4, 6, 4)):
        hidden = 1 - BlockMasking(1000, 2)(torch.ones(shape), torch.full((400,), 500), seeded(1)).visible
        assert hidden.mean(0).min() > 0.2
        assert hidden.mean(0).max() < 0.8


def test_one_mask_for_all_slices() -> None:
    x0, t = images(3, 2, 6, 8, 12), torch.tensor([0, 500, 900])
    visible = TubeMasking(1000, [2, 4, 3])(x0, t, seeded(2)).visible
    assert torch.equal(visible, visible[:, :, :1].expand_as(visible))
    flat = PatchMasking(1000, [4, 3])(x0[:, :, 0], t, seeded(2)).visible
    assert torch.equal(visible[:, :, 3], flat)
    along = TubeMasking(1000, [2, 4, 3], axis=2)(x0, t, seeded(2)).visible
    assert torch.equal(along, along[..., :1].expand_as(along))
    assert not torch.equal(along, along[:, :, :1].expand_as(along))
    refused("axis 2", lambda: TubeMasking(1000, 2, axis=2)(images(1, 1, 4, 4), torch.tensor([3])))


def brute_content(kind: str, image: np.ndarray, patch: int) -> np.ndarray:
    """The content of each patch of ``[C, H, W]``, by loops."""
    grey = image.mean(0)
    if kind == "gradient":
        maps = np.sqrt(sum(g**2 for g in np.gradient(image.astype(float), axis=(1, 2)))).mean(0)
    elif kind == "tissue":
        maps = (grey <= threshold_otsu(grey)).astype(float)
    found = []
    for row in range(0, grey.shape[0], patch):
        for column in range(0, grey.shape[1], patch):
            where = np.s_[row : row + patch, column : column + patch]
            if kind == "entropy":
                counts = np.histogram(grey[where], bins=16, range=(-1, 1))[0]
                found.append(stats.entropy(counts, base=2))
            else:
                found.append(maps[where].mean())
    return np.array(found)


@pytest.mark.parametrize("kind", ["gradient", "entropy", "tissue"])
def test_content_is_measured_as_said(kind: str) -> None:
    x0 = images(2, 3, 8, 12)
    found = ContentMasking(1000, 4, kind).measure(x0).numpy()
    expected = np.stack([brute_content(kind, image.numpy(), 4) for image in x0])
    assert np.allclose(found, expected, atol=1e-6)


def test_probabilities_follow_the_content() -> None:
    # One of four patches hidden: it is each with probability softmax(z / temperature).
    repeats, content = 4000, torch.tensor([0.0, 1.0, 2.0, 5.0])
    x0 = torch.ones(repeats, 1, 2, 2)
    given = content.reshape(1, 1, 2, 2).expand_as(x0)
    z = (content - content.mean()) / content.std(correction=0)
    for temperature in (1.0, 0.5, -1.0):
        corrupt = ContentMasking(1000, 1, "map", temperature)
        hidden = 1 - corrupt(x0, torch.full((repeats,), 250), seeded(0), content=given).visible.flatten(1)
        assert hidden.sum(1).unique().tolist() == [1]
        expected = torch.softmax(z / temperature, 0)
        spread = (expected * (1 - expected) / repeats).sqrt()
        assert ((hidden.mean(0) - expected).abs() < 4.5 * spread).all()


def test_tissue_of_dark_and_bright_backgrounds() -> None:
    x0 = torch.full((1, 1, 4, 8), 0.9)
    x0[..., :4] = -0.5
    assert ContentMasking(1000, 4, "tissue").measure(x0).tolist() == [[1, 0]]
    assert ContentMasking(1000, 4, "tissue", bright_background=False).measure(x0).tolist() == [[0, 1]]


def test_bad_settings_are_refused() -> None:
    refused("content must be one of", lambda: ContentMasking(content="edges"))
    refused("temperature", lambda: ContentMasking(temperature=0))
    refused("temperature", lambda: ContentMasking(temperature=math.nan))
    refused("scale", lambda: BlockMasking(scale=(0.5, 0.1)))
    refused("aspect", lambda: BlockMasking(aspect=0.5))
    refused("blocks", lambda: BlockMasking(blocks=0))
    refused("axis", lambda: TubeMasking(axis=-1))
    refused("needs the map", lambda: ContentMasking(content="map")(images(1, 1, 8, 8), torch.tensor([0])))
    with pytest.raises(ValueError, match="takes"):
        PatchMasking()(images(1, 1, 8, 8), torch.tensor([0]), content=images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="content must broadcast"):
        ContentMasking(content="map")(images(1, 1, 8, 8), torch.tensor([0]), content=images(1, 8, 8))
