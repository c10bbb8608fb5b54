"""Resampling: sizes, positions, low-pass, labels."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medmdm.data.transforms.spatial import ResampleToSpacing, ResampleToSpacingd, as_spacing, resample_to_shape
from medmdm.errors import UserError


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
    image = torch.from_numpy(np.stack([y, x]))
    result = ResampleToSpacing([1.0, 0.35])(image, (0.5, 0.7))
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
