"""COCO exports: outlines against independent ones, categories, overlaps, and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.draw import polygon2mask

from medmdm.data.files.pictures import read_image
from medmdm.data.lists import load_data_list
from medmdm.prepare import coco_outlines, prepare
from tests.made import refused
from tests.prepare.layouts import contents, zipped
from tests.written import picture

ROWS, COLUMNS = 20, 30
needs_pycocotools = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed"
)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def pixels(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[top:bottom, left:right] = True
    return mask


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths, column by column, beginning with background."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int)])
    ends = np.flatnonzero(np.diff(flat)).tolist()
    return {"size": [ROWS, COLUMNS], "counts": np.diff([0, *ends, mask.size]).tolist()}


def text(mask: np.ndarray) -> dict[str, Any]:
    """The same as text: an independent writer of ``maskApi.c``'s rleToString."""
    counts, characters = runs(mask)["counts"], ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            characters += chr(48 + (bits | 0x20 if more else bits))
    return {"size": [ROWS, COLUMNS], "counts": characters}


ONE, TWO = (2, 3, 9, 8), (12, 10, 28, 18)


def export(root: Path, annotations: list[dict[str, Any]], name: str = "annotations/instances_default.json",
           folder: str = "images/default", changed: dict[str, Any] | None = None) -> Path:  # fmt: skip
    """An export as CVAT lays it out; annotations are of the first image and of category 1 unless they say so."""
    for i in range(2):
        picture(root / folder / f"x{i}.png", shape=(ROWS, COLUMNS, 3), seed=f"{name}{i}")
    entries = [{"id": i + 1, "file_name": f"x{i}.png", "height": ROWS, "width": COLUMNS} for i in range(2)]
    content = {
        "images": entries,
        "categories": [{"id": 3, "name": "stroma"}, {"id": 1, "name": "nucleus"}, {"id": 9, "name": "unused"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, **one} for i, one in enumerate(annotations)],
        **(changed or {}),
    }
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def label(dest: Path, name: str = "x0") -> np.ndarray:
    return read_image(dest / "labels" / f"{name}.png")[0]


@pytest.mark.parametrize("number", range(20))
@needs_pycocotools
def test_outlines_against_skimage(number: int) -> None:
    """Polygons lie half a pixel off skimage's; away from their edges the two agree."""
    rng = np.random.default_rng(number)
    angles = np.sort(rng.random(7)) * 2 * np.pi
    x = 15 + rng.uniform(5, 13, 7) * np.cos(angles)
    y = 10 + rng.uniform(4, 9, 7) * np.sin(angles)
    polygon = np.stack([x, y], 1).ravel().tolist()
    mask = coco_outlines.outline_mask([polygon], (ROWS, COLUMNS), "x")
    finer = polygon2mask((10 * ROWS, 10 * COLUMNS), np.stack([10 * y - 0.5, 10 * x - 0.5], 1))
    share = finer.reshape(ROWS, 10, COLUMNS, 10).mean((1, 3))
    assert mask[share == 1].all()
    assert not mask[share == 0].any()


@needs_pycocotools
@pytest.mark.parametrize("number", range(10))
def test_run_lengths(number: int) -> None:
    mask = np.random.default_rng(number).random((ROWS, COLUMNS)) < (0, 1, 0.5, 0.02, 0.98)[number % 5]
    for outline in (runs(mask), text(mask)):
        np.testing.assert_array_equal(coco_outlines.outline_mask(outline, (ROWS, COLUMNS), "x"), mask)


@needs_pycocotools
@pytest.mark.parametrize(("outline", "words"), [
    ([[1, 1, 9, 9]], "no list of x, y of three or more points"),  # pycocotools: a box
    ([[1, 1, 9, 9, 4]], "no list of x, y"),
    ([1, 1, 9, 9, 4, 4], "no list of x, y"),
    ([[1, 1, 9, float("nan"), 4, 4]], "not finite"),
    ([[1, 1, 900, 9, 4, 4]], "x from 1 to 900, far outside its image of 20x30"),
    ([], "no outline"),
    ("x", "no outline"),
    ({"size": [30, 20], "counts": [600]}, "run lengths for a size of"),
    ({"size": [20, 30], "counts": [599]}, "do not cover 20x30"),  # pycocotools: memory that nobody wrote
    ({"size": [20, 30], "counts": [-1, 601]}, "do not cover"),
    ({"size": [20, 30], "counts": "15?"}, "do not cover"),
    ({"size": [20, 30], "counts": "\u00e9"}, "do not cover"),
    ({"size": [20, 30], "counts": "o"}, "do not cover"),
    ({"size": [20, 30]}, "do not cover"),
])  # fmt: skip
def test_outlines_that_are_none(outline: Any, words: str) -> None:
    refused(words, coco_outlines.outline_mask, outline, (ROWS, COLUMNS), "annotation 1 of x.png")


@needs_pycocotools
@pytest.mark.parametrize("outlines", [
    [box(*ONE), box(*TWO)], [runs(pixels(*ONE)), runs(pixels(*TWO))], [text(pixels(*ONE)), text(pixels(*TWO))],
    [box(2, 3, 5, 8) + box(5, 3, 9, 8), runs(pixels(*TWO))],
])  # fmt: skip
def test_classes_and_objects(outlines: list[Any], tmp_path: Path) -> None:
    first, second = ({"segmentation": one} for one in outlines)
    source = export(tmp_path / "set", [first, {**second, "category_id": 3}])
    summary = prepare("coco", source, tmp_path / "out")
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert content.information["labels"] == {"background": 0, "nucleus": 1, "stroma": 2}
    np.testing.assert_array_equal(label(tmp_path / "out"), pixels(*ONE) + 2 * pixels(*TWO))
    assert "categories without an annotation are left out: unused" in summary
    assert "1 of 2 images have no annotation and get no label" in summary
    assert [("label" in entry) for entry in content.training] == [True, False]
    summary = prepare("coco", source, tmp_path / "objects", label_type="instances", empty="background")
    np.testing.assert_array_equal(label(tmp_path / "objects"), pixels(*ONE) + 2 * pixels(*TWO))
    assert not label(tmp_path / "objects", "x1").any()
    assert "objects of all categories (nucleus, stroma) count as one class" in summary
    assert "outlines: 2 regions in 2 files became 2 objects" in summary


@needs_pycocotools
@pytest.mark.parametrize(("classes", "label_type", "expected"), [
    (["background=rest", "nucleus=nucleus"], "classes", [1, 0]),
    (["background=0", "tissue=rest"], "classes", [1, 1]),
    (["background=rest", "b=stroma", "a=nucleus"], "classes", [2, 1]),
    (["background=0", "a=nucleus", "ignore=stroma"], "classes", [1, 255]),
    (["background=rest", "cell=stroma"], "instances", [0, 1]),
    (["background=nucleus", "cell=stroma"], "instances", [0, 1]),
])  # fmt: skip
def test_chosen_categories(classes: list[str], label_type: str, expected: list[int], tmp_path: Path) -> None:
    source = export(tmp_path / "set", [
        {"segmentation": box(*ONE)}, {"segmentation": box(*TWO), "category_id": 3},
    ])  # fmt: skip
    prepare("coco", source, tmp_path / "out", classes=classes, label_type=label_type)
    np.testing.assert_array_equal(label(tmp_path / "out"), expected[0] * pixels(*ONE) + expected[1] * pixels(*TWO))


OUTER, INNER = (2, 2, 20, 18), (6, 6, 10, 10)


@needs_pycocotools
@pytest.mark.parametrize(("overlap", "inner"), [("last", 1), ("smallest", 2), ("ignore", 255)])
def test_overlaps(overlap: str, inner: int, tmp_path: Path) -> None:
    source = export(tmp_path / "set", [
        {"segmentation": box(*INNER), "category_id": 3}, {"segmentation": box(*OUTER)},
        {"segmentation": box(*OUTER)},  # of the class beneath it: no question
    ])  # fmt: skip
    summary = prepare("coco", source, tmp_path / "out", overlap=overlap)
    expected = np.where(pixels(*INNER), inner, pixels(*OUTER))
    np.testing.assert_array_equal(label(tmp_path / "out"), expected)
    assert "x0: 16 pixels belong to several objects and" in summary
    refused("x0.png: 16 pixels belong to several objects", prepare, "coco", source, tmp_path / "no", overlap="refuse")
    refused("--overlap ignore needs classes", prepare, "coco", source, tmp_path / "no", overlap="ignore",
            label_type="instances")  # fmt: skip


@needs_pycocotools
def test_objects_without_a_pixel_are_told(tmp_path: Path) -> None:
    source = export(tmp_path / "set", [
        {"segmentation": box(*INNER)}, {"segmentation": box(*OUTER), "iscrowd": 1},
        {"segmentation": box(-9, -9, -3, -3)},
    ])  # fmt: skip
    summary = prepare("coco", source, tmp_path / "out", label_type="instances")
    np.testing.assert_array_equal(label(tmp_path / "out"), pixels(*OUTER))
    assert "x0: 2 objects without a pixel of its own (first: annotation 0)" in summary
    assert "x0: 16 pixels belong to several objects and were given to the last" in summary
    assert "1 annotations are marked as crowds" in summary
    prepare("coco", source, tmp_path / "small", label_type="instances", overlap="smallest")
    np.testing.assert_array_equal(label(tmp_path / "small"), np.where(pixels(*INNER), 1, 2 * pixels(*OUTER)))


@needs_pycocotools
def test_shares_of_a_size_are_no_pixels(tmp_path: Path) -> None:
    shares = [{"segmentation": box(0.1, 0.2, 0.5, 1)}, {"segmentation": box(0, 0, 0.3, 0.4)}]
    refused("all polygons lie between 0 and 1", prepare, "coco", export(tmp_path / "a", shares), tmp_path / "out")
    both = [*shares, {"segmentation": box(*OUTER)}]  # specks beside an object are specks
    prepare("coco", export(tmp_path / "b", both), tmp_path / "out")


@needs_pycocotools
def test_sections(tmp_path: Path) -> None:
    """Roboflow's layout: a JSON beside the images of each part, whose names may be the same."""
    for part in ("train", "valid", "test"):
        export(tmp_path / "set", [{"segmentation": box(*ONE)}], f"{part}/_annotations.coco.json", folder=part)
    prepare("coco", tmp_path / "set", tmp_path / "out")
    content = load_data_list(tmp_path / "out" / "dataset.json")
    assert [entry["image"] for entry in content.validation] == ["images/valid/x0.png", "images/valid/x1.png"]
    assert len(content.training) == len(content.test) == 2
    assert content.information["split"] == "official"
    zipped(tmp_path / "set", tmp_path / "z.zip")
    prepare("coco", tmp_path / "z.zip", tmp_path / "zip")
    (tmp_path / "zip" / "dataset.json").write_bytes((tmp_path / "out" / "dataset.json").read_bytes())
    assert contents(tmp_path / "zip") == contents(tmp_path / "out")
    # The publisher's layout, images of one name in two folders.
    for part in ("train2017", "val2017"):
        export(tmp_path / "ms", [{"segmentation": box(*ONE)}], f"annotations/instances_{part}.json", folder=part)
    prepare("coco", tmp_path / "ms", tmp_path / "out2")
    content = load_data_list(tmp_path / "out2" / "dataset.json")
    assert [entry["image"] for entry in content.validation] == ["images/val2017/x0.png", "images/val2017/x1.png"]


@needs_pycocotools
def test_a_change_makes_its_image_anew_and_no_other(tmp_path: Path) -> None:
    both = [{"segmentation": box(*ONE)}, {"segmentation": box(*TWO), "image_id": 2}]
    prepare("coco", export(tmp_path / "set", both), tmp_path / "out")
    assert "0 prepared, 2 kept" in prepare("coco", tmp_path / "set", tmp_path / "out")
    both[1]["segmentation"] = box(*INNER)
    assert "1 prepared, 1 kept" in prepare("coco", export(tmp_path / "set", both), tmp_path / "out")


ANNOTATION = {"id": 0, "image_id": 1, "category_id": 1, "segmentation": box(*ONE)}
X0 = {"id": 1, "file_name": "x0.png"}


@needs_pycocotools
@pytest.mark.parametrize(("changed", "words"), [
    ({"annotations": [{**ANNOTATION, "image_id": 7}]}, "annotation 0 is of image 7, which is not listed"),
    ({"annotations": [{**ANNOTATION, "category_id": 7}]}, "has the category 7, which is not listed"),
    ({"annotations": [{**ANNOTATION, "segmentation": []}]}, "1 of 1 annotations have no outline, such as boxes"),
    ({"annotations": [{"id": 0, "segments_info": []}]}, "is panoptic COCO"),
    ({"annotations": [{"id": 0}]}, "is not laid out as COCO's JSON"),
    ({"annotations": []}, "holds no annotation"),
    ({"images": [X0, {**X0, "file_name": "x1.png"}]}, "gives the id 1 to two images"),
    ({"images": [X0, {**X0, "id": 2}]}, r"x0\.png is listed twice"),
    ({"images": [X0, {"id": 2, "file_name": "gone.png"}]}, r"1 of 2 images .* are not in .*first: gone\.png"),
    ({"images": [{**X0, "height": 40, "width": 30}]}, r"x0\.png is 20x30, but .* outlines it at 40x30"),
    ({"images": [{**X0, "height": "20", "width": 30}]}, r"height of x0\.png is '20': give a number"),
    ({"images": [X0, {"id": 2, "height": 20, "width": 30}]}, "the image 2 has no 'file_name'"),
    ({"images": []}, "annotation 0 is of image 1, which is not listed"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories of one name"),
    ({"categories": {}}, "no JSON file with 'images', 'annotations' and 'categories'"),
])  # fmt: skip
def test_files_that_cannot_be_used(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = export(tmp_path / "set", [{"segmentation": box(*ONE)}], changed=changed)
    refused(words, prepare, "coco", source, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


@needs_pycocotools
def test_options_that_do_not_fit(tmp_path: Path) -> None:
    source, out = export(tmp_path / "set", [{"segmentation": box(*ONE)}]), tmp_path / "out"
    refused(
        "has the number 1, but categories go by name", prepare, "coco", source, out, classes=["background=0", "a=1"]
    )
    refused("which is no number or name among nucleus", prepare, "coco", source, out, classes=["background=0", "a=nuc"])
    (source / "other.json").write_text("{")
    refused(r"other\.json is not JSON", prepare, "coco", source, out)


@needs_pycocotools
@pytest.mark.parametrize("name", [
    "x0.png", "images/x0.png", "./images/default/x0.png", "images\\default\\x0.png", "/home/someone/images/x0.png",
    "C:\\data\\x0.png",
])  # fmt: skip
def test_names_of_images(name: str, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": name}]
    source = export(tmp_path / "set", [{"segmentation": box(*ONE)}])
    path = source / "annotations" / "instances_default.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": images}))
    picture(source / "SegmentationClass" / "x0.png", np.zeros((ROWS, COLUMNS)))
    assert "1 image that no JSON file lists left out" in prepare("coco", source, tmp_path / "out")
    np.testing.assert_array_equal(label(tmp_path / "out"), pixels(*ONE))


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    source = export(tmp_path / "set", [{"segmentation": box(*ONE)}])
    refused(r"prepare coco needs pycocotools: install it with pip install 'medmdm\[coco\]'", prepare, "coco", source,
            tmp_path / "out")  # fmt: skip
