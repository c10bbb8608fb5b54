"""What is particular to each published layout."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.pictures import read_image
from medmdm.data.lists import load_data_list
from medmdm.errors import UserError
from medmdm.prepare import prepare
from medmdm.prepare.monuseg import LATER_LIST
from tests.made import refused
from tests.prepare import layouts
from tests.prepare.layouts import LATER, TESTED, TRAINED, WITH_MASK, mask
from tests.written import picture


def label(dest: Path, name: str) -> np.ndarray:
    return read_image(dest / "labels" / f"{name}.png")[0]


@pytest.mark.parametrize(("options", "said"), [
    ({"label_type": "objects"}, "label_type is 'objects': use classes or instances"),
    ({"overlap": "lst"}, r"overlap is 'lst' \(did you mean 'last'\?\)"),
    ({"labels": "instances"}, "prepare coco has no option 'labels'"),
])  # fmt: skip
def test_options_in_python_are_those_of_the_command(options: dict[str, str], said: str, tmp_path: Path) -> None:
    refused(said, prepare, "coco", tmp_path, tmp_path / "out", **options)


def test_glas_splits_grades_and_glands(tmp_path: Path) -> None:
    source, dest = layouts.glas(tmp_path / "glas"), tmp_path / "out"
    summary = prepare("glas", source, dest)
    content = load_data_list(dest / "dataset.json")
    assert [entry["image"] for entry in content.training] == ["images/train_1.png", "images/train_10.png"]
    assert [entry["image"] for entry in content.test] == ["images/testA_2.png"]
    assert content.training[1] == {
        "image": "images/train_10.png", "label": "labels/train_10.png", "patient_id": "22", "grade": "malignant",
        "grade_sirinukunwattana_2015": "moderately-to-poorly differentiated",
    }  # fmt: skip
    assert content.information["spacing"] == [0.00062, 0.00062]
    np.testing.assert_array_equal(label(dest, "train_1"), read_image(source / "train_1_anno.bmp")[0])
    assert label(dest, "train_1").dtype == np.uint16
    for sentence in ("training: 83 of 85", "test A: 59 of 60", "test B: 20 of 20"):
        assert sentence in summary
    assert re.search(r"^training +2 +2 +4 +20x30 ", summary, re.MULTILINE)
    assert re.search(r"^ +test A +1 +1 +2 +20x30 ", summary, re.MULTILINE)
    assert re.search(r"^ +all +3 +3 +6 +20x30 +12\.5%$", summary, re.MULTILINE)


def test_glas_without_grades_or_masks(tmp_path: Path) -> None:
    source = layouts.glas(tmp_path / "glas")
    (source / "Grade.csv").unlink()
    (source / "train_1_anno.bmp").unlink()
    picture(source / "train_999.bmp")
    summary = prepare("glas", source, tmp_path / "out")
    entries = load_data_list(tmp_path / "out" / "dataset.json").training
    assert "label" not in entries[0]
    assert entries[0]["patient_id"] == "2"  # of the list that comes with medmdm
    assert "Grade.csv is not in the source" in summary
    assert "1 image has no mask (*_anno), so there is no label: train_1" in summary
    assert "1 image is not in the official release and left out: train_999" in summary


def test_glas_closes_gaps_in_the_numbers(tmp_path: Path) -> None:
    source = layouts.glas(tmp_path / "glas")
    mask(source / "train_1_anno.bmp", [(1, 5, 1, 6, 7), (8, 12, 10, 20, 3)])
    assert "train_1: object numbers had gaps" in prepare("glas", source, tmp_path / "out")
    assert label(tmp_path / "out", "train_1")[[2, 9], [2, 12]].tolist() == [2, 1]


@pytest.mark.parametrize("content", [b"a,b\r1,2", b"\xff\xfe\x00", b"", b'name,patient ID\r"x'])
def test_glas_with_another_table(tmp_path: Path, content: bytes) -> None:
    source = layouts.glas(tmp_path / "glas")
    (source / "Grade.csv").write_bytes(content)
    refused(r"Grade\.csv is not the Grade\.csv of the release", prepare, "glas", source, tmp_path / "out")


def test_monuseg_truths_splits_and_patients(tmp_path: Path) -> None:
    source, dest = layouts.monuseg(tmp_path / "monuseg"), tmp_path / "out"
    summary = prepare("monuseg", source, dest)
    content = load_data_list(dest / "dataset.json")
    assert content.training == (
        {
            "image": f"images/{TRAINED}.png", "label": f"labels/{TRAINED}.png", "patient_id": "TCGA-18-5592",
            "spacing": [0.000252, 0.000252],
        },
        {"image": f"images/{WITH_MASK}.png", "label": f"labels/{WITH_MASK}.png", "patient_id": "TCGA-A7-A13F"},
    )  # fmt: skip
    assert [entry["patient_id"] for entry in content.test] == ["TCGA-HC-7209"]
    assert content.information["spacing"] == [0.00025, 0.00025]
    later = load_data_list(dest / LATER_LIST)
    assert [entry["image"] for entry in later.training][2:] == [f"images/{LATER}.png"]
    assert later.test == content.test
    expected = np.zeros((20, 30), np.uint16)
    expected[1:4, 1:5] = 1
    expected[2:12, 10:30] = 2
    np.testing.assert_array_equal(label(dest, TRAINED), expected)
    assert np.unique(label(dest, WITH_MASK)).tolist() == [0, 1, 2]
    assert "outlines: 9 regions in 3 files became 6 objects" in summary
    assert f"{TRAINED}.xml: 1 region(s) of fewer than three vertices not filled (Id 2)" in summary
    assert "1 image has no XML: instance masks are used" in summary
    assert "1 training image of the later release not among the paper's 30" in summary
    assert f"{TESTED}.xml" in summary


def test_monuseg_in_one_flat_folder_and_with_odd_outlines(tmp_path: Path) -> None:
    source = tmp_path / "flat"
    picture(source / f"{TRAINED}.tif")
    box = layouts.rectangle
    hidden, cover, beside = box(2, 2, 3, 3), box(0, 0, 6, 6), box(90, 90, 99, 99)
    text = layouts.aperio([hidden, cover, (box(4, 4, 5, 5), True), beside], microns=None)
    (source / f"{TRAINED}.xml").write_text(text)
    picture(source / f"{TESTED}.tif")
    summary = prepare("monuseg", source, tmp_path / "out")
    for sentence in ("wholly covered by later ones (Id 1)", "cut out (Id 3)", "cover no pixel of the image (Id 4)"):
        assert f"{TRAINED}.xml: 1 " in summary
        assert sentence in summary
    assert f"1 image has neither XML nor instance mask, so there is no label: {TESTED}" in summary
    assert "spacing" not in load_data_list(tmp_path / "out" / "dataset.json").training[0]
    assert np.count_nonzero(label(tmp_path / "out", TRAINED)) == 35


def test_monuseg_as_two_zip_files(tmp_path: Path) -> None:
    source = layouts.monuseg(tmp_path / "monuseg")
    zips = tmp_path / "zips"
    zips.mkdir()
    for part in ("MoNuSegTrainingData", "MoNuSegTestData"):
        layouts.zipped(source / part, zips / f"{part}.zip", top=f"{part}/")
    prepare("monuseg", source, tmp_path / "out")
    prepare("monuseg", zips, tmp_path / "unzipped")
    assert layouts.contents(tmp_path / "unzipped") == layouts.contents(tmp_path / "out")


def test_monuseg_test_images_alone(tmp_path: Path) -> None:
    source = layouts.monuseg(tmp_path / "monuseg")
    refused("holds no training images of monuseg", prepare, "monuseg", source / "MoNuSegTestData", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_monuseg_copies_that_differ(tmp_path: Path) -> None:
    source = layouts.monuseg(tmp_path / "monuseg")
    picture(source / "other" / f"{TRAINED}.tif")
    prepare("monuseg", source, tmp_path / "out")  # the same picture twice is no question
    picture(source / "other" / f"{TRAINED}.tif", shape=(9, 30, 3))
    refused("have one name but differ", prepare, "monuseg", source, tmp_path / "out")


def test_monuseg_with_a_damaged_outline(tmp_path: Path) -> None:
    source = layouts.monuseg(tmp_path / "monuseg")
    path = source / "MoNuSegTestData" / "Annotations" / f"{TESTED}.xml"
    path.write_text(path.read_text()[:300])
    refused(rf"{TESTED}\.xml is truncated or no XML", prepare, "monuseg", source, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    zipped = layouts.zipped(source, tmp_path / "m.zip")
    with pytest.raises(UserError, match=rf"m\.zip/MoNuSegTestData/Annotations/{TESTED}\.xml is truncated"):
        prepare("monuseg", zipped, tmp_path / "out")


def test_dsb2018_nuclei_and_stages(tmp_path: Path) -> None:
    source, dest = layouts.dsb2018(tmp_path / "dsb"), tmp_path / "out"
    mask(source / "stage1_train" / "aa11" / "masks" / "m3.png", [(4, 9, 1, 4, 255)])
    mask(source / "stage1_train" / "aa11" / "masks" / "m4.png", [])
    summary = prepare("dsb2018", source, dest)
    content = load_data_list(dest / "dataset.json")
    assert [entry["image"] for entry in content.training] == ["images/aa11.png", "images/bb22.png"]
    assert content.test == ({"image": "images/cc33.png"},)
    assert read_image(dest / "images" / "aa11.png").shape[0] == 3
    aa11 = label(dest, "aa11")
    assert [aa11[2, 2], aa11[2, 13], aa11[2, 21], aa11[5, 2]] == [1, 2, 3, 4]
    assert "aa11: 1 mask is empty" in summary
    assert "aa11: 6 pixels belong to several masks" in summary
    assert "668 of 670" in summary


def test_dsb2018_stage_as_source(tmp_path: Path) -> None:
    source = layouts.dsb2018(tmp_path / "dsb")
    prepare("dsb2018", source / "stage1_train", tmp_path / "out")
    refused("holds no training images of dsb2018", prepare, "dsb2018", source / "stage1_test", tmp_path / "test")


def test_folder_pairs_masks_in_parallel_folders(tmp_path: Path) -> None:
    source, dest = layouts.folder(tmp_path / "cells"), tmp_path / "out"
    mask(source / "labels" / "c" / "x.png", [])
    summary = prepare("folder", source, dest)
    content = load_data_list(dest / "dataset.json")
    assert content.name == "cells"
    assert content.training == (
        {"image": "images/a/x.png", "label": "labels/a/x.png"},
        {"image": "images/b/x.png", "label": "labels/b/x.png"},
        {"image": "images/b/y.png"},
    )
    assert content.information["labels"] == {"background": 0, "class 1": 1, "class 3": 3}
    assert np.unique(label(dest, "a/x")).tolist() == [0, 1, 3]
    assert "1 of 3 images have no mask" in summary
    assert "1 mask belongs to no image, left out (first: labels/c/x.png)" in summary
    assert "3 class 3" in summary


@pytest.mark.parametrize(("image", "truth"), [
    ("x.png", "x_mask.png"),
    ("x.tif", "x_anno.bmp"),
    ("imagesTr/x.png", "labelsTr/x.png"),
    ("train_images/x.png", "train_masks/x_mask.png"),
    ("train/x.jpg", "train_labels/x.png"),
    ("img_7.png", "mask_7.png"),
])  # fmt: skip
def test_folder_pairs_by_the_usual_names(tmp_path: Path, image: str, truth: str) -> None:
    picture(tmp_path / "set" / image)
    mask(tmp_path / "set" / truth, [(1, 5, 1, 6, 2)])
    prepare("folder", tmp_path / "set", tmp_path / "out")
    (entry,) = load_data_list(tmp_path / "out" / "dataset.json").training
    assert "label" in entry


def test_folder_masks_of_0_and_255(tmp_path: Path) -> None:
    source = tmp_path / "set"
    for name in ("a", "b"):
        picture(source / f"{name}.png")
        mask(source / f"{name}_mask.png", [(1, 5, 1, 6, 255)])
    assert "became 0 and 1" in prepare("folder", source, tmp_path / "binary")
    assert np.unique(label(tmp_path / "binary", "a")).tolist() == [0, 1]
    # A class anywhere makes 255 what it is elsewhere: ignored. All masks are then made anew.
    mask(source / "b_mask.png", [(1, 5, 1, 6, 255), (8, 9, 1, 6, 2)])
    summary = prepare("folder", source, tmp_path / "binary")
    assert "pixels of value 255 are ignored" in summary
    assert "2 prepared" in summary
    assert np.unique(label(tmp_path / "binary", "a")).tolist() == [0, 255]
    assert json.loads((tmp_path / "binary" / "dataset.json").read_text())["labels"] == {"background": 0, "class 2": 2}


def test_folder_of_instances(tmp_path: Path) -> None:
    summary = prepare("folder", layouts.folder(tmp_path / "cells"), tmp_path / "out", label_type="instances")
    assert np.unique(label(tmp_path / "out", "a/x")).tolist() == [0, 1, 2]
    assert load_data_list(tmp_path / "out" / "dataset.json").information["label_type"] == "instances"
    assert "objects" in summary


def test_folder_hints_at_instances(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", shape=(20, 50, 3))
    mask(tmp_path / "set" / "a_mask.png", [(1, 2, i, i + 1, i) for i in range(1, 41)], 20, 50)
    summary = prepare("folder", tmp_path / "set", tmp_path / "out")
    assert "40 values: if they number objects, give --label-type instances" in summary


def test_folder_refuses_masks_that_number_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "set", tmp_path / "out"
    picture(source / "a.png")
    picture(source / "a_mask.png")
    refused(r"a_mask\.png has colours", prepare, "folder", source, out)
    (source / "a_mask.png").unlink()
    picture(source / "a_mask.tif", np.full((20, 30), 0.5, np.float32))
    refused(r"a_mask\.tif holds values that are not whole numbers", prepare, "folder", source, out)
    mask(source / "a_label.png", [])
    refused(r"a\.png has two masks", prepare, "folder", source, out)
    assert not out.exists()
