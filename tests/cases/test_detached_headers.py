"""Headers of volumes name the files of their voxels: never one outside of their folder."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medmdm.cli import main
from medmdm.data.files.volumes import read_volume
from tests.made import refused

SIZE = 4 * 5 * 6
META = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.raw").write_bytes(bytes(range(SIZE)))
    folder = tmp_path / "data"
    (folder / "voxels").mkdir(parents=True)
    for place in (folder, folder / "voxels"):
        (place / "own.raw").write_bytes(bytes(range(SIZE)))
    return folder


@pytest.mark.parametrize(("name", "header"), [
    ("a.mhd", META + "ElementDataFile = ../secret.raw\n"),
    ("a.mhd", META + "ElementDataFile = {absolute}\n"),
    ("a.mhd", META + "ElementDataFile: voxels/../../secret.raw\n"),
    ("a.mhd", META + "ElementDataFile = LIST 3D\n../secret.raw\n"),
    ("a.mhd", META + "ElementDataFile = ../s%03d.raw 1 4 1\n"),
    ("a.mha", META + "ElementDataFile = ../secret.raw\n"),
    ("a.mhd", META + "ElementDataFile = C:\\secret.raw\n"),
    ("a.nhdr", NRRD + "data file: {absolute}\n"),
    ("a.nhdr", NRRD + "datafile: ../secret.raw\n"),
    ("a.nhdr", NRRD + "data file: LIST\n../secret.raw\n"),
    ("a.nhdr", NRRD + "Data File: ../s%d.raw 1 4 1\n"),
    ("a.nrrd", NRRD + "data file: ../secret.raw\n\n"),
])  # fmt: skip
def test_what_leaves_the_folder_is_refused(folder: Path, name: str, header: str, capsys) -> None:
    path = folder / name
    path.write_text(header.format(absolute=folder.parent / "secret.raw"))
    refused("leaves its folder", read_volume, path)
    refused("leaves its folder", read_volume, [path, path])
    assert main(["prepare", "volumes", str(folder), str(folder.parent / "out")]) == 1
    assert "leaves its folder" in capsys.readouterr().err
    assert not list((folder.parent / "out").rglob("*.nii.gz"))


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "link.raw").symlink_to(folder.parent / "secret.raw")
    (folder / "a.mhd").write_text(META + "ElementDataFile = link.raw\n")
    refused("leaves its folder", read_volume, folder / "a.mhd")


@pytest.mark.parametrize(("name", "header"), [
    ("a.mhd", META + "ElementDataFile = own.raw\n"),
    ("a.mhd", META + "ElementDataFile = voxels/own.raw\n"),
    ("a.nhdr", NRRD + "data file: own.raw\n"),
    ("a.nhdr", NRRD + "data file: ./own.raw\n"),
])  # fmt: skip
def test_what_stays_in_the_folder_is_read(folder: Path, name: str, header: str) -> None:
    (folder / name).write_text(header)
    found = read_volume(folder / name).array[0]
    assert np.array_equal(found.ravel(order="F"), np.arange(SIZE))


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_what_a_program_writes_is_read(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(0).integers(0, 255, (4, 5, 6), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array[0].T, array)
