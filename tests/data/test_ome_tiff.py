"""OME-TIFFs as tifffile reads them: values, axes, size of the pixels in µm, names of the channels."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from medmdm.data.ome_tiff import TILE, write_ome_tiff
from tests.made import refused

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def pixels_of(path: Path) -> ElementTree.Element:
    with tifffile.TiffFile(path) as file:
        assert file.ome_metadata is not None
        found = ElementTree.fromstring(file.ome_metadata).find(f"{OME}Image/{OME}Pixels")
    assert found is not None
    return found


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (TILE + 3, 20), (3, 7, 4), (1, 6, 8)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "bool"])
def test_what_is_read_is_what_was_written(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    path = write_ome_tiff(tmp_path / "a.ome.tif", array, (0.0005, 0.00025))
    read = tifffile.imread(path)
    np.testing.assert_array_equal(read.reshape(shape), array)
    assert read.dtype == (np.uint8 if dtype == "bool" else array.dtype)
    found = pixels_of(path)
    assert (found.get("SizeY"), found.get("SizeX")) == (str(shape[-2]), str(shape[-1]))
    assert (float(found.get("PhysicalSizeY", 0)), float(found.get("PhysicalSizeX", 0))) == (0.5, 0.25)
    assert found.get("PhysicalSizeXUnit") == found.get("PhysicalSizeYUnit") == "µm"


def test_names_and_equal_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((2, 30, 20), np.float32)
    one, two, other = (tmp_path / f"{name}.ome.tif" for name in "abc")
    write_ome_tiff(one, array, channels=["background", "Drüse"])
    write_ome_tiff(two, array, channels=["background", "Drüse"])
    write_ome_tiff(other, array + 1, channels=["background", "Drüse"])
    found = pixels_of(one)
    assert [channel.get("Name") for channel in found.findall(f"{OME}Channel")] == ["background", "Drüse"]
    assert found.get("PhysicalSizeX") is None
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.tif", "b.ome.tif", "c.ome.tif"]


def test_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    refused("has the shape", write_ome_tiff, path, np.zeros((2, 3, 4, 5), np.uint8))
    refused("has the shape", write_ome_tiff, path, np.zeros((0, 5), np.uint8))
    refused("holds no int64", write_ome_tiff, path, np.zeros((4, 5), np.int64))
    refused("1 names for channels", write_ome_tiff, path, np.zeros((2, 4, 5), np.uint8), channels=["a"])
    assert not path.exists()
