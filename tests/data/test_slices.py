"""Slices of volumes: the right way up, read once, chosen by rule, held out as wholes, put back exactly."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import DataLoader
from monai.transforms import Compose, RandSpatialCropd

import medmdm.data.slices as store_module
from medmdm.data.dataset import CropDataset, StepSampler
from medmdm.data.files.volumes import SLICE_AXES, Slicing, read_volume, volume_hash
from medmdm.data.holdout import hold_out
from medmdm.data.selection import select_training_images, slice_volumes
from medmdm.data.slices import LoadSliced, VolumeStore, open_slices, slice_entries
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped
from medmdm.data.transforms.spatial import CutRegiond, PadToSized, ResampleToSpacingd
from medmdm.data.writers import SliceAssembler, encode_nifti
from medmdm.errors import UserError
from tests.data.dicom_files import write_series
from tests.data.files.test_dicom import by_simpleitk
from tests.made import refused
from tests.written import SHAPE, oblique, write_nifti

# Direction in which slices, rows and columns go, in RAS.
DIRECTIONS = {
    "axial": ([0, 0, 1], [0, -1, 0], [-1, 0, 0]),
    "coronal": ([0, -1, 0], [0, 0, -1], [-1, 0, 0]),
    "sagittal": ([-1, 0, 0], [0, 0, -1], [0, -1, 0]),
}


@pytest.fixture
def store(tmp_path) -> VolumeStore:
    return VolumeStore(tmp_path / "store")


@pytest.fixture
def cohort(tmp_path) -> Callable[..., Path]:
    """Write a folder of volumes of noise with labels beside them."""

    def write(count: int = 6, shape: tuple[int, int, int] = (20, 24, 8)) -> Path:
        for i in range(count):
            values = np.random.default_rng(i).integers(0, 1000, shape, dtype=np.int16)
            write_nifti(tmp_path / "set" / "imagesTr" / f"case_{i}.nii.gz", values)
            write_nifti(tmp_path / "set" / "labelsTr" / f"case_{i}.nii.gz", (values > 500).astype(np.uint8))
        return tmp_path / "set"

    return write


@pytest.mark.parametrize("axis", SLICE_AXES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_slices_lie_as_documented_and_go_back(axis, order, flips):
    affine = oblique(flips, order)
    volume = np.random.default_rng(0).normal(size=(2, *SHAPE))
    slicing = Slicing(SHAPE, affine, axis)
    slices = slicing.to_slices(volume)
    assert slices.shape == (slicing.num_slices, 2, *slicing.slice_shape)
    # Brute force: the index of every voxel, cut like the volume, says where in the patient a pixel is.
    indices = slicing.to_slices(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")))
    points = np.einsum("ij,sjrc->sirc", affine[:3, :3], indices) + affine[:3, 3][None, :, None, None]
    for step, direction, size in (
        (points[1, :, 0, 0] - points[0, :, 0, 0], DIRECTIONS[axis][0], slicing.slice_step),
        (points[0, :, 1, 0] - points[0, :, 0, 0], DIRECTIONS[axis][1], slicing.spacing[0]),
        (points[0, :, 0, 1] - points[0, :, 0, 0], DIRECTIONS[axis][2], slicing.spacing[1]),
    ):
        assert step @ direction > 0.9 * np.linalg.norm(step)
        assert np.linalg.norm(step) == pytest.approx(size)
    i, j, k = indices[:, 0], indices[:, 1], indices[:, 2]
    assert np.array_equal(slices[:, 1], volume[1][i, j, k])
    assert np.array_equal(slicing.to_volume(slices), volume)


def test_acceptance_nifti_goes_through_slices_exactly(tmp_path, store):
    stored = np.random.default_rng(0).integers(-1000, 3000, SHAPE, dtype=np.int16)
    path = write_nifti(tmp_path / "a.nii", stored, oblique((-1, 1, 1), (2, 0, 1)), slope=0.1, intercept=-7.3)
    source = nib.load(path)
    for axis in SLICE_AXES:
        volume = store.get(str(path), axis)
        assert np.array_equal(volume.slicing.to_volume(open_slices(volume.path))[0], np.asanyarray(source.dataobj))
        assert np.array_equal(volume.slicing.affine, source.affine)


def test_store_decodes_once(tmp_path, store, monkeypatch):
    path = write_nifti(tmp_path / "a.nii.gz")
    reads = []
    monkeypatch.setattr(store_module, "read_volume", lambda *a: reads.append(a) or read_volume(*a))
    first = store.get(str(path))
    for _ in range(2):
        assert VolumeStore(store.folder).get(str(path)).digest == first.digest == volume_hash(read_volume(path))
    assert len(reads) == 1
    store.get(str(path), "coronal")
    assert len(reads) == 2
    os.utime(path, ns=(0, 0))  # a changed file is decoded again
    store.get(str(path))
    assert len(reads) == 3
    cut = store.get(str(path)).path
    cut.write_bytes(cut.read_bytes()[:-8])  # so is one whose copy is damaged
    store.get(str(path))
    assert len(reads) == 4
    names = [file.name for file in store.folder.iterdir()]
    assert not any("a.nii" in name or name.endswith(".part") for name in names)
    assert all(str(tmp_path) not in file.read_text() for file in store.folder.glob("*.json"))


def test_statistics_of_the_store(tmp_path, store):
    values = np.random.default_rng(0).normal(100, 30, (30, 20, 10)).astype(np.float32)
    values[:, :, :4] = 0
    values[0, 0, 9] = 1e6  # one voxel must not decide what is foreground
    volume = store.get(str(write_nifti(tmp_path / "a.nii.gz", values, np.eye(4))))
    assert np.allclose(volume.percentile_range(0.5, 99.5)[0], np.percentile(values, [0.5, 99.5]), rtol=1e-5)
    nonzero = np.percentile(values[values != 0], [1, 99])
    assert np.allclose(volume.percentile_range(1, 99, nonzero=True)[0], nonzero, rtol=1e-5)
    assert volume.constant == (True,) * 4 + (False,) * 6
    assert all(share == 0 for share in volume.foreground[:4])
    assert all(share > 0.9 for share in volume.foreground[4:])


def test_not_finite(tmp_path, store):
    values = np.ones(SHAPE, np.float32)
    values[1, 1, 1] = np.nan
    refused(r"a\.nii holds values that are not finite", store.get, str(write_nifti(tmp_path / "a.nii", values)))
    assert not list(store.folder.glob("*"))


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with slice_cache"):
        VolumeStore(tmp_path / "file" / "store").get(str(write_nifti(tmp_path / "a.nii")))


def test_entries_with_label_axis_and_context(tmp_path, store):
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 100, SHAPE, dtype=np.int16) for _ in range(2))
    paths = [str(write_nifti(tmp_path / f"{name}.nii", a, np.eye(4))) for name, a in (("t1", one), ("t2", two))]
    label = str(write_nifti(tmp_path / "l.nii", (one > 50).astype(np.float32), np.eye(4)))
    case = {"image": paths, "label": label, "axis": "coronal", "grade": "x"}
    entries = slice_entries(case, store, percentiles=[0, 100])
    assert len(entries) == SHAPE[1]
    load = LoadSliced(["image", "label"], context_slices=[1, 0])
    for k, entry in enumerate(entries):
        assert entry["grade"] == "x"
        assert entry["intensity_range"] == [[one.min(), one.max()], [two.min(), two.max()]]
        sample = load(entry)
        # Slices go to the back, rows to the feet, columns to the left; neighbours are repeated at the ends.
        expected = [
            a[::-1, SHAPE[1] - 1 - min(max(k + d, 0), SHAPE[1] - 1), ::-1].T for a in (one, two) for d in (-1, 0, 1)
        ]
        assert np.array_equal(sample["image"].numpy(), np.stack(expected))
        assert np.array_equal(sample["label"].numpy()[0], expected[1] > 50)
        scaled = ScaleIntensityByDtyped("image")(sample)["image"]
        low, high = one.min(), one.max()
        assert np.allclose(scaled[:3], (np.stack(expected[:3]) - low) / (high - low) * 2 - 1, atol=1e-6)
    bad = str(write_nifti(tmp_path / "bad.nii", np.zeros((5, 7, 3), np.uint8), np.eye(4)))
    refused(r"bad\.nii is 5x7x3 but .*t1\.nii is 5x7x4", slice_entries, {"image": paths, "label": bad}, store)
    moved = str(write_nifti(tmp_path / "moved.nii", np.zeros(SHAPE, np.uint8), np.diag([1, 1, 2, 1])))
    refused(r"moved\.nii lies up to .* mm beside", slice_entries, {"image": paths, "label": moved}, store)


def test_a_folder_of_volumes(cohort, tmp_path):
    selection = select_training_images(cohort(12))
    assert "12 volumes, 12 masks left out" in selection.sentences[0]
    sliced = slice_volumes(selection, percentiles=[1, 99], store=tmp_path / "store")
    assert {entry["image"] for entry in sliced.training}.isdisjoint(entry["image"] for entry in sliced.validation)
    assert len(sliced.training) == 11 * 8
    assert len(sliced.validation) == 8
    assert not any("label" in entry["image"] for entry in (*sliced.training, *sliced.validation))
    assert slice_volumes(selection, percentiles=[1, 99], store=tmp_path / "store").training == sliced.training
    other = slice_volumes(selection, percentiles=[1, 99], store=tmp_path / "store", seed=1)
    assert other.validation != sliced.validation


def test_patients_are_held_out_whole(cohort, tmp_path):
    folder = cohort(12)
    entries = [{"image": f"imagesTr/case_{i}.nii.gz", "patient_id": f"p{i // 2}"} for i in range(12)]
    (folder / "dataset.json").write_text(json.dumps({"name": "x", "training": entries}))
    sliced = slice_volumes(select_training_images(folder), percentiles=[1, 99], store=tmp_path / "store")
    held = {entry["patient_id"] for entry in sliced.validation}
    assert len(held) == 1
    assert len(sliced.validation) == 2 * 8
    assert held.isdisjoint(entry["patient_id"] for entry in sliced.training)


def test_a_slab_of_the_only_volume(cohort, tmp_path):
    selection = select_training_images(cohort(1, (20, 24, 20)))
    sliced = slice_volumes(selection, percentiles=[1, 99], context_slices=1, store=tmp_path / "store")
    assert [entry["slice"] for entry in sliced.validation] == [8, 9, 10]
    assert sorted(entry["slice"] for entry in sliced.training) == [*range(6), *range(13, 20)]
    assert "neighbours train" in sliced.sentences[-1]


def test_empty_slices_are_left_out(tmp_path):
    values = np.random.default_rng(0).integers(200, 300, (20, 20, 10), dtype=np.int16)
    values[:, :, :3] = 0
    values[:, :, 3] = np.random.default_rng(1).integers(0, 5, (20, 20))  # noise without foreground
    write_nifti(tmp_path / "s" / "a.nii", values, np.eye(4))
    selection = select_training_images(tmp_path / "s")
    for rule, left in ((0.01, 6), (0, 7), (None, 10)):
        sliced = slice_volumes(selection, min_foreground=rule, percentiles=[0, 100], store=tmp_path / "c")
        assert len(sliced.training) + len(sliced.validation) == left
    assert (
        "10 slices, 4 of them left out"
        in slice_volumes(selection, percentiles=[0, 100], store=tmp_path / "c").sentences[-2]
    )
    write_nifti(tmp_path / "flat" / "a.nii", np.full(SHAPE, 7, np.int16))
    with pytest.raises(UserError, match="each of the 4 slices is empty"):
        slice_volumes(select_training_images(tmp_path / "flat"), percentiles=[0, 100], store=tmp_path / "c")


def test_what_is_wrong_is_said(cohort, tmp_path, write_png):
    selection = select_training_images(cohort(1))
    for arguments, sentence in (
        ({}, "set window \\(CT\\) or percentiles \\(MR\\)"),
        ({"percentiles": [1, 99], "intensity_range": [0, 1]}, "keep one"),
        ({"percentiles": [99, 1]}, "give \\[lower, upper\\]"),
        ({"percentiles": [1, 99], "axis": "axail"}, "did you mean 'axial'"),
        ({"percentiles": [1, 99], "context_slices": -1}, "give 0 or more"),
        ({"percentiles": [1, 99], "min_foreground": 2}, "min_foreground is 2"),
    ):
        refused(sentence, slice_volumes, selection, store=tmp_path / "store", **arguments)
    write_png("png/a.png")
    pictures = select_training_images(tmp_path / "png")
    assert slice_volumes(pictures, percentiles=[1, 99]).training == slice_volumes(pictures).training
    with pytest.raises(UserError, match="has no neighbouring slices"):
        LoadSliced("image", context_slices=1)({"image": str(tmp_path / "png" / "a.png")})


def pipeline(crop: int, spacing: float | None = None) -> list:
    return [
        LoadSliced("image"), CutRegiond("image"), ResampleToSpacingd("image", spacing), PadToSized("image", crop),
        RandSpatialCropd("image", (crop, crop), random_size=False), ScaleIntensityByDtyped("image", (0, 1000)),
    ]  # fmt: skip


def test_crops_of_slices(cohort, tmp_path):
    sliced = slice_volumes(select_training_images(cohort()), intensity_range=[0, 1000], store=tmp_path / "store")
    held_out = hold_out(sliced, 16, 4)
    cached = CropDataset(held_out.training, Compose(pipeline(16)), progress=False)
    uncached = CropDataset(held_out.training, Compose(pipeline(16)), cache_gib=0, progress=False)
    for k in range(10):
        assert np.array_equal(cached[k]["image"], uncached[k]["image"])
        assert cached[k]["image"].shape == (1, 16, 16)
    trained = {Path(entry["image"]).name for entry in held_out.training}
    assert len(cached.ledger) == len(trained) == 5  # a volume each, not a slice each
    folder = tmp_path / "set" / "imagesTr"
    assert cached.ledger == sorted(volume_hash(read_volume(folder / name)) for name in trained)
    assert len(set(cached.case_hashes)) == 5 * 8
    assert held_out.images(Compose(pipeline(16)[:4] + pipeline(16)[5:])).shape == (4, 1, 16, 16)
    assert all("patient_id" not in crop for crop in held_out.crops)


def test_workers_change_nothing(cohort, tmp_path):
    sliced = slice_volumes(select_training_images(cohort()), intensity_range=[0, 1000], store=tmp_path / "store")
    dataset = CropDataset(sliced.training, Compose(pipeline(16)), cache_gib=0, progress=False)
    batches = [
        [batch["image"] for batch in DataLoader(dataset, batch_sampler=StepSampler(4, 6), num_workers=workers)]
        for workers in (0, 2)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))


def test_few_slices_are_in_memory_at_a_time(cohort, tmp_path, monkeypatch):
    sliced = slice_volumes(select_training_images(cohort()), intensity_range=[0, 1000], store=tmp_path / "store")
    waiting, most = [0], [0]
    prepare, finish = CropDataset._prepare, CropDataset._finish

    def counted_prepare(self, which):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        return prepare(self, which)

    def counted_finish(self, item):
        waiting[0] -= 1
        return finish(self, item)

    monkeypatch.setattr(CropDataset, "_prepare", counted_prepare)
    monkeypatch.setattr(CropDataset, "_finish", counted_finish)
    CropDataset(sliced.training, Compose(pipeline(16)), cache_gib=0, num_threads=2, progress=False)
    assert waiting[0] == 0
    assert most[0] <= 8


def test_crops_at_another_spacing(cohort, tmp_path):
    sliced = slice_volumes(select_training_images(cohort()), intensity_range=[0, 1000], store=tmp_path / "store")
    assert np.allclose(sliced.training[0]["spacing"], [1.1, 0.8])
    held_out = hold_out(sliced, 8, 4, spacing=(1.6, 1.6))
    for crop in held_out.crops:  # the least numbers of pixels that give eight
        rows, columns = (end - first for first, end in (crop["region"]["rows"], crop["region"]["columns"]))
        assert (rows, columns) == (11, 15)
    images = [Compose(pipeline(8, 1.6)[:3])(dict(crop))["image"] for crop in held_out.crops]
    assert all(image.shape[1] >= 8 and image.shape[2] >= 8 for image in images)


def test_pictures_and_dicom_in_one_list(tmp_path, write_png):
    write_png("grey.png", 30, 30, channels=1)
    write_series(tmp_path / "dicom", np.random.default_rng(0).integers(0, 200, (6, 20, 20)).astype(np.int16))
    entries = [{"image": "grey.png", "magnification": 10}, {"image": "dicom", "axis": "sagittal", "patient_id": "1"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "x", "spacing": 0.5, "training": entries}))
    sliced = slice_volumes(select_training_images(tmp_path), intensity_range=[0, 255], store=tmp_path / "store")
    picture, *slices = sliced.training
    assert picture["spacing"] == [0.001, 0.001]
    assert len(slices) == 20
    assert slices[0]["spacing"] == pytest.approx([3.0, 0.9])
    assert LoadSliced("image")(slices[0])["image"].shape == (1, 6, 20)


def test_acceptance_dicom_through_slices_to_nifti(tmp_path, store, real_data):
    folder = real_data("radiology/mr_dicom_series")
    sitk.WriteImage(by_simpleitk(folder), str(tmp_path / "theirs.nii.gz"))
    theirs = nib.load(tmp_path / "theirs.nii.gz")
    for axis in SLICE_AXES:
        volume = store.get(str(folder), axis)
        assembler = SliceAssembler(volume.slicing, dtype="int16")
        for k, array in enumerate(open_slices(volume.path)):
            assembler.add(k, np.array(array))
        (tmp_path / "ours.nii.gz").write_bytes(encode_nifti(assembler.volume()[0], volume.slicing.affine))
        ours = nib.load(tmp_path / "ours.nii.gz")
        assert np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
        assert np.abs(ours.affine - theirs.affine).max() < 1e-3
        assert np.allclose(ours.header.get_zooms(), theirs.header.get_zooms(), atol=1e-3)


def test_hippocampus_volumes_go_back_exactly(real_data, store):
    for path in sorted(real_data("radiology/hippocampus/images").glob("*.nii.gz"))[:4]:
        source = nib.load(path)
        volume = store.get(str(path), "sagittal")
        back = volume.slicing.to_volume(open_slices(volume.path))[0]
        assert back.dtype == source.get_data_dtype()
        assert np.array_equal(back, np.asanyarray(source.dataobj))
        assert np.array_equal(volume.slicing.affine, source.affine)


def test_whole_volumes_are_their_axial_slices_and_empty_ones_are_left_out(tmp_path):
    write_nifti(tmp_path / "set" / "a.nii.gz", None, oblique((-1, 1, 1), (2, 0, 1)))  # its own axis is not asked
    write_nifti(tmp_path / "set" / "flat.nii.gz", np.full(SHAPE, 7, np.int16), oblique())
    write_nifti(tmp_path / "set" / "one.nii.gz", np.arange(30, dtype=np.int16).reshape(5, 6, 1), np.eye(4))
    entries = [{"image": f"{name}.nii.gz", "axis": "sagittal"} for name in ("a", "flat", "one")]
    selection = select_training_images(tmp_path / "set", {"name": "three", "training": entries})
    settings = {"axis": "none", "percentiles": [0, 100], "store": tmp_path / "store", "progress": False}
    chosen = slice_volumes(selection, **settings)
    names = [Path(entry["image"]).name for entry in chosen.training]
    assert names == ["a.nii.gz", "one.nii.gz"]
    assert not chosen.validation
    volume = read_volume(tmp_path / "set" / "a.nii.gz")
    slicing = Slicing(SHAPE, volume.affine, "axial")
    entry = chosen.training[0]
    assert entry["spacing"] == pytest.approx([slicing.slice_step, *slicing.spacing])
    loaded = CutRegiond("image")(LoadSliced("image")(entry))["image"].numpy()
    first, end = entry.get("region", {}).get("slices", (0, slicing.num_slices))
    expected = slicing.to_slices(volume.array)
    assert np.array_equal(loaded, np.swapaxes(expected[first:end], 0, 1))
    assert entry["intensity_range"] == [[float(volume.array.min()), float(volume.array.max())]]
    loaded[:] = 0  # it is a copy: what is stored stays
    assert open_slices(entry["stored"]["image"]).any()
    (whole,) = slice_volumes(selection, min_foreground=None, **settings).training[:1]
    assert "region" not in whole
    assert LoadSliced("image")(whole)["image"].shape == (1, slicing.num_slices, *slicing.slice_shape)
    alone = select_training_images(tmp_path / "set", {"name": "flat", "training": entries[1:2]})
    with pytest.raises(UserError, match=r"each of the \d+ slices is empty"):
        slice_volumes(alone, **settings)
