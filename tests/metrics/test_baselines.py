from __future__ import annotations

import numpy as np
import pytest

from medmdm.metrics import mean_scores, pixel_scores
from medmdm.metrics.baselines import all_foreground, all_foreground_by, all_foreground_means, mean_mask

# 2 rows of 4: of seven known pixels two are of class 1, four of class 2, one is background; class 3 is nowhere.
TRUTH = np.array([[1, 1, 2, 2], [2, 2, 0, 255]], np.uint8)


def test_every_known_pixel_as_each_class_in_turn() -> None:
    rows = all_foreground(pixel_scores(np.zeros_like(TRUTH), TRUTH, 4, surface=False))
    dices = [row["dice"] for row in rows.values()]
    assert dices == pytest.approx([2 * 2 / (7 + 2), 2 * 4 / (7 + 4), 0])  # by hand: 2 |truth| / (|known| + |truth|)
    assert [row["iou"] for row in rows.values()] == pytest.approx([2 / 7, 4 / 7, 0])
    for number, row in rows.items():  # as the mask itself is scored, whatever mask the counts are of
        every = pixel_scores(np.full_like(TRUTH, number), TRUTH, 4, surface=False)
        for other in (every[number], all_foreground(every)[number]):
            np.testing.assert_equal(row, other)


def test_the_mean_is_over_the_classes_that_the_truth_holds() -> None:
    expected = {"dice": (4 / 9 + 8 / 11) / 2, "iou": (2 / 7 + 4 / 7) / 2}
    assert all_foreground_means(pixel_scores(TRUTH % 4, TRUTH, 4, surface=False)) == pytest.approx(expected)
    assert all_foreground_by(mean_scores, TRUTH, 4, 255) == pytest.approx(expected)


def test_one_class_ignored_pixels_and_an_empty_truth() -> None:
    one = np.where(TRUTH == 2, 0, TRUTH)
    for truth, ignore, dice in ((one, 255, 4 / 9), (one % 255, None, 4 / 10), (one * 0, 255, 0.0)):
        found = all_foreground_by(mean_scores, truth, 2, ignore)
        assert found["dice"] == pytest.approx(dice)
        assert found == all_foreground_means(pixel_scores(truth * 0, truth, 2, ignore=ignore, surface=False))
    unknown = np.full((2, 3), 255, np.uint8)
    assert np.isnan(all_foreground_by(mean_scores, unknown, 2, 255)["dice"])


def test_the_mean_of_masks_is_what_more_than_half_of_the_known_ones_say() -> None:
    masks = [
        [[1, 1, 2, 0], [255, 255, 1, 0]],
        [[1, 1, 0, 0], [255, 2, 2, 0]],
        [[1, 2, 2, 0], [255, 0, 0, 255]],
        [[1, 0, 0, 1], [255, 2, 255, 255]],
    ]
    found = mean_mask([np.array(mask, np.uint8) for mask in masks], 3, 255)
    # Of four: 1 has 4, 2 (one half is not enough), 0; 2 has 2; of known ones 2 has two of three, 1 one of three.
    assert found.tolist() == [[1, 0, 0, 0], [0, 2, 0, 0]]
    assert mean_mask([TRUTH], 3, 255).tolist() == [[1, 1, 2, 2], [2, 2, 0, 0]]
