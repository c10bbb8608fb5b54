"""Maps of objects against loops over pixels, and how mirrored ones are put back."""

import math

import numpy as np
import pytest
import torch

from medmdm.heads.object_maps import activated, by_name, channels, check_maps, mirrored, places, targets
from tests.made import refused

ALL = ("distance", "hv", "boundary", "centres")


def touching(rows: int = 23, columns: int = 31) -> np.ndarray:
    """Two touching discs of unlike size, an L that the edge cuts off, one pixel alone and one at a corner of a disc."""
    y, x = np.mgrid[:rows, :columns]
    objects = np.zeros((rows, columns), np.int64)
    objects[(y - 8) ** 2 + (x - 9) ** 2 <= 25] = 7
    objects[((y - 9) ** 2 + (x - 17) ** 2 <= 16) & (objects == 0)] = 3
    objects[14:, 25:28] = 12
    objects[19:22, 20:28] = 12
    objects[2, 25] = 300
    objects[14, 9] = 1  # below the disc 7, which ends at row 13
    return objects


def loops(objects: np.ndarray, sigma: float = 2.0) -> dict[str, np.ndarray]:
    """Every map by the sentence that describes it, one pixel after the other."""
    shape = objects.shape
    found = {name: np.zeros((2 if name == "hv" else 1, *shape)) for name in ALL}
    every = [(r, c) for r in range(shape[0]) for c in range(shape[1])]
    for number in set(objects[objects > 0].tolist()):
        own = [place for place in every if objects[place] == number]
        others = [place for place in every if objects[place] != number]
        away = {place: min((math.dist(place, other) for other in others), default=1.0) for place in own}
        centre = [sum(place[axis] for place in own) / len(own) for axis in (0, 1)]
        for place in own:
            found["distance"][0][place] = away[place] / max(away.values())
            near = [(place[0] + a, place[1] + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            within = [n for n in near if 0 <= n[0] < shape[0] and 0 <= n[1] < shape[1]]
            found["boundary"][0][place] = any(objects[n] != number for n in within)
            for channel, axis in ((0, 1), (1, 0)):  # horizontal first
                offset = place[axis] - centre[axis]
                same_side = [abs(p[axis] - centre[axis]) for p in own if (p[axis] - centre[axis]) * offset > 0]
                found["hv"][channel][place] = offset / max(same_side, default=1.0)
        for place in every:
            height = math.exp(-(math.dist(place, centre) ** 2) / (2 * sigma**2))
            found["centres"][0][place] = max(found["centres"][0][place], height)
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_targets_are_what_loops_find(turned: bool) -> None:
    objects = touching().T.copy() if turned else touching()
    made = by_name(targets(torch.from_numpy(objects), ALL).numpy(), ALL)
    for name, expected in loops(objects).items():
        near = 4e-4 if name == "centres" else 1e-5  # Gaussians end at four standard deviations
        np.testing.assert_allclose(made[name], expected, atol=near, err_msg=name)
    for number in (300, 1):  # of one pixel each
        place = tuple(np.argwhere(objects == number)[0])
        assert made["distance"][0][place] == made["boundary"][0][place] == made["centres"][0][place] == 1
        assert not made["hv"][:, place[0], place[1]].any()


def test_an_object_that_is_cut_off_or_fills_the_crop() -> None:
    objects = np.zeros((5, 9), np.int32)
    objects[:, :4] = 1
    distance = targets(objects, ["distance"])[0].numpy()
    np.testing.assert_allclose(distance, np.tile([1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0], (5, 1)))  # not from three sides
    assert (targets(np.ones((5, 9), np.int32), ["distance"]) == 1).all()
    assert not targets(np.ones((5, 9), np.int32), ["boundary"]).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 5)])
def test_nothing_there(shape: tuple[int, int]) -> None:
    made = targets(np.zeros(shape, np.int32), ALL)
    assert made.shape == (5, *shape)
    assert made.dtype == torch.float32
    assert not made.any()


def test_parts_that_do_not_touch_are_objects_of_their_own() -> None:
    parts = np.zeros((7, 12), np.int32)
    parts[1:4, 1:4] = parts[2:6, 7:11] = 5
    apart = parts.copy()
    apart[2:6, 7:11] = 9
    assert torch.equal(targets(parts, ALL), targets(apart, ALL))


def test_volumes() -> None:
    objects = np.zeros((4, 7, 6), np.int32)
    objects[1:4, 1:6, 1:5] = 2
    distance, boundary, centres = targets(objects, ["distance", "boundary", "centres"]).numpy()
    assert distance.max() == 1
    assert distance[3, 3, 2] == 1  # the last slice is no border
    assert boundary[1].sum() == 20
    assert boundary[3].sum() == 14  # the ring
    assert np.unravel_index(centres.argmax(), centres.shape) in [(2, 3, 2), (2, 3, 3)]
    refused("not for volumes", targets, objects, ["hv"])


@pytest.mark.parametrize("axes", [[2], [3], [2, 3]])
def test_maps_of_a_mirrored_image_are_put_back(axes: list[int]) -> None:
    objects = touching()
    names = ("boundary", "hv", "distance")
    classes = torch.randn(1, 2, *objects.shape)
    own = torch.cat([classes, targets(objects, names)[None]], 1)
    flipped = np.flip(objects, [axis - 2 for axis in axes]).copy()
    seen = torch.cat([classes.flip(axes), targets(flipped, names)[None]], 1)
    torch.testing.assert_close(mirrored(seen, axes, names), own)
    torch.testing.assert_close(mirrored(classes, axes, ()), classes.flip(axes))


def test_names_places_and_mistakes() -> None:
    names = ("hv", "boundary", "distance")
    assert channels(names) == 4
    assert places(names) == {"hv": slice(0, 2), "boundary": slice(2, 3), "distance": slice(3, 4)}
    values = torch.randn(4, 3, 5)
    out = activated(values, names)
    torch.testing.assert_close(out[2], values[2].sigmoid())
    assert torch.equal(out[[0, 1, 3]], values[[0, 1, 3]])
    refused("did you mean 'distance'", check_maps, ["distanse"])
    refused("twice", check_maps, ["hv", "hv"])
    refused("give a list", check_maps, "hv")
    refused("give a list", check_maps, [])
