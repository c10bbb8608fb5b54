"""What is written lies on its source: read back by the libraries that people use, and by our own readers."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.transforms import LoadImage
from PIL import Image

from medmdm.data.files.pictures import image_size, read_image, read_mask
from medmdm.data.files.volumes import Slicing, read_volume, volume_geometry
from medmdm.data.writers import SliceAssembler, encode_nifti, write_map, write_mask
from tests.data.dicom_files import write_series
from tests.made import refused
from tests.written import SHAPE, oblique, write_nifti


@pytest.fixture
def asymmetric() -> np.ndarray:
    """Return ``[20, 35]`` that no flip or transposition leaves as it is."""
    mask = np.zeros((20, 35), np.int64)
    mask[2:5, 4:30] = 1
    mask[2:18, 4:7] = 2
    mask[17, 33] = 3
    return mask


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("top", [3, 300])
def test_masks_overlay_their_picture(tmp_path, asymmetric, suffix, top):
    source = tmp_path / f"source{suffix}"
    picture = np.zeros((20, 35, 3), np.uint8)
    picture[asymmetric > 0] = 255
    Image.fromarray(picture).save(source)
    mask = asymmetric * (top // 3)
    path = write_mask(tmp_path / f"mask{suffix}", torch.from_numpy(mask)[None], source)
    assert np.array_equal(np.asarray(Image.open(path)), mask)
    assert np.array_equal(read_image(path)[0], mask)
    assert np.array_equal(read_image(path)[0] > 0, read_image(source)[0] > 0)
    if suffix == ".png" and top < 256:  # has a palette, which ITK turns into colours
        colours = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), colours)
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 4
        assert not colours[mask == 0].any()
        assert colours[mask > 0].max(axis=1).min() >= 128
    else:
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), mask)
    assert read_image(path).dtype == (np.uint8 if top < 256 else np.uint16)


def test_maps_of_pictures(tmp_path, write_png):
    source = write_png("a.png", 20, 35)
    maps = np.random.default_rng(0).random((3, 20, 35), dtype=np.float32)
    path = write_map(tmp_path / "p.tif", maps, source)
    with Image.open(path) as pages:
        assert pages.n_frames == 3
        for k in range(3):
            pages.seek(k)
            assert np.array_equal(np.asarray(pages), maps[k])
    assert np.array_equal(read_image(write_map(tmp_path / "u.tiff", maps[0], source))[0], maps[0])


@pytest.mark.parametrize("slope", [None, 2.0])
def test_volumes_keep_header_and_place(tmp_path, slope):
    affine = oblique((-1, 1, 1), (2, 0, 1))
    source = write_nifti(tmp_path / "a.nii.gz" if slope is None else tmp_path / "a.nii", affine=affine, slope=slope)
    loaded = nib.load(source)
    loaded.header["descrip"] = b"Jane Doe"
    loaded.set_qform(affine, code=1)
    loaded.set_sform(affine, code=4)
    loaded.header.set_xyzt_units("mm", "sec")
    nib.save(loaded, source)
    theirs = nib.load(source)
    mask = np.random.default_rng(0).integers(0, 5, SHAPE)
    ours = nib.load(write_mask(tmp_path / "mask.nii.gz", mask, source))
    assert np.array_equal(np.asanyarray(ours.dataobj), mask)
    assert ours.get_data_dtype() == np.uint8
    assert np.array_equal(ours.affine, theirs.affine)
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
        assert np.array_equal(ours.header[field], theirs.header[field]), field
    assert ours.header.get_xyzt_units() == ("mm", "sec")
    assert b"Jane" not in ours.header.binaryblock
    image, original = sitk.ReadImage(str(tmp_path / "mask.nii.gz")), sitk.ReadImage(str(source))
    assert np.allclose(image.GetDirection(), original.GetDirection())
    assert np.allclose(image.GetOrigin(), original.GetOrigin())
    probabilities = np.random.default_rng(0).random((2, *SHAPE))
    written = nib.load(write_map(tmp_path / "p.nii", probabilities, source))
    assert np.array_equal(np.asanyarray(written.dataobj), np.moveaxis(probabilities, 0, 3).astype(np.float32))
    assert np.array_equal(written.affine, theirs.affine)


def test_masks_of_dicom_series(tmp_path):
    stored = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)
    folder = write_series(tmp_path / "s", stored, orientation=(0, 1, 0, 0, 0, -1))
    volume = read_volume(folder)
    ours = nib.load(write_mask(tmp_path / "mask.nii.gz", volume.array[0] % 7, folder))
    assert np.array_equal(np.asanyarray(ours.dataobj), volume.array[0] % 7)
    assert np.abs(ours.affine - volume.affine).max() < 1e-4
    assert np.abs(ours.get_qform() - volume.affine).max() < 1e-3
    assert ours.header.get_zooms() == pytest.approx((0.7, 0.9, 3.0))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_volumes_from_slices(tmp_path, axis):
    source = write_nifti(tmp_path / "a.nii.gz", affine=oblique((1, -1, 1), (1, 2, 0)))
    volume = read_volume(source)
    slicing = Slicing(*volume_geometry(source), axis)
    truth = (volume.array > 60).astype(np.uint8)
    assembler = SliceAssembler(slicing, fill=9)
    slices = slicing.to_slices(truth)
    for k in range(1, len(slices)):
        assembler.add(k, torch.from_numpy(np.ascontiguousarray(slices[k])))
    expected = slicing.to_slices(truth).copy()
    expected[0] = 9
    assert np.array_equal(assembler.volume(), slicing.to_volume(expected))
    assembler.add(0, slices[0])
    path = write_mask(tmp_path / "mask.nii.gz", assembler.volume(), source)
    assert np.array_equal(np.asanyarray(nib.load(path).dataobj), truth[0])
    # What was made at another spacing comes back to the source's pixels.
    assembler.add(0, np.repeat(np.repeat(slices[0], 2, axis=1), 3, axis=2))
    assert np.array_equal(assembler.slices[0], slices[0])


def test_equal_content_gives_equal_bytes(tmp_path):
    source = write_nifti(tmp_path / "a.nii.gz")
    first = write_mask(tmp_path / "1.nii.gz", np.ones(SHAPE, int), source).read_bytes()
    assert first == write_mask(tmp_path / "2.nii.gz", np.ones(SHAPE, int), source).read_bytes()
    assert not list(tmp_path.glob(".*"))
    assert nib.Nifti1Image.from_bytes(encode_nifti(np.ones(SHAPE, bool), np.eye(4), compress=False)).shape == SHAPE


def test_the_page_on_writing(tmp_path, write_png, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "writing.md").read_text(encoding="utf-8")
    Image.open(write_png("data/case_1.png", 20, 35)).save(tmp_path / "data" / "case_1.tif")
    write_nifti(tmp_path / "data" / "case_2.nii.gz", affine=np.eye(4))
    write_series(tmp_path / "data" / "case_3_dicom", np.zeros((4, 7, 5), np.int16))
    given = {
        "mask": np.ones((20, 35), int), "probabilities": np.ones((2, 20, 35)), "volume_mask": np.ones(SHAPE, int),
        "uncertainty": np.ones((5, 7, 4)), "masks_of_slices": [(k, np.ones((1, 4, 5), np.uint8)) for k in range(7)],
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, dict(given))
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_what_is_wrong_is_said(tmp_path, write_png):
    picture, volume = write_png("a.png", 20, 35), write_nifti(tmp_path / "a.nii")
    for call, sentence in (
        (lambda: write_mask(tmp_path / "m.png", np.zeros((35, 20), int), picture), "has 20x35 pixels, what .* 35x20"),
        (lambda: write_mask(tmp_path / "m.png", np.full((20, 35), 0.5), picture), "holds fractions"),
        (lambda: write_mask(tmp_path / "m.png", np.full((20, 35), -1), picture), "holds -1 to -1: .* to 2147483647"),
        (lambda: write_mask(tmp_path / "m.tif", np.full((20, 35), 2**31), picture), "holds 2147483648 to 2147483648"),
        (lambda: write_mask(tmp_path / "m.tif", np.full((20, 35), np.inf), picture), "holds inf to inf"),
        (lambda: write_map(tmp_path / "m.png", np.zeros((20, 35)), picture), r"use \.tif"),
        (lambda: write_mask(tmp_path / "m.png", np.zeros(SHAPE, int), volume), r"name it \.nii\.gz"),
        (lambda: write_mask(tmp_path / "m.nii", np.zeros((2, *SHAPE), int), volume), "must agree"),
        (lambda: write_mask(tmp_path / "m.nii", np.zeros(SHAPE[::-1], int), volume), "5x7x4 .* 4x7x5"),
    ):
        refused(sentence, call)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii", "a.png"]


@pytest.mark.parametrize("numbers", [range(1), range(2), range(256), [0, 255], [7]])
def test_numbers_of_masks_survive_the_palette(tmp_path, write_png, numbers):
    source = write_png("a.png", 20, 35)
    mask = np.resize(np.array(numbers), (20, 35))
    path = write_mask(tmp_path / "m.png", mask, source)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
    for read in (read_image, read_mask):
        assert np.array_equal(read(path), mask[None])
    load = LoadImage(reader="PILReader", ensure_channel_first=True, image_only=True)
    assert np.array_equal(load(path)[0].numpy().T, mask)
    assert image_size(path) == (20, 35)
