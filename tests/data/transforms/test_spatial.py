"""Cutting, padding, scaling and resampling, on plain tensors and on MONAI's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from medmdm.data.transforms.spatial import (
    CutRegiond,
    PadToSize,
    PadToSized,
    ResampleToSpacing,
    ResampleToSpacingd,
    as_spacing,
    resample_to_shape,
)
from medmdm.errors import UserError


def test_cut():
    image = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    cut = CutRegiond("image")
    part = cut({"image": image, "region": {"rows": [1, 3], "columns": [2, 6]}})["image"]
    torch.testing.assert_close(part, image[:, 1:3, 2:])
    torch.testing.assert_close(cut({"image": image, "region": {"columns": [0, 1]}})["image"], image[:, :, :1])
    assert cut({"image": image})["image"] is image
    with pytest.raises(UserError, match=r"a\.png has 4 rows, but its region asks for rows 2 to 5"):
        cut({"image": MetaTensor(image, meta={"filename_or_obj": "a.png"}), "region": {"rows": [2, 5]}})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30))
def test_padding_reflects_then_repeats_the_edge(rows, columns, wanted_rows, wanted_columns):
    image = torch.arange(2 * rows * columns).reshape(2, rows, columns)
    padded = PadToSize((wanted_rows, wanted_columns))(image)
    assert padded.shape == (2, max(rows, wanted_rows), max(columns, wanted_columns))

    def source(size: int, wanted: int) -> np.ndarray:
        before = max(0, wanted - size) // 2
        position = np.arange(-before, max(size, wanted) - before)
        reflected = np.where(position < 0, -position, np.where(position >= size, 2 * (size - 1) - position, position))
        # Further out than a reflection reaches it is the outermost reflected pixel that repeats.
        far = np.clip(position, -(size - 1), 2 * (size - 1))
        return np.where(position == far, reflected, np.where(position < 0, size - 1, 0))

    torch.testing.assert_close(padded, image[:, source(rows, wanted_rows)][:, :, source(columns, wanted_columns)])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.int32, torch.float32])
def test_padding_keeps_type_and_metadata(dtype):
    image = MetaTensor(torch.ones(1, 1, 1).to(dtype), meta={"filename_or_obj": "a.png"})
    padded = PadToSized("image", 4)({"image": image})["image"]
    assert padded.shape == (1, 4, 4)
    assert padded.dtype == dtype
    assert padded.meta["filename_or_obj"] == "a.png"


def test_transforms_from_json():
    config = {
        "t": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "medmdm.data.CutRegiond", "keys": "image"},
                {"_target_": "medmdm.data.PadToSized", "keys": "image", "spatial_size": [4, 6]},
                {"_target_": "medmdm.data.ScaleIntensityByDtyped", "keys": "image", "intensity_range": [0, 15]},
            ],
        }
    }
    transform = ConfigParser(config).get_parsed_content("t")
    image = transform({"image": torch.full((1, 2, 2), 15, dtype=torch.uint8)})["image"]
    torch.testing.assert_close(image, torch.ones(1, 4, 6))


def test_magnification_is_a_spacing():
    assert as_spacing(magnification=40) == (0.00025, 0.00025)  # mm: 0.25 micrometres
    assert as_spacing(magnification=20) == (0.0005, 0.0005)
    assert as_spacing(0.5) == (0.5, 0.5)
    assert as_spacing([1, 2]) == (1.0, 2.0)
    assert as_spacing() is None
    for arguments in ((0,), (-1,), ([1, 2, 3],), ("1",), (None, 0), (1, 2)):
        with pytest.raises(UserError):
            as_spacing(*arguments)


def test_edges_stay_in_place():
    # A ramp in mm: after resampling each pixel's value is its own position again.
    rows, columns = 40, 60
    y, x = np.meshgrid((np.arange(rows) + 0.5) * 0.5, (np.arange(columns) + 0.5) * 0.7, indexing="ij")
    result = ResampleToSpacing([1.0, 0.35])(torch.from_numpy(np.stack([y, x])), (0.5, 0.7))
    assert result.shape == (2, 20, 120)
    assert np.allclose(result[0, 2:-2, 60], (np.arange(20)[2:-2] + 0.5) * 1.0, atol=1e-5)
    assert np.allclose(result[1, 10, 4:-4], (np.arange(120)[4:-4] + 0.5) * 0.35, atol=1e-5)


def test_shrinking_filters():
    stripes = torch.arange(64).remainder(2).float().expand(1, 64, 64) * 100
    small = ResampleToSpacing(4.0)(stripes, (1.0, 1.0))
    assert small.shape == (1, 16, 16)
    assert (small[:, 2:-2, 2:-2] - 50).abs().max() < 5  # without a low-pass it would be stripes again


def test_labels_keep_their_values():
    label = torch.randint(0, 4, (1, 9, 7), dtype=torch.uint8)
    larger = ResampleToSpacing(0.5, mode="nearest")(label, (1.0, 1.0))
    assert larger.dtype == torch.uint8
    assert torch.equal(larger, label.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(resample_to_shape(larger, (9, 7), "nearest"), label)


def test_dictionary_version_takes_each_entrys_spacing():
    resample = ResampleToSpacingd(["image", "label"], magnification=20, mode=["bilinear", "nearest"])
    entry = {"image": torch.rand(3, 20, 30), "label": torch.ones(1, 20, 30), "spacing": [0.00025, 0.00025]}
    result = resample(entry)
    assert result["image"].shape == (3, 10, 15)
    assert result["label"].shape == (1, 10, 15)
    meta = MetaTensor(torch.rand(3, 20, 30), meta={"spacing": (0.001, 0.001), "original_dtype": "uint8"})
    result = resample({"image": meta, "label": meta})
    assert result["image"].shape == (3, 40, 60)
    assert result["image"].meta["original_dtype"] == "uint8"
    assert ResampleToSpacingd("image")(entry)["image"] is entry["image"]  # no target: nothing happens
    with pytest.raises(UserError, match=r"pixel spacing of a\.png is not known.*data list"):
        resample({"image": MetaTensor(torch.rand(3, 4, 4), meta={"filename_or_obj": "a.png"}), "label": meta})


def test_resampling_a_volume_is_linear_along_each_axis():
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 6, 9, 8, generator=generator)
    expected = volume
    for axis, size in ((1, 9), (2, 5), (3, 8)):  # one axis after the other, by pictures of which the other side stays
        lines = expected.movedim(axis, -1)
        flat = lines.reshape(1, -1, lines.shape[-1])
        moved = resample_to_shape(flat, (flat.shape[1], size)).reshape(*lines.shape[:-1], size)
        expected = moved.movedim(-1, axis)
    torch.testing.assert_close(resample_to_shape(volume, (9, 5, 8)), expected)
    z = torch.arange(6.0)[None, :, None, None].expand(1, 6, 4, 4)
    finer = resample_to_shape(z, (12, 4, 4))[0, :, 0, 0]
    torch.testing.assert_close(finer[1:-1], (torch.arange(12.0)[1:-1] + 0.5) / 2 - 0.5)
    label = torch.randint(0, 9, (1, 3, 4, 5), generator=generator)
    larger = resample_to_shape(label, (6, 8, 5), "nearest")
    assert torch.equal(larger, label.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize(("own", "wanted"), [(0.5, 0.0005), (0.0005, 0.5)])
def test_a_spacing_in_other_units_is_refused(own, wanted):
    image = MetaTensor(torch.zeros(1, 64, 32), meta={"filename_or_obj": "a.png"})
    with pytest.raises(UserError, match=r"a\.png has 64 x 32 pixels of .* correct the spacing that is not in mm"):
        ResampleToSpacing(wanted)(image, (own, own))
