"""Patches that change places, turn or shift."""

import numpy as np
import pytest
import torch

from medmdm.corruption import PatchMasking, PatchRotation, PatchShift, PatchShuffle
from tests.corruption.made import images, seeded
from tests.made import refused


def patches(image: torch.Tensor, edge: int) -> list[torch.Tensor]:
    """The patches of ``[C, H, W]``, row after row."""
    height, width = image.shape[1:]
    return [image[:, r : r + edge, c : c + edge] for r in range(0, height, edge) for c in range(0, width, edge)]


@pytest.mark.parametrize("kind", [PatchShuffle, PatchRotation, PatchShift])
@pytest.mark.parametrize("shape", [(3, 2, 8, 12), (3, 1, 4, 8, 12)])
def test_every_pixel_comes_from_where_it_says(kind: type, shape: tuple[int, ...]) -> None:
    corrupt = kind(1000, 4, 3) if kind is PatchShift else kind(1000, 4)
    x0, t = images(*shape), torch.tensor([0, 400, 999])
    result = corrupt(x0, t, seeded(0))
    for before, after, source in zip(x0, result.x_t, result.source, strict=True):
        for channel in range(shape[1]):
            assert torch.equal(before[channel].flatten()[source.flatten()].reshape(source.shape), after[channel])
    assert torch.equal(result.x_t[0], x0[0])  # nothing happens at t = 0
    assert result.scale is None
    still = result.visible.bool().expand_as(x0)
    assert torch.equal(result.x_t[still], x0[still])


def test_shuffled_patches_are_a_permutation_without_fixed_points() -> None:
    x0, t = images(40, 2, 12, 16), torch.full((40,), 420)  # 12 patches, 6 trade places (floor(12 * 0.58) = 6 stay)
    result = PatchShuffle(1000, 4)(x0, t, seeded(1))
    masked = PatchMasking(1000, 4)(x0, t, seeded(1)).visible
    assert torch.equal(result.visible, masked)
    for before, after, visible in zip(x0, result.x_t, result.visible, strict=True):
        old, new, stays = patches(before, 4), patches(after, 4), [bool(v.all()) for v in patches(visible, 4)]
        assert sum(stays) == 6
        found = [next(i for i, o in enumerate(old) if torch.equal(o, n)) for n in new]
        assert sorted(found) == list(range(12))
        assert all((place == came) == stay for place, (came, stay) in enumerate(zip(found, stays, strict=True)))


def test_where_patches_go_is_uniform() -> None:
    repeats = 3000
    x0 = torch.arange(6.0).reshape(1, 1, 2, 3).expand(repeats, 1, 2, 3) / 6
    shown = (PatchShuffle(1000, 1)(x0, torch.full((repeats,), 999), seeded(2)).x_t * 6).round().long().flatten(1)
    for place in range(6):
        share = torch.bincount(shown[:, place], minlength=6) / repeats
        expected = torch.full((6,), 0.2)
        expected[place] = 0
        assert (share - expected).abs().max() < 4.5 * (0.2 * 0.8 / repeats) ** 0.5


def test_turned_patches_are_numpy_rotations() -> None:
    x0, t = images(60, 2, 8, 12), torch.full((60,), 999)
    result = PatchRotation(1000, 4)(x0, t, seeded(3))
    seen = {1: 0, 2: 0, 3: 0}
    for before, after in zip(x0, result.x_t, strict=True):
        for old, new in zip(patches(before, 4), patches(after, 4), strict=True):
            fits = [k for k in (1, 2, 3) if np.array_equal(np.rot90(old.numpy(), k, (1, 2)), new.numpy())]
            assert len(fits) == 1
            seen[fits[0]] += 1
    assert all(abs(n / 360 - 1 / 3) < 4.5 * (2 / 9 / 360) ** 0.5 for n in seen.values())
    half = PatchRotation(1000, 4)(x0, torch.full((60,), 500), seeded(3))
    assert torch.equal(half.visible, PatchMasking(1000, 4)(x0, torch.full((60,), 500), seeded(3)).visible)


def test_shifts_read_the_mirrored_image_and_grow_with_t() -> None:
    x0 = images(30, 1, 8, 12)
    for t, reach in ((0, 0), (166, 0), (167, 1), (500, 2), (999, 3)):  # round(3 * t / 1000), halves up
        result = PatchShift(1000, 4, 3)(x0, torch.full((30,), t), seeded(4))
        seen = set()
        for before, after in zip(x0[:, 0].numpy(), result.x_t[:, 0].numpy(), strict=True):
            wide = np.pad(before, 3, mode="reflect")
            for r in (0, 4):
                for c in (0, 4, 8):
                    fits = [
                        (dr, dc)
                        for dr in range(-3, 4)
                        for dc in range(-3, 4)
                        if np.array_equal(wide[r + 3 + dr :, c + 3 + dc :][:4, :4], after[r : r + 4, c : c + 4])
                    ]
                    assert len(fits) == 1
                    seen.add(max(abs(n) for n in fits[0]))
        assert seen == set(range(reach + 1))


def test_bad_settings_are_refused() -> None:
    refused("cannot be turned", lambda: PatchRotation(1000, [4, 8]))
    refused("max_shift", lambda: PatchShift(max_shift=0))
    refused("does not fit", lambda: PatchShift(1000, 4, 8)(images(1, 1, 8, 8), torch.tensor([0])))
    refused("patch_size", lambda: PatchShuffle(1000, 0))
    refused("cannot be cut", lambda: PatchShuffle(1000, 5)(images(1, 1, 8, 8), torch.tensor([0])))
