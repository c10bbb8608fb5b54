from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import polygon2mask

from medmdm.reports.case_files import CaseArrays
from medmdm.reports.pictures import UNITS, CasePicture, draw_case, encode_map, picture_side, top_value
from tests.reports.runs import AFFINE, discs


def draw(truth: np.ndarray, found: np.ndarray | None = None, classes: int = 2, side: int = 640, **more) -> CasePicture:
    prediction = np.zeros_like(truth) if found is None else found
    return draw_case(CaseArrays(truth=truth, prediction=prediction, **more), classes, side)


def seen(picture: bytes | None) -> np.ndarray:
    assert picture is not None
    return np.asarray(Image.open(io.BytesIO(picture))).astype(int)


def filled(path: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill the outlines of a path, the even-odd way: what is inside of them."""
    inside = np.zeros(size, bool)
    for part in path.split("z")[:-1]:
        points = np.cumsum(np.array(re.findall(r"-?\d+", part), float).reshape(-1, 2), axis=0)
        inside ^= polygon2mask(size, points[:, ::-1] / UNITS - 0.5)  # a pixel's centre is at a half
    return inside


def disagreement(path: str, mask: NDArray[np.bool_]) -> float:
    return float((filled(path, mask.shape) ^ mask).sum()) / max(int(mask.sum()), 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_outlines_enclose_the_mask(seed: int) -> None:
    label = discs(np.random.default_rng(seed), (50, 70), 4)
    drawn = draw((label > 0).astype(np.uint8))
    assert disagreement(drawn.truth[1], label > 0) < 0.06  # outlines go through the middles of border pixels
    assert drawn.prediction == {}
    assert (drawn.height, drawn.width) == (50, 70)


def test_objects_have_outlines_of_their_own() -> None:
    objects = np.zeros((30, 30), np.uint16)
    objects[5:15, 5:15], objects[5:15, 15:25], objects[8:12, 8:12] = 300, 7, 0
    truth = (objects > 0).astype(np.uint8)
    assert draw(truth, truth_instances=objects).truth[1].count("M") == 3  # two objects that touch and a hole
    assert draw(truth).truth[1].count("M") == 2
    full = np.full((6, 9), 4, np.uint8)  # without background
    full[2, 3] = 9
    assert draw(np.ones_like(full), truth_instances=full).truth[1].count("M") == 3
    assert draw(np.ones((1, 1), np.uint8)).truth[1].count("M") == 1


def test_classes_are_outlined_apart_and_ignored_pixels_not_at_all() -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[:10, :10], truth[10:, 10:], truth[:5, 15:] = 1, 2, 255
    drawn = draw(truth, classes=3)
    assert set(drawn.truth) == {1, 2}
    assert disagreement(drawn.truth[2], truth == 2) < 0.06


def test_large_pictures_are_made_smaller_with_their_outlines() -> None:
    truth = np.zeros((600, 1200), np.uint8)
    truth[100:400, 300:900] = 1
    image = np.zeros((3, 600, 1200), np.uint8)
    image[0] = 255 * truth
    drawn = draw(truth, truth, side=300, image=image)
    assert (drawn.height, drawn.width) == (150, 300)
    assert seen(drawn.image).shape == (150, 300, 3)
    assert disagreement(drawn.truth[1], seen(drawn.image)[..., 0] > 128) < 0.03
    assert drawn.size < 20_000


@pytest.mark.parametrize("dtype", [np.bool_, np.uint16, np.float32, np.int32])
def test_intensities_of_any_type_become_visible(dtype: type) -> None:
    ramp = np.tile(np.linspace(0, 1 if dtype == np.bool_ else 1000, 40), (40, 1)).astype(dtype)[None]
    blank = np.zeros((40, 40), np.uint8)
    shown = seen(draw(blank, image=ramp).image)
    assert shown.shape == (40, 40)
    assert shown.max() - shown.min() > 250
    assert draw(blank, image=ramp * 0 + ramp[0, 0, 0]).image is not None  # all the same


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_window_is_drawn_from_black_to_white(dtype: type) -> None:
    ramp = np.tile(np.arange(100), (40, 1)).astype(dtype)[None]
    expected = np.clip((np.arange(100) - 20) / 40, 0, 1) * 255
    for image, window in ((ramp, [(20, 60)]), (np.concatenate([ramp] * 4), [(20, 60), (0, 1), (0, 1), (0, 1)])):
        shown = seen(draw(np.zeros((40, 100), np.uint8), image=image, window=window).image)
        assert np.abs(shown.astype(float) - expected).max() <= 1
    colours = np.concatenate([ramp, ramp, ramp])
    windows = [(20, 60), (0, 99), (20, 60)]
    shown = seen(draw(np.zeros((40, 100), np.uint8), image=colours, window=windows).image)
    assert np.abs(shown[0, :, 0] - expected).max() <= 1
    assert np.abs(shown[0, :, 1] - np.arange(100) / 99 * 255).max() <= 1


def test_of_a_volume_the_slice_with_most_truth_is_drawn_upright_and_in_proportion() -> None:
    truth = np.zeros((20, 16, 12), np.uint8)  # axis 0 goes to the left, axis 1 to the feet, axis 2 to the front
    truth[3:8, 5, 2:10] = 1
    truth[3:4, 9, 2:4] = 1
    image = np.zeros((1, 20, 16, 12), np.float32)
    image[0, 15:, 5] = 1  # at the patient's left
    drawn = draw(truth, image=image, affine=AFFINE)
    assert drawn.caption == "axial slice 11 of 16"  # counted from the feet: index 5 of 16 from the head
    # 20 pixels of 2 mm from right to left, 12 of 3 mm from front to back.
    assert (drawn.width, drawn.height) == (20, 18)
    assert seen(drawn.image)[:, 16:].min() > 200
    assert seen(drawn.image)[:, :13].max() < 60
    columns = np.nonzero(filled(drawn.truth[1], (18, 20)).any(0))[0]
    assert (columns.min(), columns.max()) == (3, 7)


def test_an_empty_volume_shows_its_middle() -> None:
    empty, found = np.zeros((2, 4, 6, 5), np.uint8)
    assert draw(empty, affine=AFFINE).caption == "axial slice 4 of 6"
    found[1, 5, 2] = 1
    assert draw(empty, found, affine=AFFINE).caption == "axial slice 1 of 6"


def test_maps_are_dark_at_zero_light_at_the_top_and_rising_in_grey() -> None:
    values = np.linspace(0, 2, 256, dtype=np.float32)[None].repeat(8, 0)
    grey = np.asarray(Image.open(io.BytesIO(encode_map(values, 2.0))).convert("L")).astype(int)[4]
    assert grey[0] < 15
    assert grey[-1] > 220
    assert (np.diff(grey) >= -1).all()
    assert seen(encode_map(values * 0, 0.0)).max() < 10
    # They share one scale.
    maps = [{"uncertainty": np.full((4, 4), v, np.float32)} for v in (0.1, 0.7)]
    assert top_value(maps, "uncertainty") == pytest.approx(0.7)
    assert top_value(maps, "surprise") == 0


def test_the_more_cases_the_smaller_their_pictures() -> None:
    sides = [picture_side(n) for n in (1, 40, 41, 120, 400, 1200, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 640
    assert sides[-1] >= 128


def test_paths_hold_whole_numbers_only() -> None:
    label = discs(np.random.default_rng(0), (300, 200), 5)
    for path in draw(label, label, classes=12, side=77).truth.values():
        assert re.fullmatch(r"(M\d+ \d+(l(-?\d+ -?\d+ ?)+)?z)+", path)
