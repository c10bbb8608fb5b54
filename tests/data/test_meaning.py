"""What the numbers of masks mean together."""

import numpy as np
import pytest

from medmdm.data.meaning import count_parts, look_like_objects, meaning_of


@pytest.mark.parametrize(("masks", "expected"), [
    ([({0, 1, 2, 3}, 3), ({0, 1, 2, 3, 4, 5}, 5), ({1}, 1)], True),
    ([({0, 2, 7, 9}, 3), ({0, 3, 4, 5, 11, 12, 13}, 7), ({0}, 0), ({0, 1}, 1)], True),  # numbers of a crop
    ([({0, *range(1, 21)}, 21), ({0, 1}, 1), ({0, 2}, 1)], True),  # one is cut in two
    ([({0, 1, 2, 3}, 3), ({0, 1, 2, 3, 4, 5}, 5)], False),  # of two masks
    ([({0, 1, 2, 3, 4, 5}, 5)] * 4, False),  # organs, all in each
    ([({0, 1, 2, 3}, 9), ({0, 1, 2, 3, 4, 5}, 14), ({0, 1}, 4)], False),  # kinds of cells
    ([({0, 1, 2}, 2), ({0, 1, 2, 3}, 3), ({0, 1}, 1)], False),  # few
    ([({0, 1}, 1)] * 5, False), ([], False), ([({0}, 0)] * 3, False),
])  # fmt: skip
def test_numbers_of_objects(masks: list[tuple[set[int], int]], expected: bool) -> None:
    assert look_like_objects(masks) == expected
    counted = {f"{n}.png": dict.fromkeys(mask, 10) for n, (mask, _) in enumerate(masks)}
    parts = {f"{n}.png": found for n, (_, found) in enumerate(masks)}
    assert any("--label-type instances" in notice for notice in meaning_of(counted, parts).notices) == expected
    assert not meaning_of(counted).notices


def test_parts_are_of_one_number() -> None:
    mask = np.array([[1, 1, 2, 0, 3], [0, 0, 2, 3, 0], [1, 0, 0, 0, 0]])
    assert count_parts(mask) == 4  # both of 1, 2, and 3 by a corner
    assert count_parts(np.zeros((3, 4), int)) == 0
