"""Images made on the spot, and what pre-training does to them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged, RandFlipd, RandSpatialCropd

from medmdm.data.files.pictures import RasterReader
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped
from medmdm.data.transforms.spatial import CutRegiond, PadToSized
from tests.written import picture


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    """Write a random PNG below ``tmp_path`` and return its path."""

    def write(name: str, rows: int = 40, columns: int = 60, channels: int = 3) -> Path:
        return picture(tmp_path / name, shape=(rows, columns, channels)[: 2 + (channels > 1)], seed=name)

    return write


@pytest.fixture
def write_grey(tmp_path: Path) -> Callable[..., None]:
    """Write an image of one grey below ``tmp_path``, by default of a size that GlaS has."""

    def write(name: str, rows: int = 430, columns: int = 567) -> None:
        picture(tmp_path / name, np.full((rows, columns), 1))

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
