"""Volumes and labels of public layouts are paired, and patients told apart, by numbers and folders; or it is said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from medmdm.check.data_list import check
from medmdm.data.files.volumes import read_volume
from medmdm.prepare import prepare
from tests.data.dicom_files import write_series
from tests.made import refused
from tests.written import SHAPE, write_nifti


def pair(root: Path, image: str, label: str | None, number: int) -> None:
    """An image and its label, whose values say that they belong together."""
    write_nifti(root / image, np.full(SHAPE, 100, np.int16) + np.arange(SHAPE[-1], dtype=np.int16) * (number + 1))
    if label is not None:
        mask = np.zeros(SHAPE, np.uint8)
        mask[0, 0, : number + 1] = 1
        write_nifti(root / label, mask)


def entries(source: Path, target: Path, **options: object) -> list[dict[str, str]]:
    prepare("volumes", source, target, **options)
    content = json.loads((target / "dataset.json").read_text())
    return [*content["training"], *content.get("test", [])]


LAYOUTS = {
    "KiTS": ("case_0000{}/imaging.nii.gz", "case_0000{}/segmentation.nii.gz", "case_0000{}"),
    "LiTS": ("volume-{}.nii", "segmentation-{}.nii", None),
    "BTCV": ("img/img000{}.nii.gz", "label/label000{}.nii.gz", None),
    "two trees": ("images/p{}/scan.nii.gz", "labels/p{}/seg.nii.gz", "p{}"),
    "label named as the folder": ("images/patient{}/ct.nii.gz", "masks/patient{}.nii.gz", "patient{}"),
    "zeros before numbers": ("ct_00{}.nii.gz", "gt/mask_{}.nii.gz", None),
    "manual": ("{}.nii.gz", "{}_manual.nii.gz", None),
    "label map": ("s{}.nii.gz", "s{}_labelmap.nii.gz", None),
    "ground truth": ("p{}.nii.gz", "p{}-ground_truth.nii.gz", None),
    "sections": ("train/c{}/img.nii.gz", "train/c{}/label.nii.gz", "c{}"),
    "BIDS": ("sub-0{}/anat/sub-0{}_T1w.nii.gz", "derivatives/m/sub-0{}/anat/sub-0{}_T1w_dseg.nii.gz", "sub-0{}"),
    "BIDS with a space": (
        "sub-0{}/anat/sub-0{}_T1w.nii.gz", "derivatives/m/sub-0{}/anat/sub-0{}_space-orig_dseg.nii.gz", "sub-0{}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_patients(layout: str, tmp_path: Path) -> None:
    image, label, patient = LAYOUTS[layout]
    for number in range(4):
        pair(tmp_path / "s", image.replace("{}", str(number)), label.replace("{}", str(number)), number)
    found = entries(tmp_path / "s", tmp_path / "out")
    named = [] if patient is None else [patient.replace("{}", str(n)) for n in range(4)]
    assert sorted(entry["patient_id"] for entry in found if "patient_id" in entry) == named
    assert ("by patient" in json.loads((tmp_path / "out" / "dataset.json").read_text())["split"]) == bool(named)
    for entry in found:
        values, mask = (read_volume(tmp_path / "out" / entry[key]).array for key in ("image", "label"))
        assert mask.sum() == values[0, 0, 0, 1] - 100


def test_a_published_list_says_which_label(tmp_path: Path) -> None:
    listed = []
    for number in range(3):
        pair(tmp_path / "s", f"scans/{number}.nii.gz", f"truth_of/{'xyz'[number]}.nii.gz", number)
        listed.append({"image": f"./scans/{number}.nii.gz", "label": f"./truth_of/{'xyz'[number]}.nii.gz"})
    (tmp_path / "s" / "dataset.json").write_text(json.dumps({"training": listed[:2], "test": listed[2:]}))
    found = entries(tmp_path / "s", tmp_path / "out")
    assert len(found) == 3
    for entry in found:
        values, mask = (read_volume(tmp_path / "out" / entry[key]).array for key in ("image", "label"))
        assert mask.sum() == values[0, 0, 0, 1] - 100


def test_visits_of_a_patient_stay_together(tmp_path: Path) -> None:
    for number, place in enumerate(("anna/pre", "anna/post", "bert/pre", "bert/post", "bert/late")):
        pair(tmp_path / "s", f"{place}/t1.nii.gz", f"{place}/t1_seg.nii.gz", number)
    found = entries(tmp_path / "s", tmp_path / "out", test=0.4)
    assert sorted(entry["patient_id"] for entry in found) == ["anna", "anna", "bert", "bert", "bert"]
    assert "patients are taken from folders (anna for" in prepare("volumes", tmp_path / "s", tmp_path / "out", test=0.4)


def test_what_lies_beside_is_of_the_same_patient(tmp_path: Path) -> None:
    for number, place in enumerate(("anna/t1", "anna/t2", "bert/t1", "bert/flair")):
        pair(tmp_path / "s", f"{place}.nii.gz", None, number)
    found = entries(tmp_path / "s", tmp_path / "out", test=0.4)
    assert sorted(entry["patient_id"] for entry in found) == ["anna", "anna", "bert", "bert"]


@pytest.mark.parametrize(("name", "advised"), [("{}_{}", True), ("P{}-scan{}", True), ("scan{}{}", False)])
def test_names_alone_name_no_patient(name: str, advised: bool, tmp_path: Path) -> None:
    for number in range(6):
        pair(tmp_path / "s", f"{name.format(f'0{number // 2}', number % 2)}.nii.gz", None, number)
    table = prepare("volumes", tmp_path / "s", tmp_path / "out", test=0.4)
    assert "by volume (no patients are named), seed 0; give --subject if a patient has several" in table
    pattern = re.search("give --subject '(.*?)', so", table)
    assert (pattern is not None) == advised
    if pattern is not None:
        found = entries(tmp_path / "s", tmp_path / "out", test=0.4, subject=pattern[1])
        assert len({entry["patient_id"] for entry in found}) == 3
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["split"] == "by patient, seed 0"


@pytest.mark.parametrize(("classes", "labels", "values"), [
    (["background=0", "organ=1,2"], {"background": 0, "organ": 1}, [0, 1]),
    (["background=rest", "tumour=tumour"], {"background": 0, "tumour": 1}, [0, 1]),
    (["background=0", "tumour=2", "ignore=liver"], {"background": 0, "tumour": 1}, [0, 1, 255]),
])  # fmt: skip
def test_classes_of_volumes(classes: list[str], labels: dict[str, int], values: list[int], tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"s/imagesTr/{number}.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
        write_nifti(tmp_path / f"s/labelsTr/{number}.nii.gz", (np.indices(SHAPE).sum(axis=0) % 3).astype(np.uint8))
    (tmp_path / "s/dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "tumour"}}))
    found = entries(tmp_path / "s", tmp_path / "out")
    assert [int(v) for v in np.unique(read_volume(tmp_path / "out" / found[0]["label"]).array)] == [0, 1, 2]
    found = entries(tmp_path / "s", tmp_path / "out", classes=classes)  # made anew
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == labels
    assert [int(v) for v in np.unique(read_volume(tmp_path / "out" / found[0]["label"]).array)] == values
    refused("which --classes does not name", entries, tmp_path / "s", tmp_path / "n", classes=["background=0", "a=1"])
    refused("no number or name", entries, tmp_path / "s", tmp_path / "n", classes=["background=0", "a=kidney"])


@pytest.mark.parametrize("white", [7, 100, 255, 1000])
def test_masks_of_two_values_are_two_classes(white: int, tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"s/images/{number}.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
        write_nifti(tmp_path / f"s/labels/{number}.nii.gz", np.eye(*SHAPE[:2])[..., None].repeat(SHAPE[2], 2) * white)
    table = prepare("volumes", tmp_path / "s", tmp_path / "out", test=0)
    assert f"all masks are of 0 and {white}, which became 0 and 1" in table
    share = np.eye(*SHAPE[:2]).mean()
    assert f"1 class 1 {share:.1%}" in table
    assert set(np.unique(read_volume(tmp_path / "out/labels/0.nii.gz").array)) == {0, 1}
    assert not check(tmp_path / "out/dataset.json").errors


def test_labels_that_fit_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        pair(tmp_path / "other", f"a{number}.nii.gz", f"labels/b{number + 7}.nii.gz", number)
        for sequence in ("t1", "t2"):
            pair(tmp_path / "brats", f"b_{number}/b_{number}_{sequence}.nii.gz", f"b_{number}/b_{number}_seg.nii.gz", 0)
    refused("2 label files .*b7.nii.gz.* and no volume of such a name", prepare, "volumes", tmp_path / "other",
            tmp_path / "x")  # fmt: skip
    refused("seg.nii.gz could label .*_t1.nii.gz and .*_t2.nii.gz", prepare, "volumes", tmp_path / "brats",
            tmp_path / "y")  # fmt: skip


@pytest.mark.parametrize("label", ["labels/dcm.nii.gz", "images/dcm_seg.nii.gz", "labels/dcm/mask.nii.gz"])
def test_a_dicom_folder_and_its_label(label: str, tmp_path: Path) -> None:
    stored = np.arange(4 * 5 * 7, dtype=np.int16).reshape(4, 5, 7)
    source = tmp_path / "s"
    write_series(source / "images" / "dcm", stored)
    volume = read_volume(source / "images" / "dcm")
    write_nifti(source / label, (volume.array[0] > 100).astype(np.uint8), volume.affine)
    (entry,) = entries(source, tmp_path / "out", test=0)
    image, mask = (read_volume(tmp_path / "out" / entry[key]).array for key in ("image", "label"))
    assert np.array_equal(mask, image > 100)


def test_two_series_and_one_label(tmp_path: Path) -> None:
    stored = np.arange(4 * 5 * 7, dtype=np.int16).reshape(4, 5, 7)
    for number in range(2):
        write_series(tmp_path / "s" / "dcm", stored, uid=f"1.2.{number}", prefix=str(number))
    write_nifti(tmp_path / "s" / "labels" / "dcm.nii.gz", np.zeros((7, 5, 4), np.uint8))
    refused("could label any of the 2 series", prepare, "volumes", tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("names", [
    ("sub-0{}/anat/sub-0{}_T1w", "derivatives/m/sub-0{}/anat/sub-0{}_label-lesion_mask",
     "derivatives/m/sub-0{}/anat/sub-0{}_label-brain_mask"),
    ("p{}/ct", "p{}/label", "p{}/segmentation"),
    ("volume-{}", "segmentation-{}", "labels/mask-{}"),
])  # fmt: skip
def test_two_labels_of_one_scan_are_named(names: tuple[str, str, str], tmp_path: Path) -> None:
    for number in range(2):
        image, *labels = (name.replace("{}", str(number)) + ".nii.gz" for name in names)
        for label in labels:
            pair(tmp_path / "s", image, label, number)
    refused("could both label|could label", prepare, "volumes", tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("numbers", [(255,), (3,), (1, 255), (65535,)])
def test_labels_of_two_values(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """They become 0 and 1: in the table, in the files, for ``check`` and for who reads the list."""
    for number in range(4):
        pair(tmp_path / "s", f"imagesTr/c{number}.nii.gz", None, number)
        mask = np.zeros(SHAPE, np.uint16)
        mask[0, 0, : number + 1] = numbers[number % len(numbers)]
        write_nifti(tmp_path / "s" / f"labelsTr/c{number}.nii.gz", mask)
    said = prepare("volumes", tmp_path / "s", tmp_path / "out")
    size = float(np.prod(SHAPE))
    assert f"1 class 1 {(1 + 2 + 3 + 4) / (4 * size):.1%}" in said
    assert "became" in said
    for number in range(4):
        assert read_volume(tmp_path / "out" / f"labels/c{number}.nii.gz").array.sum() == number + 1
    assert not check(tmp_path / "out" / "dataset.json", progress=False).findings


@pytest.mark.parametrize("listed", [True, False])
def test_patients_with_four_digits_are_not_sequences(listed: bool, tmp_path: Path) -> None:
    source = tmp_path / "s"
    for number in range(4):
        pair(source, f"imagesTr/amos_{number:04}.nii.gz", f"labelsTr/amos_{number:04}.nii.gz", number)
    if listed:
        names = [f"amos_{number:04}.nii.gz" for number in range(4)]
        training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
        content = {"labels": {"0": "background", "1": "a"}, "training": training}
        (source / "dataset.json").write_text(json.dumps(content))
    found = entries(source, tmp_path / "out")
    assert sorted(Path(entry["image"]).name for entry in found) == [f"amos_{n:04}.nii.gz" for n in range(4)]
    for entry in found:
        volume, mask = (read_volume(tmp_path / "out" / entry[key]).array for key in ("image", "label"))
        assert len(volume) == 1
        assert volume.max() - 100 == (mask.sum()) * (SHAPE[-1] - 1)


def test_what_may_be_patients_or_sequences_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        pair(tmp_path / "one", f"patient_{number:04}.nii.gz", None, number)
        pair(tmp_path / "folder", f"patient/patient_{number:04}.nii.gz", None, number)
        pair(tmp_path / "sites", f"a_{number:04}.nii.gz", None, number)
        pair(tmp_path / "numbers", f"{'abc'[number]}_{number:04}.nii.gz", None, number)
    pair(tmp_path / "sites", "b_0000.nii.gz", None, 3)
    out = tmp_path / "o"
    refused("patient_0000 to patient_0002 may be 3 patients or as many sequences", entries, tmp_path / "one", out)
    refused("a has the numbers 0000, 0001, 0002 and b others", entries, tmp_path / "sites", out)
    (entry,) = entries(tmp_path / "folder", tmp_path / "o1", test=0)
    assert len(read_volume(tmp_path / "o1" / entry["image"]).array) == 3
    assert len(entries(tmp_path / "numbers", tmp_path / "o2")) == 3


def test_an_unpacked_copy_is_no_second_sequence(tmp_path: Path) -> None:
    for suffix in (".nii", ".nii.gz"):
        pair(tmp_path / "s", f"v{suffix}", None, 0)
    refused(r"v\.nii and .*v\.nii\.gz have one name", entries, tmp_path / "s", tmp_path / "out")
