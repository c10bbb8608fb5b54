"""A folder is searched for images; masks are left out and counted."""

import os
import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from medmdm.data.folders import find_images, image_files, label_files
from medmdm.data.lists import load_data_list
from medmdm.data.mask_names import is_mask
from tests.made import refused


@pytest.mark.parametrize("path", [
    "train_1_anno.bmp", "a_annotation.png", "a_annotated_2.png", "a_mask.png", "a-masks.png", "a_mask_12.tif",
    "A_MASK.PNG", "mask.png", "mask_3.png", "a.mask.png", "a_label.png", "a_labels.png", "label.png", "a_gt.png",
    "a_gt2.png", "a_ground_truth.png", "a_groundtruth.png", "a_instance.png", "a_instances.png", "a_seg.png",
    "a_segmentation.png", "a_seg_1.png", "masks/a.png", "x/masks/a.png", "labelsTr/a.png", "Labels/a.tif",
    "Annotations/a.png", "Instances/a.png", "gt/a.png", "Ground_Truth/a.png", "ground truth/x/a.png",
    "train_masks/a.png", "masks_train/a.png", "segmentation/a.png", "test/GroundTruth/a.png", "leftMask/a.png",
    "cellMask.png", "sub-1/sub-1_dseg.nii.gz", "sub-1_label-GM_probseg.nii.gz", "derivatives/x/sub-1_T1w.nii.gz",
    "annotations/panoptic_train2017/a.png", "ann/a.png", "masks1/a.png", "rater_2/a.png", "a_seg_rater2.png",
    "1st_manual/21_manual1.png", "Overlay/a.png", "mask_images/a.png", "a.seg.nrrd",
])  # fmt: skip
def test_masks_by_name(path):
    assert is_mask(PurePosixPath(path))


@pytest.mark.parametrize("path", [
    "train_1.bmp", "unmasked.png", "x_masked.png", "damask_2.png", "labelled_cells.png", "segment_3.png",
    "gt3000_scanner.png", "annotators/a.png", "images/a.png", "seg_study/a.png", "unlabelled/a.png", "cannon.png",
    "instance_7_scan.png", "imagesTr/a.png", "Tissue Images/a.tif", "JPEGImages/a.jpg", "img/a.png", "LabelMe/a.jpg",
    "leftImg8bit/a_leftImg8bit.png", "x_json/img.png", "experts/a.png", "label_free/a.png", "mask_ct_2020/a.png",
    "sub-1/anat/sub-1_T1w.nii.gz", "x [x=0,y=8].png", "annex/a.png", "default/image_2/a.png", "SegStudy/a.png",
])  # fmt: skip
def test_images_by_name(path):
    assert not is_mask(PurePosixPath(path))


def test_finds_images_in_string_order_and_counts_the_rest(write_png, tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a.png", "b/2_mask.png", "labels/a.png", ".hidden.png", ".git/a.png"):
        write_png(name, 3, 3)
    write_png("__MACOSX/._a.png", 3, 3)
    (tmp_path / "notes.txt").write_text("x")
    found = find_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found.images] == ["a.png", "b/10.PNG", "b/2.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in found.masks] == ["b/2_mask.png", "labels/a.png"]
    assert found.others == {".txt": 1}


def test_only_names_below_the_folder_count(write_png, tmp_path):
    write_png("labels/masks/images/a.png", 3, 3)
    assert len(find_images(tmp_path / "labels" / "masks").images) == 1
    refused("all 1 image files in it have names of masks", find_images, tmp_path)


def test_links_are_followed_and_loops_end(write_png, tmp_path):
    write_png("real/a.png", 3, 3)
    write_png("elsewhere/b.png", 3, 3)
    os.symlink(tmp_path / "elsewhere", tmp_path / "real" / "linked")
    os.symlink(tmp_path / "real", tmp_path / "real" / "loop")
    os.symlink(tmp_path / "elsewhere" / "b.png", tmp_path / "real" / "c.png")
    assert [path.name for path in find_images(tmp_path / "real").images] == ["a.png", "c.png", "b.png"]


def test_what_is_wrong_is_said(tmp_path):
    refused(r"gone does not exist", find_images, tmp_path / "gone")
    refused("holds no image: it is empty", find_images, tmp_path)
    for name in ("1.czi", "2.czi", "x.csv"):
        (tmp_path / name).touch()
    refused(r"holds no image: it was searched for .* and has 2 \.czi, 1 \.csv instead", find_images, tmp_path)
    assert find_images(tmp_path, may_be_empty=True).images == ()
    refused(r"x\.csv is a file", find_images, Path(tmp_path, "x.csv"))


@pytest.mark.parametrize(("stored", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_unicode_form(stored: str, listed: str, write_png, tmp_path: Path) -> None:
    """A Mac's disk images and archives decompose the letters of names."""
    names = [unicodedata.normalize(form, "Gewebe ä/Bild ü.png") for form in (stored, listed)]
    assert names[0] != names[1]
    write_png(names[0])
    write_png(f"labels/{names[0]}")
    found = load_data_list({"training": [{"image": names[1], "label": f"labels/{names[1]}"}]})
    images = find_images(tmp_path)
    assert image_files(found, "training", images) == [tmp_path / names[0]]
    assert label_files(found, "training", images) == [tmp_path / "labels" / names[0]]
