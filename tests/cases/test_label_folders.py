"""Folders and names that annotation programs give to labels: never images; paired, or left out with a sentence."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmdm.data.files.pictures import read_image
from medmdm.data.folders import find_images
from medmdm.data.lists import load_data_list
from medmdm.data.selection import select_training_images
from medmdm.prepare import prepare
from medmdm.prepare.release import open_release
from tests.made import refused
from tests.written import picture

SHAPE = (20, 30)
LEFT, RIGHT = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
LEFT[2:8, 3:12] = True
RIGHT[10:18, 15:28] = True
PINK, GREEN = (250, 50, 83), (51, 221, 255)


def values(*parts: tuple[np.ndarray, int]) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    for where, value in parts:
        array[where] = value
    return array


def colours(*parts: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    array = np.zeros((*SHAPE, 3), np.uint8)
    for where, value in parts:
        array[where] = value
    return array


TRUTH = values((LEFT, 1), (RIGHT, 2))
DRAWING = np.full((*SHAPE, 3), 90, np.uint8)


def label(dest: Path, name: str) -> np.ndarray:
    return read_image(dest / "labels" / f"{name}.png")[0]


def entries(dest: Path) -> tuple[dict, ...]:
    return load_data_list(dest / "dataset.json").training


#: Per layout: images, masks that pair, and what else must not be taken for an image.
LAYOUTS = {
    "voc": (["JPEGImages/x.jpg"], {"SegmentationClass/x.png": TRUTH}, ["SegmentationObject/x.png"]),
    "labelme2voc": (
        ["JPEGImages/x.jpg"], {"SegmentationClassPNG/x.png": TRUTH},
        ["SegmentationClassVisualization/x.jpg", "SegmentationObject/x.png", "SegmentationObjectVisualization/x.jpg"],
    ),
    "labelme": (["x_json/img.png"], {"x_json/label.png": TRUTH}, ["x_json/label_viz.png"]),
    "supervisely": (
        ["ds0/img/x.jpg"], {"ds0/masks_machine/x.png": TRUTH},
        ["ds0/masks_human/x.png", "ds0/masks_instances/x/nucleus_1.png"],
    ),
    "supervisely, suffix kept": (["ds0/img/x.jpg"], {"ds0/masks_machine/x.jpg.png": TRUTH}, []),
    "camvid": (["default/x.png"], {"defaultannot/x.png": TRUTH}, []),
    "kitti": (
        ["default/image_2/x.png"], {"default/semantic/x.png": TRUTH},
        ["default/instance/x.png", "default/semantic_rgb/x.png"],
    ),
    "cityscapes": (
        ["leftImg8bit/a/x_leftImg8bit.png"], {"gtFine/a/x_gtFine_labelIds.png": TRUTH}, ["gtFine/a/x_gtFine_color.png"],
    ),
    "ilastik": (["x.png"], {"x_Simple Segmentation.png": TRUTH}, ["x_Probabilities.png"]),
    "ilastik's objects": (["x.png"], {"x_Object Predictions.png": TRUTH}, ["x-Probabilities.png"]),
    "folders of ids": (["images/x.png"], {"labelIds/x.png": TRUTH}, []),
    "coco stuff": (["train2017/x.jpg"], {"stuffthingmaps/train2017/x.png": TRUTH}, []),
    "mmsegmentation": (["img_dir/train/x.jpg"], {"ann_dir/train/x.png": TRUTH}, []),
    "qupath tiles": (["x [x=0,y=8,w=30,h=20].png"], {"x [x=0,y=8,w=30,h=20]-labelled.png": TRUTH}, []),
    "qupath annotations": (["tiles/x.png"], {"x-labels.png": TRUTH}, ["x-overlay.png"]),
    "bids": (
        ["sub-1/micr/sub-1_sample-A_SEM.png"],
        {"derivatives/labels/sub-1/micr/sub-1_sample-A_SEM_dseg.png": TRUTH}, [],
    ),
    "bids with a pipeline": (
        ["sub-1/micr/sub-1_sample-A_SEM.png"],
        {"derivatives/manual/sub-1/micr/sub-1_sample-A_SEM_mask.png": TRUTH},
        ["derivatives/manual/sub-1/micr/sub-1_sample-A_label-x_probseg.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, tmp_path: Path) -> None:
    images, masks, others = LAYOUTS[layout]
    source, dest = tmp_path / "set", tmp_path / "out"
    for name in images:
        picture(source / name, shape=(*SHAPE, 3))
    for name, array in masks.items():
        picture(source / name, array)
    for name in others:
        picture(source / name, DRAWING)
    found = find_images(source)
    assert [path.relative_to(source).as_posix() for path in found.images] == images
    assert len(found.masks) == len(masks) + len(others)
    (sentence,) = select_training_images(source, "none").sentences
    assert f"1 image, {len(found.masks)} mask" in sentence
    folders = {Path(name).parts[-2] for name in [*masks, *others] if Path(name).parent.name.startswith("Segm")}
    assert all(folder in sentence for folder in folders)
    summary = prepare("folder", source, dest)
    (entry,) = entries(dest)
    np.testing.assert_array_equal(read_image(dest / entry["label"])[0], TRUTH)
    assert all(folder in summary for folder in folders - {"SegmentationClass", "SegmentationClassPNG"})


def test_a_folder_of_labels_alone(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "SegmentationClass" / "x.png", TRUTH)
    refused("all 1 image files in it have names of masks .*in SegmentationClass", find_images, tmp_path / "set")
    refused("holds no image among 1 files", prepare, "folder", tmp_path / "set", tmp_path / "out")


def cvat(root: Path, images: int = 3) -> Path:
    """CVAT's "Segmentation mask 1.1"; the last image has no mask."""
    root.mkdir()
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nstroma:51,221,255::\nnucleus:250,50,83::\n"
    )
    for i in range(images):
        picture(root / "JPEGImages" / f"s{i}.jpg", shape=(*SHAPE, 3))
        if i < images - 1:
            picture(root / "SegmentationClass" / f"s{i}.png", colours((LEFT, PINK), (RIGHT, GREEN)))
            picture(root / "SegmentationObject" / f"s{i}.png", colours((LEFT, (128, 0, 0)), (RIGHT, (0, 128, 0))))
    return root


def test_colours_of_cvat(tmp_path: Path) -> None:
    summary = prepare("folder", cvat(tmp_path / "set"), tmp_path / "out")
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert content.information["labels"] == {"background": 0, "stroma": 1, "nucleus": 2}
    np.testing.assert_array_equal(label(tmp_path / "out", "s0"), values((LEFT, 2), (RIGHT, 1)))
    assert [("label" in entry) for entry in content.training] == [True, True, False]
    assert "2 masks in SegmentationObject left out, for --label-type instances" in summary


def test_objects_of_cvat(tmp_path: Path) -> None:
    summary = prepare("folder", cvat(tmp_path / "set"), tmp_path / "out", label_type="instances")
    np.testing.assert_array_equal(label(tmp_path / "out", "s0"), values((LEFT, 2), (RIGHT, 1)))  # order of the colours
    assert "objects of all classes (stroma, nucleus) count as one" in summary
    chosen = {"label_type": "instances", "classes": ["background=rest", "cell=nucleus"]}
    prepare("folder", tmp_path / "set", tmp_path / "nuclei", **chosen)
    np.testing.assert_array_equal(label(tmp_path / "nuclei", "s0"), values((LEFT, 1)))
    assert load_data_list(tmp_path / "nuclei" / "dataset.json").information["labels"] == {"background": 0, "cell": 1}


def test_objects_that_cvat_had_no_colour_for(tmp_path: Path) -> None:
    source = cvat(tmp_path / "set")
    picture(source / "SegmentationObject" / "s0.png", colours((LEFT, (128, 0, 0))))
    summary = prepare("folder", source, tmp_path / "out", label_type="instances")
    assert f"{RIGHT.sum()} pixels of SegmentationClass/s0.png belong to no object" in summary


@pytest.mark.parametrize(("name", "text"), [
    ("label_colors.txt", "0 0 0 Background\n250 50 83 nucleus\n51 221 255 stroma\n"),
    ("obj_class_to_machine_color.json", json.dumps({"nucleus": PINK, "stroma": GREEN})),
    ("labelmap.txt", "nucleus:250,50,83::\nstroma:51,221,255::\n"),
])  # fmt: skip
def test_other_tables_of_colours(name: str, text: str, tmp_path: Path) -> None:
    source = cvat(tmp_path / "set")
    (source / "labelmap.txt").unlink()
    (source / name).write_text(text)
    prepare("folder", source, tmp_path / "out")
    np.testing.assert_array_equal(label(tmp_path / "out", "s0"), values((LEFT, 1), (RIGHT, 2)))


def test_masks_that_number_something_else(tmp_path: Path) -> None:
    source, out = cvat(tmp_path / "set"), tmp_path / "out"
    (source / "labelmap.txt").unlink()
    refused("has colours.*labelmap.txt beside the masks or --classes", prepare, "folder", source, out)
    (source / "labelmap.txt").write_text("nucleus:250,50,83::\n")
    refused(r"s0\.png has #33ddff, and .*labelmap\.txt lists no such colour", prepare, "folder", source, out)
    (source / "labelmap.txt").write_text("nucleus: pink\n")
    refused(r"labelmap\.txt is no table of colours", prepare, "folder", source, out)
    objects, classes = source / "SegmentationObject", source / "SegmentationClass"
    classes.rename(tmp_path / "kept")
    (source / "labelmap.txt").unlink()
    refused("numbers objects, as the folder 'SegmentationObject' says", prepare, "folder", source, out)
    objects.rename(tmp_path / "objects")
    (tmp_path / "kept").rename(classes)
    refused("holds classes, as the folder", prepare, "folder", source, out, label_type="instances")


@pytest.mark.parametrize(("first", "second"), [
    ("img_1_mask.png", "img_1_seg.png"),
    ("img_1_mask.png", "img_1_mask_1.png"),
    ("img_1_mask_0.png", "img_1_mask_1.png"),
    ("img_1_seg_rater1.png", "img_1_seg_rater2.png"),
    ("img_1_mask_a.png", "img_1_mask_b.png"),
    ("masks/img_1.png", "labels/img_1.png"),
    ("masks1/img_1.png", "masks2/img_1.png"),
    ("rater_1/img_1.png", "rater_2/img_1.png"),
    ("img_1_mask.png", "img_1_mask.tif"),
    ("img_1_mask.png", "img_1_left_mask.png"),
    ("img_1Mask.png", "img_1_gt.png"),
])  # fmt: skip
def test_two_masks_of_one_image(first: str, second: str, tmp_path: Path) -> None:
    source = tmp_path / "set"
    for name in ("img_1.png", "img_2.png"):
        picture(source / name, shape=(*SHAPE, 3))
    picture(source / first, TRUTH)
    prepare("folder", source, tmp_path / "one")
    assert "label" in entries(tmp_path / "one")[0]
    picture(source / second, TRUTH)
    left, right = sorted((first, second))
    pattern = rf"img_1\.png has two masks, \S*{left} and \S*{right}: keep one"
    refused(pattern, prepare, "folder", source, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_numbers_behind_the_word_are_of_images_where_such_are(tmp_path: Path) -> None:
    source = tmp_path / "set"
    for i in (1, 2):
        picture(source / f"x_{i}.png", shape=(*SHAPE, 3))
        picture(source / f"x_mask_{i}.png", values((LEFT, i)))
    prepare("folder", source, tmp_path / "out")
    assert [label(tmp_path / "out", f"x_{i}").max() for i in (1, 2)] == [1, 2]


@pytest.mark.parametrize("name", ["x.json", "x.geojson", "annotations.xml", "ann/x.jpg.json"])
def test_outlines_that_are_not_read(name: str, tmp_path: Path) -> None:
    """LabelMe, QuPath, CVAT and Supervisely without masks: the images have no label, and the table says why."""
    source = tmp_path / "set"
    picture(source / "x.jpg", shape=(*SHAPE, 3))
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("{}")
    assert f"not read (first: {name}): export masks" in prepare("folder", source, tmp_path / "out")
    picture(source / "x_mask.png", TRUTH)
    assert "not read" not in prepare("folder", source, tmp_path / "out")


def png(array: np.ndarray, path: Path) -> bytes:
    Image.fromarray(array).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("separators", ["\\\\", "/\\", "\\/"])
def test_zips_written_on_windows(separators: str, tmp_path: Path) -> None:
    archive = tmp_path / "win.zip"
    image, mask = png(DRAWING, tmp_path / "i.png"), png(TRUTH, tmp_path / "m.png")
    a, b = separators
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(3):
            file.writestr(zipfile.ZipInfo(f"data{a}images{b}s{i}.png"), image)
            file.writestr(zipfile.ZipInfo(f"data{a}masks{b}s{i}.png"), mask)
        file.writestr(zipfile.ZipInfo("data\\masks\\"), b"")
        file.writestr(zipfile.ZipInfo("__MACOSX\\data\\._s0.png"), b"\0")
        file.writestr(zipfile.ZipInfo("data\\images\\.hidden.png"), b"\0")
    prepare("folder", archive, tmp_path / "out")
    assert [entry["label"] for entry in entries(tmp_path / "out")] == [f"labels/s{i}.png" for i in range(3)]
    np.testing.assert_array_equal(label(tmp_path / "out", "s2"), TRUTH)


def test_one_path_in_both_spellings(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(zipfile.ZipInfo("a\\b.png"), b"1")
        file.writestr(zipfile.ZipInfo("a/b.png"), b"2")

    def opened() -> None:
        with open_release(tmp_path / "x.zip"):
            pass

    refused("twice", opened)
