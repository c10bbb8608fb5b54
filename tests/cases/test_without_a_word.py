"""What would train, or be measured, without meaning anything is said beforehand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.check.data_list import check
from medmdm.data import CropDataset, select_cases
from medmdm.data.files.png import refuse_damaged_png
from medmdm.data.reading import CaseReader
from medmdm.data.writers import encode_picture
from medmdm.errors import warn_once
from tests.bundle_runs import Workflow
from tests.made import refused, refused_in_config
from tests.written import picture


def dataset_of(made: Any) -> CropDataset:
    dataset: CropDataset = made.parser.get_parsed_content("train#dataset")
    return dataset


@pytest.mark.parametrize(("image", "settings"), [
    ("bright", {"percentiles": [1, 99]}), ("bright", {"percentiles": [0.5, 99.5], "percentiles_nonzero": True}),
    ("constant", {}), ("constant", {"percentiles": [0, 100]}),
])  # fmt: skip
def test_images_of_which_nothing_is_left(
    workflow: Workflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, image: str, settings: dict[str, Any]
) -> None:
    folder, array = tmp_path / "flat", np.full((32, 32, 3), 0 if image == "bright" else 90, np.uint8)
    if image == "bright":
        array[3, 4] = 255
    picture(folder / "a.png", array)
    made = workflow(dataset_dir=str(folder), run_dir=str(tmp_path / "one"), **settings)
    refused_in_config("1 of 1 images have one value everywhere once they are scaled .*a.png", dataset_of, made)
    picture(folder / "b.png", np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    made = workflow(dataset_dir=str(folder), run_dir=str(tmp_path / "two"), **settings)
    assert dataset_of(made).data
    assert "1 of 2 images have one value everywhere" in caplog.text


def test_a_flat_image_to_segment_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, value in enumerate((7, 60)):
        picture(tmp_path / f"{number}.png", np.full((16, 16, 3), value) + number * np.arange(16)[:, None, None])
        picture(tmp_path / f"{number}_mask.png", np.arange(256).reshape(16, 16) % 2)
    entries = [{"image": f"{number}.png", "label": f"{number}_mask.png"} for number in range(2)]
    content = {"name": "x", "labels": {"background": 0, "a": 1}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    warn_once.cache_clear()
    reader = CaseReader(select_cases(tmp_path), {"channels": 3})
    for entry in reader.cases.training:
        reader.read(entry)
    assert "0.png has one value everywhere" in caplog.text
    assert "1.png has one value everywhere" not in caplog.text


@pytest.mark.parametrize("key", ["spacing", "magnification"])
@pytest.mark.parametrize("value", ["x", 0, -1, [0.5, -1], [1, 2, 3], True, {}])
def test_sizes_of_pixels_are_checked(tmp_path: Path, key: str, value: Any) -> None:
    picture(tmp_path / "a.png", np.arange(16 * 16 * 3).reshape(16, 16, 3) % 251)
    for listed, entry in (({key: value}, {}), ({}, {key: value})):
        content = {"name": "x", **listed, "training": [{"image": "a.png", **entry}]}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        found = [one for one in check(tmp_path / "dataset.json", progress=False).errors if one.check == "pixel-size"]
        assert len(found) == 1
        assert "give a number above 0" in found[0].message
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "training": [{"image": "a.png", key: 0.5}]}))
    assert not check(tmp_path / "dataset.json", progress=False).errors


def test_checksums_of_png_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_picture(np.arange(256, dtype=np.uint8).reshape(1, 16, 16) % 5, ".png"))
    whole = path.read_bytes()
    refuse_damaged_png(path)
    data = whole.index(b"IDAT")
    for damaged in (whole[:-2], whole[:-12], whole[: data + 9] + bytes([whole[data + 9] ^ 1]) + whole[data + 10 :]):
        path.write_bytes(damaged)
        refused(r"a\.png is (damaged|cut off)", refuse_damaged_png, path)
    for passes in (b"II*\0 a TIFF", b"", whole + b"what some programs append"):
        path.write_bytes(passes)
        refuse_damaged_png(path)
