"""Masks, instances and boxes against straightforward implementations, and the shapes that need care."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.bundle import ConfigParser
from monai.transforms import KeepLargestConnectedComponent
from scipy.ndimage import gaussian_filter
from skimage.measure import euler_number, label, regionprops_table

from medmdm.components import instantiate, to_config
from medmdm.errors import UserError
from medmdm.segment.postprocessing import PostProcess, boxes
from tests.made import refused


def one_hot(mask: np.ndarray, classes: int = 2) -> np.ndarray:
    return np.stack([mask == k for k in range(classes)]).astype(np.float32)


def disc(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)) < radius**2


def instances_of(mask: np.ndarray, how: Any = "watershed", classes: int = 2, **arguments) -> np.ndarray:
    result = PostProcess(instances=how, **arguments)(one_hot(mask, classes))["instances"]
    assert result is not None
    assert result.dtype == np.int32
    return result


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=st.integers(0, 2))


@pytest.mark.parametrize("shape", [(5, 8), (1, 1), (3, 4, 5)])
def test_argmax(shape):
    scores = np.random.default_rng(0).normal(size=(4, *shape))
    result = PostProcess()(scores)
    assert result["instances"] is None
    assert result["mask"].dtype == np.uint8
    np.testing.assert_array_equal(result["mask"], scores.argmax(axis=0))
    tensor = torch.from_numpy(scores).to(torch.bfloat16).requires_grad_()
    np.testing.assert_array_equal(PostProcess()(tensor)["mask"], tensor.float().argmax(dim=0))


@pytest.mark.parametrize("argmax", [True, False])
@pytest.mark.parametrize("background", [0, 2])
def test_threshold(argmax, background):
    logits = np.random.default_rng(1).normal(size=(3, 6, 7))
    mask = PostProcess(argmax=argmax, threshold=0.4, activation="softmax", background=background)(logits)["mask"]
    seen = set()
    for row in range(6):
        for column in range(7):
            p = torch.softmax(torch.from_numpy(logits[:, row, column]), dim=0).tolist()
            candidates = range(3) if argmax else [k for k in range(3) if k != background]
            best = max(candidates, key=lambda k: p[k])
            expected = best if p[best] >= 0.4 else background
            assert mask[row, column] == expected
            seen.add(expected)
    assert seen == {0, 1, 2}


def test_one_channel():
    logits = np.array([[[-3.0, 0.1, 1000.0, -1000.0]]])
    np.testing.assert_array_equal(PostProcess(threshold=0.5, activation="sigmoid")(logits)["mask"], [[0, 1, 1, 0]])
    np.testing.assert_array_equal(PostProcess(threshold=0.5)(logits.clip(0, 1))["mask"], [[0, 0, 1, 0]])


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"argmax": False}, "argmax is false and no threshold"),
    ({"activation": "softmx"}, r"activation is 'softmx' \(did you mean 'softmax'\?\)"),
    ({"remove_small_objects": -1}, "remove_small_objects is -1"),
    ({"fill_holes_below": float("nan")}, "fill_holes_below is nan"),
    ({"background": 300}, "background is 300"),
    ({"instances": "watersheds"}, r"instances is 'watersheds' \(did you mean 'watershed'\?\)"),
    ({"instances": {"distance": 3}}, r"the key 'distance' \(did you mean 'min_distance'\?\)"),
    ({"instances": {"method": "components", "smooth": 3}}, "'smooth', which components does not take"),
    ({"instances": {"smooth": -1}}, "smooth is -1"),
    ({"scores": np.zeros(5)}, r"the shape \(5,\), expected"),
    ({"threshold": 0.5, "scores": np.full((2, 3, 3), 4.0)}, "no probabilities"),
    ({"background": 2}, "background is 2, but there are 2 classes"),
    ({"in_mm": True}, "spacing is not known"),
    ({"scores": np.zeros((1, 3, 3))}, "one channel of scores has no largest: set a threshold"),
    ({"threshold": 0.5, "background": 1, "scores": np.zeros((1, 3, 3))}, "expected 0 for one channel"),
])  # fmt: skip
def test_wrong_settings_and_scores_that_do_not_fit(arguments, sentence):
    scores = arguments.pop("scores", np.zeros((2, 3, 3)))
    refused(sentence, lambda: PostProcess(**arguments)(scores))


def test_from_json():
    settings = {"method": "watershed", "min_distance": 4, "smooth": 0}
    config = {"process": {"_target_": "medmdm.segment.PostProcess", "threshold": 0.5, "instances": settings}}
    process = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("process")
    assert process.instances == {**settings, "depth": 0.75}
    for name in ("medmdm.segment.PostProcess", "medmdm.postprocess.PostProcess"):  # the second is 0.1's
        assert instantiate({**to_config(process), "_target_": name}) == process


def flood(mask: np.ndarray, start: tuple[int, ...], same: Any, corners: bool) -> set[tuple[int, ...]]:
    """The pixels that hang together with ``start``, by the definition."""
    steps = [
        s for s in np.ndindex(*(3,) * mask.ndim) if s.count(1) < mask.ndim and (corners or s.count(1) == mask.ndim - 1)
    ]
    found, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        for step in steps:
            there = tuple(h + s - 1 for h, s in zip(here, step, strict=True))
            inside = all(0 <= t < size for t, size in zip(there, mask.shape, strict=True))
            if inside and there not in found and same(mask[there]):
                found.add(there)
                waiting.append(there)
    return found


def parts(mask: np.ndarray, corners: bool) -> list[set[tuple[int, ...]]]:
    found: list[set[tuple[int, ...]]] = []
    for start in np.ndindex(*mask.shape):
        if not any(start in part for part in found):
            found.append(flood(mask, start, lambda value, k=mask[start]: value == k, corners))
    return found


def straightforward(mask: np.ndarray, objects: int, holes: int) -> np.ndarray:
    result = mask.copy()
    for part in parts(mask, corners=True):
        if len(part) < objects:
            for pixel in part:
                result[pixel] = 0
    filled = result.copy()
    for part in parts(result, corners=False):
        around: set[Any] = set()
        for pixel in part:
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    there = (*pixel[:axis], pixel[axis] + step, *pixel[axis + 1 :])
                    inside = 0 <= there[axis] < mask.shape[axis]
                    if there not in part and mask.shape[axis] > 1:
                        around.add(int(result[there]) if inside else "edge")
        if result[min(part)] == 0 and len(part) < holes and len(around) == 1 and "edge" not in around:
            for pixel in part:
                filled[pixel] = min(around)
    return filled


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 6), st.integers(0, 6))
def test_cleaning_is_what_the_definition_says(mask, objects, holes):
    process = PostProcess(remove_small_objects=objects, fill_holes_below=holes)
    np.testing.assert_array_equal(process(one_hot(mask, 3))["mask"], straightforward(mask, objects, holes))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_the_largest_part_of_each_class(mask):
    expected = np.zeros_like(mask)
    found = parts(mask, corners=True)
    for number in (1, 2):
        own = [part for part in found if mask[min(part)] == number]
        if own:
            most = max(map(len, own))
            first = min((part for part in own if len(part) == most), key=min)
            expected[tuple(np.transpose(sorted(first)))] = number
    np.testing.assert_array_equal(PostProcess(keep_largest=True)(one_hot(mask, 3))["mask"], expected)


def test_the_largest_parts_are_monais():
    mask = gaussian_filter(np.random.default_rng(3).normal(size=(3, 70, 50)), (0, 1.5, 1.5)).argmax(0)
    expected = KeepLargestConnectedComponent()(mask[None].copy())[0]  # it writes into what it is given
    assert (np.asarray(expected) != mask).any()
    np.testing.assert_array_equal(PostProcess(keep_largest=True)(one_hot(mask, 3))["mask"], expected)


def test_ring():
    ring = disc((40, 60), (20, 30), 12) & ~disc((40, 60), (20, 30), 5)
    hole = int(disc((40, 60), (20, 30), 5).sum())
    assert euler_number(ring, connectivity=1) == 0
    np.testing.assert_array_equal(PostProcess(fill_holes_below=hole)(one_hot(ring))["mask"], ring)
    filled = PostProcess(fill_holes_below=hole + 1)(one_hot(ring))["mask"]
    np.testing.assert_array_equal(filled, disc((40, 60), (20, 30), 12))


def test_a_bay_at_the_edge_and_a_gap_between_classes_are_no_holes():
    mask = np.ones((9, 12), np.uint8)
    mask[0, 3] = 0  # open to the edge of the image
    mask[:, 6:] = 2
    mask[4, 5:7] = 0  # between class 1 and class 2
    mask[7, 2] = 0  # a hole
    result = PostProcess(fill_holes_below=100)(one_hot(mask, 3))["mask"]
    expected = mask.copy()
    expected[7, 2] = 1
    np.testing.assert_array_equal(result, expected)


def test_a_speck_in_a_hole_goes_with_it():
    mask = np.ones((9, 9), np.uint8)
    mask[3:6, 3:6] = 0
    mask[4, 4] = 2
    assert (PostProcess(remove_small_objects=2, fill_holes_below=10)(one_hot(mask, 3))["mask"] == 1).all()


def test_other_backgrounds():
    mask = np.full((8, 8), 1)
    mask[2:4, 2:4], mask[6, 6] = 0, 0
    result = PostProcess(background=1, remove_small_objects=2, instances="components")(one_hot(mask))
    expected = mask.copy()
    expected[6, 6] = 1
    np.testing.assert_array_equal(result["mask"], expected)
    np.testing.assert_array_equal(result["instances"], expected == 0)


def test_sizes_in_mm():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:4, 2:6], mask[10:14, 10:14] = 1, 1  # 8 and 16 pixels
    process = PostProcess(remove_small_objects=1.0, in_mm=True)
    assert process(one_hot(mask), spacing=(0.25, 0.5))["mask"].sum() == 8 + 16  # 1.0 and 2.0 mm²
    assert process(one_hot(mask), spacing=(0.25, 0.25))["mask"].sum() == 16  # 0.5 and 1.0 mm²
    assert process(one_hot(mask), spacing=(0.1, 0.1))["mask"].sum() == 0
    refused(r"the spacing is \[0.1\], expected 2 numbers", process, one_hot(mask), spacing=[0.1])


def test_two_touching_discs_become_two_objects():
    left, right = disc((60, 90), (30, 30), 16), disc((60, 90), (30, 58), 16)
    assert instances_of(left | right, "components").max() == 1
    found = instances_of(left | right)
    assert found.max() == 2
    for number, truth in ((1, left & ~right), (2, right & ~left)):
        assert ((found == number) & truth).sum() > 0.98 * truth.sum()
    np.testing.assert_array_equal(found > 0, left | right)


def test_two_touching_balls_in_a_volume():
    left, right = disc((20, 24, 44), (10, 12, 13), 9), disc((20, 24, 44), (10, 12, 29), 9)
    found = instances_of(left | right)
    assert found.max() == 2
    assert ((found == 1) & left).sum() > 0.97 * left.sum()


@pytest.mark.parametrize("smooth", [0, 1, 3])
@pytest.mark.parametrize("angle", [0, 0.3, 0.8, 1.4])
def test_long_objects_stay_whole(smooth, angle):
    """Along a bar the distance is level: seeds by distance alone would cut it into pieces."""
    rows, columns = np.mgrid[:90, :110]
    along = (rows - 45) * np.sin(angle) + (columns - 55) * np.cos(angle)
    across = (rows - 45) * np.cos(angle) - (columns - 55) * np.sin(angle)
    ellipse = (along / 38) ** 2 + (across / 12) ** 2 < 1
    assert instances_of(ellipse, {"smooth": smooth}).max() == 1
    bar = (abs(rows - 45) < 5) & (abs(columns - 55) < 50)
    assert instances_of(bar, {"smooth": smooth}).max() == 1


def test_min_distance_decides_how_much_is_cut():
    chain = np.any([disc((40, 120), (20, x), 12) for x in (20, 40, 60, 80, 100)], axis=0)
    assert instances_of(chain, {"min_distance": 5}).max() == 5
    assert instances_of(chain, {"min_distance": 25}).max() < 5
    assert instances_of(chain, {"min_distance": 200}).max() == 1
    assert instances_of(chain, {"min_distance": 5, "depth": 20}).max() == 1


def test_watershed_in_mm_sees_what_the_eye_sees():
    """Discs sampled twice as finely along rows are discs again once the spacing is known."""
    fine = np.repeat(disc((60, 90), (30, 30), 16) | disc((60, 90), (30, 58), 16), 2, axis=0)
    process = PostProcess(instances={"min_distance": 5, "smooth": 1}, in_mm=True)
    found = process(one_hot(fine), spacing=(0.5, 1.0))["instances"]
    assert found.max() == 2
    assert abs(int((found == 1).sum()) - int((found == 2).sum())) < 120


@settings(max_examples=60, deadline=None)
@given(masks)
def test_components_are_those_of_scikit_image(mask):
    found = instances_of(mask, "components", classes=3)
    expected = label(mask, background=0, connectivity=mask.ndim)  # neighbours of one class
    assert same_partition(found, expected)


@settings(max_examples=80, deadline=None)
@given(masks, st.sampled_from([0, 1]), st.sampled_from([0, 0.5, 2]), st.integers(0, 4))
def test_watershed_only_ever_cuts_components(mask, smooth, depth, min_distance):
    how = {"method": "watershed", "smooth": smooth, "depth": depth, "min_distance": min_distance}
    found = instances_of(mask, how, classes=3)
    whole = instances_of(mask, "components", classes=3)
    np.testing.assert_array_equal(found > 0, mask > 0)
    assert len({(f, w) for f, w in zip(found.ravel(), whole.ravel(), strict=True)}) == len(np.unique(found))
    numbers, first = np.unique(found[found > 0], return_index=True)
    np.testing.assert_array_equal(numbers, np.arange(1, len(numbers) + 1))
    assert (np.diff(first) > 0).all()  # numbered in the order of their first pixels
    for number in numbers:
        assert len(np.unique(mask[found == number])) == 1
        assert label(found == number, connectivity=mask.ndim).max() == 1
    np.testing.assert_array_equal(found, instances_of(mask, how, classes=3))


@pytest.mark.parametrize("how", ["components", "watershed"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (5, 8), (1, 5, 8), (3, 4, 5)])
def test_empty_full_and_one_pixel(how, shape):
    assert not instances_of(np.zeros(shape, int), how).any()
    np.testing.assert_array_equal(instances_of(np.ones(shape, int), how), np.ones(shape))
    pixel = np.zeros((5, *shape), int)
    pixel[2].flat[-1] = 1
    np.testing.assert_array_equal(instances_of(pixel, how), pixel)


def test_classes_that_touch_are_different_instances():
    mask = np.zeros((20, 30), int)
    mask[5:15, 5:15], mask[5:15, 15:25] = 2, 1
    for how in ("components", "watershed"):
        found = instances_of(mask, how, classes=3)
        np.testing.assert_array_equal(found, np.where(mask == 2, 1, np.where(mask == 1, 2, 0)))


def test_a_volume_of_one_slice_is_an_image():
    mask = np.random.default_rng(0).random((30, 40)) > 0.4
    arguments = {"remove_small_objects": 5, "fill_holes_below": 6, "instances": "components"}
    flat = PostProcess(**arguments)(one_hot(mask))
    volume = PostProcess(**arguments)(one_hot(mask[None]))
    for key in ("mask", "instances"):
        np.testing.assert_array_equal(volume[key][0], flat[key])


@pytest.mark.parametrize("shape", [(30, 45), (6, 9, 12)])
def test_boxes_are_those_of_scikit_image(shape):
    instances = np.random.default_rng(3).integers(0, 6, shape) * 1000
    table = boxes(instances)
    expected = regionprops_table(instances, properties=("label", "bbox", "area"))
    n = len(shape)
    axes = ["slice", "row", "col"][-n:]
    names = [f"min_{axis}" for axis in axes] + [f"max_{axis}" for axis in axes]
    assert list(table.columns) == ["label", *names, "area", "class"]
    np.testing.assert_array_equal(table["label"], expected["label"])
    np.testing.assert_array_equal(table["area"], expected["area"])
    for i, name in enumerate(names):
        np.testing.assert_array_equal(table[name], expected[f"bbox-{i}"])
    assert (table["class"] == 1).all()


def test_boxes_know_the_class():
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 2:6], mask[5:8, 8:] = 3, 2
    result = PostProcess(instances="components")(one_hot(mask, 4))
    table = boxes(result["instances"], result["mask"])
    assert table.to_dict("records") == [
        {"label": 1, "min_row": 1, "min_col": 2, "max_row": 3, "max_col": 6, "area": 8, "class": 3},
        {"label": 2, "min_row": 5, "min_col": 8, "max_row": 8, "max_col": 9, "area": 3, "class": 2},
    ]


def test_boxes_of_nothing_of_all_and_of_other_shapes():
    empty = boxes(np.zeros((4, 5), int))
    assert len(empty) == 0
    assert list(empty.columns)[:3] == ["label", "min_row", "min_col"]
    assert (empty.dtypes == np.int64).all()
    assert boxes(np.ones((4, 5), int)).to_numpy().tolist() == [[1, 0, 0, 4, 5, 20, 1]]
    refused(r"the shape \(3,\)", boxes, np.zeros(3, int))
    with pytest.raises(UserError, match=r"the mask has the shape \(3, 4\), but the instances \(4, 3\)"):
        boxes(np.zeros((4, 3), int), np.zeros((3, 4), int))


def test_objects_do_not_depend_on_what_their_map_is_lowered_by() -> None:
    scores = np.zeros((2, 12, 20), np.float32)
    scores[1, 2:9, 2:18] = 1
    scores[0] = 0.5
    rows, columns = np.indices((12, 20))
    tops = np.maximum(
        np.exp(-((rows - 5) ** 2 + (columns - 5) ** 2) / 9), np.exp(-((rows - 5) ** 2 + (columns - 14) ** 2) / 9)
    )
    found = [
        PostProcess(instances="distance")(scores, maps={"distance": tops[None] - low})["instances"] for low in (0, 1, 3)
    ]
    assert found[0] is not None
    assert found[0].max() == 2
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
