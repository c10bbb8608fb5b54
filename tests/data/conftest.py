"""Images made on the spot, and the real sample data where ``MEDMDM_TEST_DATA`` says they are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged, RandFlipd, RandSpatialCropd
from PIL import Image

from medmdm.data.files.pictures import RasterReader
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped
from medmdm.data.transforms.spatial import CutRegiond, PadToSized


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    """Write a random PNG below ``tmp_path`` and return its path."""

    def write(name: str, rows: int = 40, columns: int = 60, channels: int = 3, seed: int | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (rows, columns) if channels == 1 else (rows, columns, channels)
        own_seed = sum(name.encode()) if seed is None else seed
        Image.fromarray(np.random.default_rng(own_seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def pipeline() -> Callable[..., Compose]:
    """The pre-training transforms of the configs, with a given crop size."""

    def build(crop: int | tuple[int, int] = 16, intensity_range: tuple[float, float] | None = None) -> Compose:
        size = (crop, crop) if isinstance(crop, int) else crop
        return Compose(
            [
                LoadImaged("image", reader=RasterReader(), ensure_channel_first=True, dtype=None),
                CutRegiond("image"),
                PadToSized("image", size),
                RandSpatialCropd("image", size),
                RandFlipd("image", prob=0.5, spatial_axis=1),
                ScaleIntensityByDtyped("image", intensity_range),
            ]
        )

    return build


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return a folder of the restored sample data, or skip."""

    def find(name: str) -> Path:
        root = os.environ.get("MEDMDM_TEST_DATA")
        if not root or not Path(root, name).is_dir():
            pytest.skip(f"REAL DATA NOT TESTED: set MEDMDM_TEST_DATA to a folder that holds {name}/")
        return Path(root, name)

    return find
