"""What all tests share."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from medmdm.backbones import ADMUNet
from tests.bundle_runs import BUNDLE, OVERLAYS, TINY, Workflow
from tests.made import SMALL, with_random_weights
from tests.written import picture

# A test that uses one of these runs a bundle or reads real data sets.
BUNDLE_FIXTURES = {"workflow", "run", "real_data"}

# Bundles take the number of threads from it, instead of measuring which is fastest.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run bundles, so that ``make test-fast`` leaves them out."""
    for item in items:
        if BUNDLE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("bundle")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of values measured on the method's published program."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the folder of a restored public data set; tests that need one are skipped where it is not given."""

    def find(name: str) -> Path:
        root = os.environ.get("MEDMDM_TEST_DATA")
        if not root or not Path(root, name).is_dir():
            pytest.skip(f"REAL DATA NOT TESTED: set MEDMDM_TEST_DATA to a folder that holds {name}/")
        return Path(root, name)

    return find


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def make() -> Callable[..., ADMUNet]:
    """Build a small network with random weights; arguments change its configuration."""

    def build(seed: int = 0, **arguments: Any) -> ADMUNet:
        return with_random_weights(ADMUNet(**{**SMALL, **arguments}), seed)  # type: ignore[return-value]

    return build


@pytest.fixture
def no_grad() -> Iterator[None]:
    """For a module of tests that compute and never train."""
    with torch.no_grad():
        yield


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three small RGB images of different shapes, and a mask."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 52)), ("b", (33, 64)), ("c_x", (64, 48))):
        coarse = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
        picture(folder / f"{name}.png", np.kron(coarse, np.ones((8, 8, 1)))[: shape[0], : shape[1]])
    picture(folder / "a_mask.png", np.zeros((40, 52)))
    return folder


@pytest.fixture
def workflow(tmp_path: Path, image_folder: Path) -> Workflow:
    """Make a tiny pre-training workflow, as ``monai.bundle run`` does, without running it."""

    def make(*overlays: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(BUNDLE), *(str(OVERLAYS / f"{name}.json") for name in overlays)]
        settings = {
            **copy.deepcopy(TINY), "dataset_dir": str(image_folder), "run_dir": str(tmp_path / "run"), **overrides,
        }  # fmt: skip
        return ConfigWorkflow(config_file=files, logging_file=False, **settings)

    return make
