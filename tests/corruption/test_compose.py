"""Several corruptions after one another, or one drawn for each image."""

import torch

from medmdm.components import instantiate, to_config
from medmdm.corruption import (
    Blur,
    Compose,
    ContentMasking,
    GaussianNoise,
    MaskedNoise,
    PatchMasking,
    PatchRotation,
    PatchShuffle,
    RandomChoice,
)
from tests.corruption.made import images, seeded
from tests.made import refused


def test_parts_act_one_after_another() -> None:
    x0, t = images(3, 2, 8, 12), torch.tensor([100, 500, 900])
    together = Compose(1000, [Blur(1000, 2.0), PatchMasking(1000, 4)])(x0, t, seeded(0))
    blurred = Blur(1000, 2.0)(x0, t).x_t
    masked = PatchMasking(1000, 4)(blurred, t, seeded(0))
    assert torch.equal(together.x_t, masked.x_t)
    assert torch.equal(together.visible, masked.visible)
    assert together.scale is together.source is None


def test_affine_parts_are_affine_and_spatial_ones_spatial() -> None:
    x0, t = images(3, 2, 8, 12), torch.tensor([100, 500, 900])
    parts = [GaussianNoise(), PatchMasking(1000, 4), MaskedNoise(1000, 4)]
    affine = Compose(1000, parts)(x0, t, [seeded(i) for i in range(3)])
    assert torch.allclose(affine.scale * x0 + affine.offset, affine.x_t, atol=1e-6)
    moved = Compose(1000, [PatchShuffle(1000, 4), PatchRotation(1000, 4)])(x0, t, seeded(1))
    for before, after, source in zip(x0, moved.x_t, moved.source, strict=True):
        assert torch.equal(before.flatten(1)[:, source.flatten()].reshape(after.shape), after)
    assert Compose(1000, [PatchShuffle(1000, 4), PatchMasking(1000, 4)])(x0, t, seeded(1)).source is None


def test_one_is_drawn_for_each_image_with_its_weight() -> None:
    x0, t = images(2000, 1, 4, 4), torch.full((2000,), 500)
    corrupt = RandomChoice(1000, [PatchMasking(1000, 2), Blur(1000, 1.0)], [3, 1])
    result = corrupt(x0, t, seeded(0))
    masked = (result.visible == 0).flatten(1).any(1)
    assert abs(float(masked.float().mean()) - 0.75) < 4.5 * (0.75 * 0.25 / 2000) ** 0.5
    assert torch.equal(result.x_t[~masked], Blur(1000, 1.0)(x0, t).x_t[~masked])


def test_each_part_gets_what_it_takes() -> None:
    x0, t = images(8, 1, 8, 8), torch.full((8,), 500)
    given = torch.zeros(8, 1, 8, 8)
    given[..., 4:] = 1
    by_map = ContentMasking(1000, 4, "map", temperature=1e-3)
    for corrupt in (Compose(1000, [by_map, Blur()]), RandomChoice(1000, [by_map, by_map])):
        visible = corrupt(x0, t, [seeded(i) for i in range(8)], content=given).visible
        assert torch.equal(visible, 1 - given)


def test_round_trip_and_what_is_refused() -> None:
    corrupt = Compose(1000, [PatchShuffle(1000, 4), RandomChoice(1000, [Blur(), GaussianNoise()], [1, 2])])
    again = instantiate(to_config(corrupt))
    assert to_config(again) == to_config(corrupt)
    x0, t = images(2, 1, 8, 8), torch.tensor([300, 800])
    assert torch.equal(again(x0, t, seeded(3)).x_t, corrupt(x0, t, seeded(3)).x_t)
    refused("at least one corruption", lambda: Compose())
    refused("give both the same", lambda: Compose(1000, [Blur(500)]))
    refused("weights must be", lambda: RandomChoice(1000, [Blur()], [1, 2]))
    refused("weights must be", lambda: RandomChoice(1000, [Blur()], [0]))
