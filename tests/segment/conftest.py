"""A made data set, and bundles run on it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from medmdm.data.files.pictures import read_image
from medmdm.data.writers import encode_picture
from tests.bundle_runs import BUNDLES, HEAD, Run, write_backbone
from tests.made import refused_in_config
from tests.written import picture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright blobs on dark ground, images of different sizes, two test images; patients known."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number in range(6):
        shape = (28 + 2 * number, 40)
        label = np.zeros(shape, np.uint8)
        label[6:18, 8 + number : 24 + number] = 1
        image = np.where(label[..., None] > 0, 190, 60) + rng.integers(-30, 30, (*shape, 3))
        picture(folder / f"{number}.png", image)
        picture(folder / f"{number}_mask.png", label)
        entry = {"image": f"{number}.png", "label": f"{number}_mask.png", "patient_id": f"patient {number}"}
        sections["training" if number < 4 else "test"].append(entry)
    content = {"name": "blobs", "labels": {"background": 0, "blob": 1}, **sections}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> Run:
    """Run a bundle as ``monai.bundle run`` does."""
    backbone = write_backbone(tmp_path / "model.pt")

    def call(bundle: str, **overrides: Any) -> Any:
        settings: dict[str, Any] = {"dataset_dir": str(pictures), "slice_cache": str(tmp_path / "slices"), **overrides}
        if bundle == "mdm_segment":
            settings = {"run_dir": str(tmp_path / "run"), "backbone": str(backbone), "head": HEAD, **settings}
        config = str(BUNDLES / f"{bundle}.json")
        workflow = ConfigWorkflow(config_file=config, logging_file=False, meta_file=None, **settings)
        workflow.initialize()
        return workflow.run()[0]

    return call


@pytest.fixture
def refused(run: Run) -> Run:
    """Run a bundle that must stop with a sentence to the user."""

    def call(sentence: str, bundle: str, **overrides: Any) -> None:
        refused_in_config(re.escape(sentence), run, bundle, **overrides)

    return call


def on_one_grid(folder: Path) -> list[np.ndarray]:
    """Cut all pictures and labels to 28 x 40 pixels; return the labels in the order of the data list."""
    for path in folder.glob("*.png"):
        path.write_bytes(encode_picture(read_image(path)[:, :28], ".png"))
    return [read_image(folder / f"{number}_mask.png")[0] for number in range(6)]
