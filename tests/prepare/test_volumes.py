"""``prepare volumes``: layouts, labels, splits, DICOM series without patient data, second and killed runs."""

import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmdm.data.files.volumes import read_volume
from medmdm.data.lists import load_data_list
from medmdm.prepare import prepare
from medmdm.prepare.journal import Journal
from medmdm.prepare.publisher_list import read_published
from medmdm.prepare.release import open_release
from tests.data.dicom_files import write_dicom, write_series
from tests.made import refused
from tests.written import SHAPE, oblique, write_nifti

LABEL = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3).astype(np.float32)


def decathlon(folder: Path, count: int = 6) -> Path:
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 1000, SHAPE, dtype=np.int16)
        write_nifti(folder / "imagesTr" / f"case_{i:03}.nii.gz", values)
        write_nifti(folder / "labelsTr" / f"case_{i:03}.nii.gz", LABEL)
    return folder


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_decathlon_layout(tmp_path):
    source = decathlon(tmp_path / "set")
    table = prepare("volumes", source, tmp_path / "out")
    assert "no split is published" in table
    assert "0 background 33.6%, 1 class 1 33.6%, 2 class 2 32.9%" in table
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert content.information["labels"] == {"background": 0, "class 1": 1, "class 2": 2}
    assert content.information["split"] == "by volume (no patients are named), seed 0"
    assert len(content.training) == 5
    assert len(content.test) == 1
    for entry in (*content.training, *content.test):
        name = Path(entry["image"]).name
        assert "patient_id" not in entry  # a file's name is no patient's
        # The image is the source's file; the label has small whole numbers on the same grid.
        assert (tmp_path / "out" / entry["image"]).read_bytes() == (source / "imagesTr" / name).read_bytes()
        label = nib.load(tmp_path / "out" / entry["label"])
        assert label.get_data_dtype() == np.uint8
        assert np.array_equal(np.asanyarray(label.dataobj), LABEL)
        assert np.allclose(label.affine, oblique(), atol=1e-5)
    before = state(tmp_path / "out")
    assert "0 prepared, 6 kept" in prepare("volumes", source, tmp_path / "out")
    assert state(tmp_path / "out") == before


def test_a_killed_run_is_continued(tmp_path, monkeypatch):
    source = decathlon(tmp_path / "set")
    prepare("volumes", source, tmp_path / "whole")
    write, calls = Journal.write, []

    def dying(self: Journal, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare("volumes", source, tmp_path / "cut")
    monkeypatch.setattr(Journal, "write", write)
    assert "3 prepared, 3 kept" in prepare("volumes", source, tmp_path / "cut")
    files = [{name: content for name, (_, content) in state(tmp_path / name).items()} for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_published_list_is_followed(tmp_path):
    source = decathlon(tmp_path / "set")
    published = {
        "name": "Hearts", "licence": "CC-BY-SA 4.0", "labels": {"0": "background", "1": "left", "2": "right"},
        "training": [{"image": f"./imagesTr/case_00{i}.nii.gz", "label": "x"} for i in range(4)],
        "test": ["./imagesTr/case_004.nii.gz", "./imagesTr/case_005.nii.gz", "./imagesTr/case_009.nii.gz"],
    }  # fmt: skip
    (source / "dataset.json").write_text(json.dumps(published))
    table = prepare("volumes", source, tmp_path / "out")
    assert "1 of 7 volumes that its dataset.json names are not there" in table
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert content.name == "Hearts"
    assert content.information["licence"] == "CC-BY-SA 4.0"
    assert content.information["split"] == "official"
    assert content.information["labels"] == {"background": 0, "left": 1, "right": 2}
    assert [Path(entry["image"]).name for entry in content.test] == ["case_004.nii.gz", "case_005.nii.gz"]


@pytest.mark.parametrize(("labels", "known"), [
    # nnU-Net's regions: each number is a class here, under the smallest region's name that it has alone.
    ({"background": 0, "whole": [1, 2], "core": 2}, {"background": 0, "whole 1": 1, "core": 2}),
    ({"0": "background", "1": "lesion", "2": "lesion"}, {"background": 0, "lesion 1": 1, "lesion 2": 2}),
    (["lesion"], None),
])  # fmt: skip
def test_classes_of_a_published_list(tmp_path, labels, known):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with open_release(tmp_path) as release:
        information, _, _, notices = read_published(release)
    assert information.get("labels") == known
    assert any("classes of dataset.json are not known" in notice for notice in notices) == (known is None)


def test_labels_beside_images_subjects_and_channels(tmp_path):
    for patient in ("sub-01", "sub-02", "sub-03"):
        write_nifti(tmp_path / "bids" / patient / f"{patient}_T1.nii.gz")
        write_nifti(tmp_path / "bids" / patient / f"{patient}_T1_seg.nii.gz", LABEL.astype(np.uint8))
    prepare("volumes", tmp_path / "bids", tmp_path / "a", test=0.34)
    content = load_data_list(tmp_path / "a" / "dataset.json")
    entries = [*content.training, *content.test]
    assert sorted(entry["patient_id"] for entry in entries) == ["sub-01", "sub-02", "sub-03"]
    assert all("label" in entry for entry in entries)
    assert len(content.test) == 1

    for name in ("p1_frame1", "p1_frame2", "p2_frame1"):
        for channel in range(2):
            path = tmp_path / "nnu" / "imagesTr" / f"{name}_000{channel}.nii.gz"
            write_nifti(path, np.full(SHAPE, channel, np.int16))
        write_nifti(tmp_path / "nnu" / "labelsTr" / f"{name}.nii.gz", LABEL)
    prepare("volumes", tmp_path / "nnu", tmp_path / "b", subject="^imagesTr/(p[0-9])", test=0.3)
    content = load_data_list(tmp_path / "b" / "dataset.json")
    assert sorted(entry["patient_id"] for entry in (*content.training, *content.test)) == ["p1", "p1", "p2"]
    assert {e["patient_id"] for e in content.training}.isdisjoint(e["patient_id"] for e in content.test)
    array = read_volume(tmp_path / "b" / content.training[0]["image"]).array
    assert array.shape == (2, *SHAPE)
    assert (array[1] == 1).all()


def test_one_name_in_two_folders(tmp_path):
    for patient in ("a", "b"):
        write_nifti(tmp_path / "s" / patient / "t1.nii.gz", np.full(SHAPE, ord(patient), np.int16))
        write_nifti(tmp_path / "s" / patient / "label" / "t1.nii.gz", np.full(SHAPE, ord(patient) % 2, np.uint8))
    prepare("volumes", tmp_path / "s", tmp_path / "out", test=0)
    for entry in load_data_list(tmp_path / "out" / "dataset.json").training:
        image, label = (read_volume(tmp_path / "out" / entry[key]).array for key in ("image", "label"))
        assert np.array_equal(image % 2, label)


@pytest.mark.parametrize("zipped", [False, True])
def test_dicom_series_lose_the_patient(tmp_path, zipped):
    stored = np.arange(4 * 5 * 7, dtype=np.int16).reshape(4, 5, 7)
    source = tmp_path / "hospital"
    for i, patient in enumerate(("DOE^JANE", "ROE^RICHARD")):
        tags = {(0x0010, 0x0010): patient, (0x0010, 0x0020): f"MRN{i}"}
        for series in range(2):
            folder = source / patient.lower() / f"series{series}"
            write_series(folder, stored + i + series, uid=f"1.2.{i}.{series}", tags=tags)
    write_dicom(source / "doe^jane" / "scout.dcm", stored[0], {(0x0008, 0x0008): "ORIGINAL\\PRIMARY\\LOCALIZER"})
    if zipped:
        with zipfile.ZipFile(tmp_path / "hospital.zip", "w") as archive:
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(source))
    given = tmp_path / "hospital.zip" if zipped else source
    table = prepare("volumes", given, tmp_path / "out", test=0.5)
    assert "1 localisers or multi-frame DICOM files left out" in table
    assert "doe" not in table
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert len(content.training) == len(content.test) == 2
    training, test = ({e["patient_id"] for e in part} for part in (content.training, content.test))
    assert training | test == {"subject001", "subject002"}
    assert training.isdisjoint(test)
    original = read_volume(source / "doe^jane" / "series0")
    ours = read_volume(tmp_path / "out" / "images" / "subject001_series01.nii.gz")
    assert np.array_equal(ours.array, original.array)
    assert np.abs(ours.affine - original.affine).max() < 1e-4
    for _, written in state(tmp_path / "out").values():
        for secret in (b"JANE", b"DOE", b"doe", b"MRN"):
            assert secret not in written
    assert "0 prepared, 4 kept" in prepare("volumes", given, tmp_path / "out", test=0.5)


def test_what_is_wrong_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").touch()
    cases = {
        "grid": (np.zeros((5, 7, 3), np.uint8), None, "case_000.nii.gz is 5x7x3 but .* is 5x7x4"),
        "place": (LABEL, np.eye(4), "lies up to .* mm beside"),
        "fractions": (LABEL + 0.5, None, "holds values that are not whole numbers"),
        "negative": (LABEL - 1, None, "holds negative values"),
        "large": (LABEL * 70000, None, "the number 140000"),
    }
    for name, (label, affine, sentence) in cases.items():
        source = decathlon(tmp_path / name, 1)
        write_nifti(source / "labelsTr" / "case_000.nii.gz", label.astype(np.float32), affine)
        refused(sentence, prepare, "volumes", source, tmp_path / f"{name}-out")
        assert not (tmp_path / f"{name}-out" / "dataset.json").exists()
    refused("holds no volume", prepare, "volumes", tmp_path / "empty", tmp_path / "out")
    refused("no regular expression", prepare, "volumes", tmp_path / "grid", tmp_path / "out", subject="(")
    refused("finds nothing in", prepare, "volumes", tmp_path / "grid", tmp_path / "out", subject="patient")


def test_the_real_samples(real_data, tmp_path):
    table = prepare("volumes", real_data("radiology/hippocampus"), tmp_path / "out")
    assert "60 prepared" in table
    assert "all      60      60" in table
    assert "0 background 94.7%, 1 class 1 2.7%, 2 class 2 2.5%" in table
    before = state(tmp_path / "out")
    assert "60 kept" in prepare("volumes", real_data("radiology/hippocampus"), tmp_path / "out")
    assert state(tmp_path / "out") == before
    prepare("volumes", real_data("radiology/mr_dicom_series"), tmp_path / "dicom")
    assert os.listdir(tmp_path / "dicom" / "images") == ["subject001_series01.nii.gz"]
