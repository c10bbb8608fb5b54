"""Cases are read as the pre-training bundle reads its images."""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader
from medmdm.files import resource_folder
from tests.data.chain import chain


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, low, high in (("dark", 10, 90), ("bright", 120, 250)):
        iio.imwrite(tmp_path / f"{name}.png", rng.integers(low, high, (24, 38, 3), np.uint8))
        iio.imwrite(tmp_path / f"{name}_label.png", rng.integers(0, 2, (24, 38), np.uint8))
    content = {
        "name": "made",
        "labels": {"rest": 0, "bright": 1},
        "spacing": [0.001, 0.001],
        "training": [
            {"image": "dark.png", "label": "dark_label.png"},
            {"image": "bright.png", "label": "bright_label.png", "region": {"rows": [4, 20], "columns": [0, 30]}},
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("percentiles", [None, [1, 99], [20, 70]], ids=str)
@pytest.mark.parametrize("spacing", [None, 0.002], ids=str)
def test_pictures_have_the_pixels_that_pre_training_sees(pictures, percentiles, spacing) -> None:
    config = ConfigParser(ConfigParser.load_config_file(resource_folder("bundles") / "mdm_pretrain.json"))
    config.update({"dataset_dir": str(pictures), "percentiles": percentiles, "spacing": spacing, "crop_size": [4, 4]})
    load = Compose(config.get_parsed_content("load") + config.get_parsed_content("scale"))
    entries = config.get_parsed_content("slices").training
    plan = {name: config.get_parsed_content(f"plan#{name}") for name in ("percentiles", "spacing", "intensity_range")}
    cases = select_cases(pictures)
    transforms = chain(cases, spacing=spacing, percentiles=percentiles)
    for entry, case in zip(entries, CaseReader(cases, plan).read_all(cases.training), strict=True):
        assert torch.equal(case.examples[0].image, load(dict(entry))["image"].as_tensor())
        alone = transforms(case.entry)
        assert torch.equal(case.examples[0].image, alone["image"].as_tensor())
        assert torch.equal(case.examples[0].label, alone["label"].as_tensor()[0].long())


def test_percentiles_take_out_what_brightness_and_contrast_do_to_channels(pictures: Path) -> None:
    image = iio.imread(pictures / "dark.png")
    iio.imwrite(pictures / "other.png", (image * np.array([1, 2, 2]) + np.array([100, 0, 50])).astype(np.uint8))
    cases = select_cases(pictures)
    reader = CaseReader(cases, {"percentiles": {"lower": 1, "upper": 99, "nonzero": False}})
    one, other = (
        reader.read({**cases.training[0], "image": str(pictures / name)}).examples[0].image
        for name in ("dark.png", "other.png")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert -1 == one.min() < one.max() == 1
