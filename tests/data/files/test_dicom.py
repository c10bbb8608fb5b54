"""DICOM series, against SimpleITK's own reading and by hand."""

import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImage

from medmdm.data.files.dicom import choose_series
from medmdm.data.files.formats import is_volume
from medmdm.data.files.volumes import SimpleITKReader, read_volume, volume_geometry
from medmdm.errors import UserError, warn_once
from tests.data.dicom_files import write_dicom, write_series
from tests.made import refused

STORED = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)  # slices, rows, columns
TILTED = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
SLOPE, INTERCEPT, PHOTOMETRIC = (0x0028, 0x1053), (0x0028, 0x1052), (0x0028, 0x0004)


def by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def simpleitk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), TILTED, SAGITTAL])
def test_agrees_with_simpleitk(tmp_path, orientation):
    folder = write_series(tmp_path / "s", STORED, orientation=orientation, tags={SLOPE: "2", INTERCEPT: "-1024"})
    image, volume = by_simpleitk(folder), read_volume(folder)
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert np.array_equal(volume.array[0], STORED.transpose(2, 1, 0) * 2 - 1024)
    assert np.abs(volume.affine - simpleitk_affine(image)).max() < 1e-3
    loaded = LoadImage(reader=SimpleITKReader(), image_only=True)(folder)
    assert np.array_equal(loaded.numpy(), volume.array[0])
    assert np.allclose(loaded.affine, volume.affine)
    shape, affine = volume_geometry(folder)
    assert shape == (7, 5, 6)
    assert np.array_equal(affine, volume.affine)
    assert is_volume(folder)


def test_each_file_has_its_own_slope(tmp_path):
    for k in range(3):
        write_dicom(
            tmp_path / f"{k}.dcm",
            STORED[k],
            {(0x0020, 0x0032): f"0\\0\\{k * 2}", SLOPE: str([1, 0.5, 2][k]), INTERCEPT: "0"},
        )
    array = read_volume(tmp_path).array[0]
    for k, slope in enumerate([1, 0.5, 2]):
        assert np.array_equal(array[:, :, k], STORED[k].T * slope)


@pytest.mark.parametrize(("kind", "bits", "total"), [("uint16", 16, 65535), ("uint16", 12, 4095), ("int16", 16, -1)])
def test_white_is_zero(tmp_path, kind, bits, total):
    tags = {PHOTOMETRIC: "MONOCHROME1", (0x0028, 0x0101): bits, (0x0028, 0x0102): bits - 1, SLOPE: "2", INTERCEPT: "7"}
    folder = write_series(tmp_path / "s", STORED.astype(kind), tags=tags)
    assert np.array_equal(read_volume(folder).array[0], (total - STORED.transpose(2, 1, 0).astype(int)) * 2 + 7)


def test_several_series(tmp_path):
    write_series(tmp_path, STORED, uid="1.2.1", tags={(0x0008, 0x103E): "T1 axial"}, prefix="a")
    write_series(tmp_path, STORED[:4] + 1, uid="1.2.2", prefix="b")
    with pytest.raises(
        UserError, match=r"holds 2 series: .*1\.2\.1 \(T1 axial, 6 files\); 1\.2\.2 \(4 files\)"
    ) as raised:
        read_volume(tmp_path)
    assert "DOE" not in str(raised.value)
    assert "4711" not in str(raised.value)
    assert read_volume(tmp_path, "1.2.2").array.shape == (1, 7, 5, 4)
    array, _ = SimpleITKReader(series_uid="1.2.1").get_data((tmp_path,))
    assert array.shape == (7, 5, 6)
    refused(r"holds no series 9: it holds 1\.2\.1", read_volume, tmp_path, "9")


def test_localisers_are_left_out(tmp_path, caplog):
    warn_once.cache_clear()
    whole = read_volume(write_series(tmp_path / "plain", STORED)).array
    # A series of its own, known by its image type; then files of the series, known by orientation, size or frames.
    own = write_series(tmp_path / "own", STORED)
    write_series(own, STORED[:2], uid="9", prefix="x", tags={(0x0008, 0x0008): "ORIGINAL\\PRIMARY\\LOCALIZER"})
    turned = write_series(tmp_path / "turned", STORED)
    write_series(turned, STORED[:1], orientation=SAGITTAL, prefix="x")
    larger = write_series(tmp_path / "larger", STORED)
    write_series(larger, np.zeros((1, 9, 9), np.int16), prefix="x")
    frames = write_series(tmp_path / "frames", STORED)
    write_dicom(frames / "x.dcm", STORED, {(0x0020, 0x000E): "1.2.3.4"})
    with caplog.at_level(logging.WARNING):
        for folder, sentence in (
            (own, "2 files of localisers left out"),
            (turned, "1 file of 7 left out"),
            (larger, "1 file of 7 left out"),
            (frames, "1 file of 7 left out"),
        ):
            assert np.array_equal(read_volume(folder).array, whole)
            assert f"{folder}: {sentence}" in caplog.text


def test_what_makes_no_volume(tmp_path):
    write_dicom(tmp_path / "multi" / "a.dcm", STORED)
    refused(r"a\.dcm is a multi-frame DICOM file \(6 frames\)", read_volume, tmp_path / "multi")
    write_series(tmp_path / "echoes", STORED, prefix="a")
    write_series(tmp_path / "echoes", STORED + 1, prefix="b")
    refused("several images at one position", read_volume, tmp_path / "echoes")
    write_series(tmp_path / "mixed", STORED[:3], prefix="a")
    write_series(tmp_path / "mixed", STORED[:3], orientation=SAGITTAL, prefix="b")
    refused("2 different sizes, spacings or orientations", read_volume, tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    refused("holds no DICOM image", choose_series, tmp_path / "empty")
    refused("does not exist", choose_series, tmp_path / "gone")
    folder = write_series(tmp_path / "cut", STORED)
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-10])
    refused(f"{victim.name} is not a readable DICOM image", read_volume, folder)


def test_gaps_are_reported(tmp_path):
    places = [np.array([0, 0, z]) for z in (0, 3, 6, 12, 15, 18)]
    series = choose_series(write_series(tmp_path / "missing", STORED, positions=places))
    sentence = "1 slice seems to be missing (first gap after slice 3 of 6: 6.00 mm instead of 3.00 mm)"
    assert sentence in series.warnings[0]
    places = [np.array([0, 0, z]) for z in (0, 3, 6, 9.4, 12.4, 15.4)]
    series = choose_series(write_series(tmp_path / "uneven", STORED, positions=places))
    assert "3.00 to 3.40 mm apart" in series.warnings[0]
    assert not choose_series(write_series(tmp_path / "even", STORED)).warnings


def test_tilted_gantry_and_single_slice(tmp_path):
    # Slices shift by 0.5 mm a step along y: the affine is sheared, as positions say.
    places = [np.array([1.0, 0.5 * k, 3.0 * k]) for k in range(6)]
    affine = read_volume(write_series(tmp_path / "tilt", STORED, positions=places)).affine
    for k in range(6):
        assert np.allclose((affine @ [0, 0, k, 1])[:3], places[k] * [-1, -1, 1])
    volume = read_volume(write_dicom(tmp_path / "one.dcm", STORED[0], {(0x0018, 0x0050): "4.5"}))
    assert volume.array.shape == (1, 7, 5, 1)
    assert np.linalg.norm(volume.affine[:3, 2]) == pytest.approx(4.5)


def test_names_without_suffix(tmp_path):
    folder = write_series(tmp_path / "s", STORED)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"1.2.840.{i}")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "notes.txt").write_text("x")
    assert read_volume(folder).array.shape == (1, 7, 5, 6)


def test_real_series(real_data):
    folder = real_data("radiology/mr_dicom_series")
    image, volume = by_simpleitk(folder), read_volume(folder)
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    corner = np.array([511, 511, 21, 1])
    assert np.abs((volume.affine - simpleitk_affine(image)) @ corner).max() < 5e-3
    assert np.abs(volume.affine - simpleitk_affine(image)).max() < 1e-3
