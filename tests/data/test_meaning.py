"""What the numbers of masks mean together."""

import pytest

from medmdm.data.meaning import look_like_objects, meaning_of


@pytest.mark.parametrize(("masks", "expected"), [
    ([{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}, {1}], True),
    ([{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}, {0, 1}, {0}, set()], True),
    ([{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}], False),  # of two masks
    ([{0, 1, 2, 3, 4, 5}] * 4, False),  # organs, all in each
    ([{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}, {0, 1, 4}], False),  # organs, some missing
    ([{0, 1, 2}, {0, 1, 2, 3}, {0, 1}], False),  # grades
    ([{0, 1}] * 5, False), ([], False), ([{0}, {0}, {0}], False),
])  # fmt: skip
def test_numbers_of_objects(masks: list[set[int]], expected: bool) -> None:
    assert look_like_objects(masks) == expected
    counted = {f"{n}.png": dict.fromkeys(mask, 10) for n, mask in enumerate(masks)}
    assert any("--label-type instances" in notice for notice in meaning_of(counted).notices) == expected
