"""Blur, loss of resolution, missing frequencies, missing stains, hidden regions."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed
from skimage.measure import block_reduce
from skimage.segmentation import slic

from medmdm.corruption import Blur, Downsample, FrequencyMasking, RegionMasking, StainMasking
from tests.corruption.made import images, seeded
from tests.made import refused


@pytest.mark.parametrize("shape", [(3, 2, 20, 13), (3, 1, 7, 9, 6)])
def test_blur_is_scipys(shape: tuple[int, ...]) -> None:
    x0, t = images(*shape), torch.tensor([0, 300, 999])
    result = Blur(1000, 2.0)(x0, t)
    assert torch.equal(result.x_t[0], x0[0])
    for before, after, time in zip(x0, result.x_t, t, strict=True):
        for old, new in zip(before, after, strict=True):
            sigma = 2.0 * float(time) / 1000
            expected = ndimage.gaussian_filter(old.double().numpy(), sigma, mode="nearest", radius=6) if sigma else old
            assert np.allclose(new, expected, atol=1e-5)
    assert result.visible.min() == 1
    assert result.scale is None


@pytest.mark.parametrize("shape", [(4, 2, 16, 8), (4, 1, 4, 8, 12)])
def test_downsampling_is_a_mean_over_squares(shape: tuple[int, ...]) -> None:
    x0, t = images(*shape), torch.tensor([0, 333, 334, 999])
    result = Downsample(1000, 2)(x0, t)
    for before, after, level in zip(x0, result.x_t, [0, 0, 1, 2], strict=True):
        for old, new in zip(before.numpy(), after.numpy(), strict=True):
            small = block_reduce(old, 2**level, np.mean)
            expected = small
            for axis in range(old.ndim):
                expected = expected.repeat(2**level, axis)
            assert np.allclose(new, expected, atol=1e-6)
    refused("cannot be halved", lambda: Downsample(1000, 4)(x0, t))


@pytest.mark.parametrize("patch", [None, 4, [8, 4]])
def test_bands_of_the_spectrum_are_missing(patch: object) -> None:
    x0 = images(50, 2, 16, 12)
    x0 += 0.5 - x0.mean((2, 3), keepdim=True)
    corrupt = FrequencyMasking(1000, 4, patch)
    result = corrupt(x0, torch.full((50,), 500), seeded(0)).x_t
    rows, columns = (16, 12) if patch is None else (4, 4) if patch == 4 else (8, 4)
    assert torch.allclose(result.mean((2, 3)), x0.mean((2, 3)), atol=1e-6)
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None]) / (0.5 * 2**0.5)
    ring = np.minimum((radius * 4).astype(int), 3)
    for before, after in zip(x0, result, strict=True):
        gone, kept = set(range(4)), set(range(4))
        for r in range(0, 16, rows):
            for c in range(0, 12, columns):
                where = np.s_[:, r : r + rows, c : c + columns]
                old, new = np.fft.fft2(before[where].numpy()), np.fft.fft2(after[where].numpy())
                for band in range(4):
                    inside = (ring == band) & (radius > 0)
                    if not inside.any():  # small patches have few frequencies
                        continue
                    if np.abs(new[:, inside]).max() > 1e-4:
                        gone.discard(band)
                    if not np.allclose(new[:, inside], old[:, inside], atol=1e-4):
                        kept.discard(band)
        empty = set(range(4)) - set(ring[radius > 0].tolist())
        assert gone & kept == empty
        assert gone | kept == set(range(4))
        assert 2 - len(empty) <= len(gone - empty) <= 2
    whole = corrupt(x0, torch.zeros(50, dtype=torch.long), seeded(0)).x_t
    assert torch.allclose(whole, x0, atol=1e-5)
    refused("bands", lambda: FrequencyMasking(bands=1))
    refused("patch_size", lambda: FrequencyMasking(patch_size=0))


@pytest.mark.parametrize("stain", ["haematoxylin", "eosin"])
def test_a_missing_stain_is_scikit_images(stain: str) -> None:
    rng = np.random.default_rng(0)
    amounts = np.zeros((1, 8, 12, 3))
    amounts[..., :2] = rng.uniform(0.02, 0.2, (1, 8, 12, 2))
    light = hed2rgb(amounts)
    x0 = torch.from_numpy(light).permute(0, 3, 1, 2).float() * 2 - 1
    result = StainMasking(1000, 4, stain)(x0, torch.tensor([500]), seeded(0))
    found = rgb2hed(((result.x_t + 1) / 2).permute(0, 2, 3, 1).numpy())
    expected = rgb2hed(light)
    hidden = result.visible[0, 0].numpy() == 0
    assert hidden.sum() == 3 * 16
    expected[0, hidden, ["haematoxylin", "eosin"].index(stain)] = 0
    assert np.allclose(found, expected, atol=2e-3)
    still = result.visible.bool().expand_as(x0)
    assert torch.equal(result.x_t[still], x0[still])


def test_either_stain_and_white_and_black_and_what_is_refused() -> None:
    x0 = images(20, 3, 8, 8)
    both = StainMasking(1000, 4)(x0, torch.full((20,), 999), seeded(0)).x_t
    single = [StainMasking(1000, 4, s)(x0, torch.full((20,), 999), seeded(0)).x_t for s in ("haematoxylin", "eosin")]
    which = torch.stack(
        [(both == one).all(1).reshape(20, 2, 4, 2, 4).transpose(2, 3).flatten(3).all(3) for one in single]
    )
    assert which.any(0).all()
    assert 0.2 < float(which[0].float().mean()) < 0.8
    for value in (-1.0, 1.0):
        flat = StainMasking(1000, 4)(torch.full((1, 3, 8, 8), value), torch.tensor([999]), seeded(0)).x_t
        assert torch.isfinite(flat).all()
        assert flat.abs().max() <= 1
    refused("red, green and blue", lambda: StainMasking()(images(1, 1, 8, 8), torch.tensor([0])))
    refused("stain must be one of", lambda: StainMasking(stain="hematoxylin"))


def test_regions_are_hidden_whole_up_to_the_share() -> None:
    regions = torch.zeros(3, 1, 8, 10, dtype=torch.long)
    regions[0, :, :4], regions[0, :, 4:, 5:] = 7, 3  # numbers need not be in order
    regions[1, :, 2:4, 2:5] = 1
    x0 = images(3, 2, 8, 10) + 2
    hidden_shares = []
    for seed in range(40):
        x_t, visible = RegionMasking()(x0, torch.tensor([500, 500, 999]), seeded(seed), regions=regions)
        assert torch.equal(x_t, x0 * visible)
        for one, seen in zip(regions, visible, strict=True):
            for number in one.unique():
                assert len(seen[one == number].unique()) == 1
        hidden_shares.append((1 - visible).mean((1, 2, 3)).tolist())
    for share, one in zip(np.array(hidden_shares)[:, 0], [0.5] * 40, strict=True):
        assert abs(share - one) <= 0.25 + 1e-6  # half of the largest region
    assert {round(s, 3) for s in np.array(hidden_shares)[:, 2]} == {1.0}  # one region, nearly everything to hide


def test_where_a_map_has_no_region_superpixels_are_hidden() -> None:
    x0 = images(3, 1, 8, 10)
    regions = torch.full((3, 1, 8, 10), -1)
    regions[1, :, 2:5, 3:9], regions[2, :, :, :], regions[2, :, 2:5, 3:9] = 4, 0, 7
    corrupt, t = RegionMasking(1000, 6, 10), torch.tensor([300, 600, 700])
    found, cut = corrupt.found(x0, regions=regions), corrupt.superpixels(x0)
    assert torch.equal(found[0], cut[0])
    assert torch.equal(found[1] == 4, regions[1] == 4)
    assert torch.equal(found[1][regions[1] < 0] - 5, cut[1][regions[1] < 0])
    assert torch.equal(found[2], regions[2])
    mixed = corrupt(x0, t, [seeded(n) for n in range(3)], regions=regions).visible
    plain = corrupt(x0, t, [seeded(n) for n in range(3)]).visible
    assert torch.equal(mixed[0], plain[0])
    for n in (1, 2):  # whatever batch it is in
        alone = corrupt(x0[n : n + 1], t[n : n + 1], [seeded(n)], regions=regions[n : n + 1]).visible
        assert torch.equal(mixed[n : n + 1], alone)


def test_superpixels_are_scikit_images() -> None:
    x0 = torch.from_numpy(ndimage.gaussian_filter(images(2, 3, 24, 32).numpy(), (0, 0, 2, 2)))
    corrupt = RegionMasking(1000, 12, 0.2)
    found = corrupt.superpixels(x0)
    for image, one in zip(x0.numpy(), found, strict=True):
        expected = slic((image + 1) / 2, 12, 0.2, channel_axis=0, start_label=0, convert2lab=False)
        assert np.array_equal(one[0].numpy(), expected)
    visible = corrupt(x0, torch.tensor([300, 600]), seeded(0)).visible
    for one, seen, share in zip(found, visible, (0.3, 0.6), strict=True):
        largest = torch.bincount(one.flatten()).max() / one.numel()
        assert abs(float(1 - seen.mean()) - share) <= float(largest) / 2 + 1e-6
    volume = corrupt(images(1, 1, 4, 8, 8), torch.tensor([500]), seeded(0))
    assert volume.visible.shape == (1, 1, 4, 8, 8)
    refused("regions", lambda: RegionMasking(regions=0))
    refused("compactness", lambda: RegionMasking(compactness=0))
    refused("max_sigma", lambda: Blur(max_sigma=0))
    refused("levels", lambda: Downsample(levels=0))
