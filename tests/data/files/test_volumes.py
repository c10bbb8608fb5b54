"""Reading volumes, against nibabel, SimpleITK, MONAI and loops over voxels."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import NibabelReader
from monai.transforms import LoadImage, LoadImaged

from medmdm.data.files.formats import is_volume
from medmdm.data.files.volumes import SimpleITKReader, read_volume, volume_geometry, volume_hash
from tests.made import refused
from tests.written import SHAPE, oblique, write_nifti

FLIPS = [((1, 1, 1), (0, 1, 2)), ((-1, 1, 1), (0, 1, 2)), ((1, -1, -1), (2, 0, 1)), ((-1, -1, 1), (1, 2, 0))]


@pytest.mark.parametrize(("flips", "order"), FLIPS)
def test_simpleitk_agrees_with_nibabel(tmp_path, flips, order):
    path = write_nifti(tmp_path / "a.nii.gz", affine=oblique(flips, order))
    ours = LoadImage(reader=SimpleITKReader(), image_only=True)(path)
    theirs = LoadImage(reader=NibabelReader(), image_only=True)(path)
    assert np.array_equal(ours.numpy(), theirs.numpy())
    assert np.abs(ours.affine - theirs.affine).max() < 1e-3
    assert np.abs(ours.affine - oblique(flips, order)).max() < 1e-3
    assert np.abs(read_volume(path).affine - oblique(flips, order)).max() < 1e-6


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii"])
def test_formats_of_simpleitk(tmp_path, suffix):
    source = write_nifti(tmp_path / "source.nii", affine=oblique((-1, 1, 1), (2, 0, 1)))
    image = sitk.ReadImage(str(source))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.array[0], np.arange(np.prod(SHAPE)).reshape(SHAPE))
    for index in [(0, 0, 0), (4, 2, 3), (1, 6, 0)]:  # mm for mm, by SimpleITK's own arithmetic (LPS)
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.abs((volume.affine @ [*index, 1])[:3] - point).max() < 1e-3
    assert volume_hash(volume) == volume_hash(read_volume(source))
    assert volume_geometry(tmp_path / f"a{suffix}")[0] == SHAPE


def test_slope_and_intercept(tmp_path):
    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = write_nifti(tmp_path / "a.nii", stored, slope=0.5, intercept=-100)
    assert np.array_equal(read_volume(path).array[0], stored * 0.5 - 100)
    array, _ = SimpleITKReader().get_data((path,))
    assert np.array_equal(array, stored * 0.5 - 100)


def test_fourth_axis_and_several_files_are_channels(tmp_path):
    four = np.arange(2 * np.prod(SHAPE), dtype=np.int16).reshape(*SHAPE, 2)
    path = write_nifti(tmp_path / "four.nii.gz", four)
    assert np.array_equal(read_volume(path).array, np.moveaxis(four, 3, 0))
    assert np.array_equal(SimpleITKReader().get_data((path,))[0], four)
    one = write_nifti(tmp_path / "one.nii.gz", np.ascontiguousarray(four[..., 0]))
    two = write_nifti(tmp_path / "two.nii.gz", np.ascontiguousarray(four[..., 1]))
    assert np.array_equal(read_volume([str(one), str(two)]).array, np.moveaxis(four, 3, 0))
    loaded = LoadImaged("image", reader=SimpleITKReader(), ensure_channel_first=True)({"image": [one, two]})["image"]
    assert np.array_equal(loaded.numpy(), np.moveaxis(four, 3, 0))
    moved = oblique()
    moved[0, 3] += 1
    far = write_nifti(tmp_path / "far.nii.gz", affine=moved)
    refused(r"far\.nii\.gz lies up to 1 mm beside .*register", read_volume, [str(one), str(far)])
    small = write_nifti(tmp_path / "small.nii.gz", np.zeros((5, 7, 3), np.int16))
    refused(r"small\.nii\.gz is 5x7x3 but .*one\.nii\.gz is 5x7x4", read_volume, [str(one), str(small)])


def test_hash_does_not_depend_on_type_or_axes(tmp_path):
    original = nib.load(write_nifti(tmp_path / "a.nii.gz"))
    nib.save(nib.as_closest_canonical(original).slicer[:, ::-1], tmp_path / "turned.nii.gz")
    nib.save(nib.Nifti1Image(original.get_fdata(dtype=np.float32), original.affine), tmp_path / "float.nii.gz")
    hashes = {volume_hash(read_volume(tmp_path / name)) for name in ("a.nii.gz", "turned.nii.gz", "float.nii.gz")}
    assert len(hashes) == 1
    assert volume_hash(read_volume(write_nifti(tmp_path / "m.nii.gz", affine=oblique((-1, 1, 1))))) not in hashes


def test_damaged_files_end_in_a_sentence(tmp_path):
    good = write_nifti(tmp_path / "good.nii.gz").read_bytes()
    plain = gzip.decompress(good)
    bomb = bytearray(plain[:352])
    bomb[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    contents = {
        "truncated.nii.gz": good[: len(good) // 2], "truncated.nii": plain[:-20], "empty.nii.gz": b"",
        "text.nii.gz": b"this is no volume", "bomb.nii.gz": gzip.compress(bytes(bomb)), "bomb.nii": bytes(bomb),
        "text.nrrd": b"NRRD0004\nnonsense", "text.mha": b"", "nothing.dcm": b"\0" * 128 + b"DICM",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(name.replace(".", r"\."), read_volume, tmp_path / name)
    refused("does not exist", read_volume, tmp_path / "gone.nii.gz")
    refused("does not exist", SimpleITKReader().get_data, (tmp_path / "gone.nrrd",))
    flat = bytearray(plain)
    flat[280:328] = np.zeros(12, "<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "flat.nii").write_bytes(flat)
    refused("affine that maps its voxels to nowhere", read_volume, tmp_path / "flat.nii")


def test_what_is_a_volume(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.nii", "b.NII.GZ", "c.nrrd", "d.mha", "e.png", "f.gz"):
        (tmp_path / name).touch()
    assert [is_volume(tmp_path / name) for name in ("a.nii", "b.NII.GZ", "c.nrrd", "d.mha")] == [True] * 4
    assert [is_volume(tmp_path / name) for name in ("e.png", "f.gz", "folder")] == [False] * 3


def test_real_volumes(real_data):
    folder: Path = real_data("radiology")
    files = sorted((folder / "hippocampus" / "images").glob("*.nii.gz"))[:3] + list(folder.glob("ct_nifti/*.nii.gz"))
    for path in files:
        theirs = nib.load(path)
        array, meta = SimpleITKReader().get_data((path,))
        volume = read_volume(path)
        assert np.array_equal(array, np.asanyarray(theirs.dataobj))
        assert np.array_equal(volume.array[0], np.asanyarray(theirs.dataobj))
        assert np.abs(meta["affine"] - theirs.affine).max() < 1e-3
        assert np.array_equal(volume.affine, theirs.affine)
