"""Windows and percentiles, against NumPy; ranges by type and as given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from medmdm.data.transforms.intensity import (
    CT_WINDOWS,
    PercentileRanged,
    ScaleByPercentiles,
    ScaleByPercentilesd,
    ScaleByWindow,
    ScaleByWindowd,
    ScaleIntensityByDtype,
    ScaleIntensityByDtyped,
    check_percentiles,
    percentiles_record,
    scale_to_range,
    scaled_range,
    window_range,
)
from tests.made import refused


@given(centre=st.floats(-2000, 2000), width=st.floats(1, 5000))
@settings(max_examples=30, deadline=None)
def test_a_window_maps_its_ends(centre, width):
    low, high = centre - width / 2, centre + width / 2
    values = torch.tensor([[low - 1, low, (low + high) / 2, high, high + 1]], dtype=torch.float64)
    assert torch.allclose(ScaleByWindow([centre, width])(values), torch.tensor([[-1.0, -1, 0, 1, 1]]), atol=1e-5)


def test_named_windows():
    assert window_range("lung") == [-1350, 150]
    assert window_range("brain") == [0, 80]
    assert window_range("abdomen") == window_range("soft_tissue") == [-150, 250]
    assert window_range(None) is None
    assert all(width > 0 for _, width in CT_WINDOWS.values())
    image = torch.randint(-1000, 2000, (1, 5, 6), dtype=torch.int16)
    expected = np.clip((image.numpy() + 150.0) / 400, 0, 1) * 2 - 1
    assert np.allclose(ScaleByWindowd("image", "abdomen")({"image": image})["image"], expected, atol=1e-6)


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("bounds", [(0.5, 99.5), (0, 100), (10, 33.3)])
def test_percentiles(nonzero, bounds):
    image = np.random.default_rng(0).normal(100, 30, (2, 13, 11, 7)).astype(np.float32)
    image[:, :4] = 0
    scaled = ScaleByPercentiles(*bounds, nonzero)(torch.from_numpy(image)).numpy()
    for before, after in zip(image, scaled, strict=True):
        low, high = np.percentile(before[before != 0] if nonzero else before, bounds)
        assert np.allclose(after, np.clip((before - low) / (high - low), 0, 1) * 2 - 1, atol=1e-4)
    again = ScaleByPercentilesd("image", *bounds, nonzero)({"image": torch.from_numpy(image)})["image"]
    assert np.array_equal(again, scaled)


def test_constant_images_become_zero():
    assert torch.equal(ScaleByPercentiles()(torch.full((1, 4, 4), 7)), torch.zeros(1, 4, 4))
    assert torch.equal(ScaleByPercentiles(nonzero=True)(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_ranges_of_channels():
    image = torch.arange(4.0)[:, None, None].expand(4, 2, 2)
    scaled = scale_to_range(image, [[0, 1], [2, 4]])  # two sequences with two slices each
    assert scaled[:, 0, 0].tolist() == [-1, 1, -1, 0]
    refused("3 intensity ranges do not fit an image of 4 channels", scale_to_range, image, [[0, 1]] * 3)
    own = ScaleIntensityByDtyped("image", (0, 1000))({"image": image, "intensity_range": [[0, 4]]})["image"]
    assert own[:, 0, 0].tolist() == [-1, -0.5, 0, 0.5]  # an entry's own range goes first


@pytest.mark.parametrize("nonzero", [False, True])
def test_a_pictures_percentiles_are_noted_and_then_scale_its_crops(nonzero):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (3, 9, 14), np.uint8))
    image[2] = 7
    noted = PercentileRanged("image", [5, 90], nonzero)({"image": image})
    assert torch.equal(noted["image"], image)
    crop = ScaleIntensityByDtyped("image")({**noted, "image": image[:, 2:5, 3:9]})["image"]
    assert torch.equal(crop, ScaleByPercentiles(5, 90, nonzero)(image)[:, 2:5, 3:9])


def test_percentiles_are_noted_only_where_there_is_no_range_yet():
    image = torch.arange(4.0).reshape(1, 2, 2)
    assert "intensity_range" not in PercentileRanged("image")({"image": image})
    own = PercentileRanged("image", [0, 100])({"image": image, "intensity_range": [[0, 9]]})
    assert own["intensity_range"] == [[0, 9]]
    refused("give \\[lower, upper\\]", PercentileRanged, "image", [99, 1])


def test_large_offsets_keep_their_steps():
    image = torch.tensor([[16_777_216, 16_777_217, 16_777_218]], dtype=torch.int32)
    assert scale_to_range(image, [[16_777_216, 16_777_218]]).tolist() == [[-1, 0, 1]]


def test_from_json():
    parser = ConfigParser(
        {
            "w": {"_target_": "medmdm.data.ScaleByWindowd", "keys": "image", "window": "bone"},
            "p": {"_target_": "medmdm.data.ScaleByPercentilesd", "keys": "image", "lower": 1, "upper": 99},
        }
    )
    image = {"image": torch.zeros(1, 3, 3)}
    assert parser.get_parsed_content("w")(image)["image"].min() == pytest.approx((0 - -500) / 900 - 1)
    assert parser.get_parsed_content("p")(image)["image"].shape == (1, 3, 3)


def test_what_is_wrong_is_said():
    for call, sentence in (
        (lambda: window_range("lungs"), "did you mean 'lung'"),
        (lambda: window_range([40]), r"give \[centre, width\]"),
        (lambda: window_range([40, 0]), "width above 0"),
        (lambda: window_range([float("nan"), 80]), "both finite"),
        (lambda: window_range([40, "80"]), "both finite"),  # type: ignore[list-item]
        (lambda: ScaleByPercentiles(50, 50), "lower < upper"),
        (lambda: ScaleByPercentiles(-1, 50), "lower < upper"),
        (lambda: check_percentiles(5), r"percentiles is 5: give \[lower, upper\]"),
        (lambda: check_percentiles([1, 50, 99]), "lower < upper"),
        (lambda: check_percentiles(["low", 99]), "lower < upper"),
        (lambda: scaled_range([0, 1], "lung"), "both intensity_range and window"),
    ):
        refused(sentence, call)
    assert scaled_range(None, "lung") == [-1350, 150]
    assert scaled_range([0, 1]) == [0, 1]
    assert scaled_range() is None
    assert percentiles_record(None) is None
    assert percentiles_record([1, 99], True) == {"lower": 1.0, "upper": 99.0, "nonzero": True}


@pytest.mark.parametrize(
    ("dtype", "values"), [(torch.bool, [False, True]), (torch.uint8, [0, 51, 255]), (torch.uint16, [0, 13107, 65535])]
)
def test_scale_by_type(dtype, values):
    scaled = ScaleIntensityByDtype()(torch.tensor([[values]], dtype=dtype))
    assert scaled.dtype == torch.float32
    expected = {2: [-1.0, 1.0], 3: [-1.0, -0.6, 1.0]}[len(values)]
    torch.testing.assert_close(scaled, torch.tensor([[expected]]))


def test_scale_is_exactly_the_papers_formula():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(ScaleIntensityByDtype()(values), values.to(torch.float32) / 127.5 - 1)


def test_scale_knows_the_files_type_after_monai_widened_it():
    image = MetaTensor(torch.tensor([[[0, 65535]]], dtype=torch.int32), meta={"original_dtype": "uint16"})
    torch.testing.assert_close(ScaleIntensityByDtype()(image).as_tensor(), torch.tensor([[[-1.0, 1.0]]]))


def test_scale_with_a_range_clips():
    scaled = ScaleIntensityByDtype((-100, 300))(torch.tensor([[[-500.0, -100.0, 100.0, 300.0, 900.0]]]))
    torch.testing.assert_close(scaled, torch.tensor([[[-1.0, -1.0, 0.0, 1.0, 1.0]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_scale_needs_a_range_for_types_without_one(dtype):
    image = MetaTensor(torch.ones(1, 2, 2, dtype=dtype), meta={"filename_or_obj": "ct.tif"})
    sentence = rf"ct\.tif holds {str(dtype)[6:]} values.*set intensity_range"
    refused(sentence, ScaleIntensityByDtyped("image"), {"image": image})


@pytest.mark.parametrize("bad", [(1, 1), (2, 1), (1,), (1, 2, 3), (0, float("inf")), (float("nan"), 1), "ab"])
def test_scale_refuses_a_wrong_range(bad):
    refused(r"give \[low, high\] with low < high", ScaleIntensityByDtyped, "image", bad)
