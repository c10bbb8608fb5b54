"""A made data set, and bundles run on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from medmdm.errors import UserError, find_user_error
from tests.bundle_runs import BUNDLES, HEAD, Run, write_backbone


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright blobs on dark ground, images of different sizes, two test images; patients known."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for number in range(6):
        shape = (28 + 2 * number, 40)
        label = np.zeros(shape, np.uint8)
        label[6:18, 8 + number : 24 + number] = 1
        image = np.where(label[..., None] > 0, 190, 60) + rng.integers(-30, 30, (*shape, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_mask.png")
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
        workflow = ConfigWorkflow(
            config_file=str(BUNDLES / f"{bundle}.json"), logging_file=False, meta_file=None, **settings
        )
        workflow.initialize()
        return workflow.run()[0]

    return call


@pytest.fixture
def refused(run: Run) -> Run:
    """Run a bundle that must stop with a sentence to the user."""

    def call(sentence: str, bundle: str, **overrides: Any) -> None:
        with pytest.raises((RuntimeError, UserError)) as caught:
            run(bundle, **overrides)
        assert sentence in str(find_user_error(caught.value))

    return call
