"""``--classes``: naming, merging and choosing classes by numbers, names and colours."""

import json
from pathlib import Path

import numpy as np
import pytest

from medmdm.cli import main
from medmdm.data.files.pictures import read_image
from medmdm.data.lists import load_data_list
from medmdm.prepare import prepare
from medmdm.prepare.classes import Classes, ColourTable
from tests.made import refused
from tests.prepare.layouts import mask
from tests.written import picture

BOXES = [(1, 5, 1, 6, 1), (8, 12, 10, 20, 2), (14, 18, 1, 6, 7)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        picture(tmp_path / "set" / f"{name}.png")
        mask(tmp_path / "set" / f"{name}_mask.png", BOXES if name == "a" else BOXES[:1])
    return tmp_path / "set"


def numbers(dest: Path) -> list[int]:
    """The new numbers of background and of the three boxes."""
    array = read_image(dest / "labels" / "a.png")[0]
    return [int(array[row, column]) for row, column in ((0, 0), (1, 1), (8, 10), (14, 1))]


@pytest.mark.parametrize(("classes", "labels", "expected"), [
    ("background=0 gland=1,2 stroma=7", {"background": 0, "gland": 1, "stroma": 2}, [0, 1, 1, 2]),
    ("stroma=7 background=0,1 gland=2", {"background": 0, "stroma": 1, "gland": 2}, [0, 0, 2, 1]),
    ("background=0 gland=2 ignore=1,7", {"background": 0, "gland": 1}, [0, 255, 1, 255]),
    ("background=rest gland=7", {"background": 0, "gland": 1}, [0, 0, 0, 1]),
    ("background=0 tissue=rest", {"background": 0, "tissue": 1}, [0, 1, 1, 1]),
    ("background=0 gland=1 ignore=rest", {"background": 0, "gland": 1}, [0, 1, 255, 255]),
])  # fmt: skip
def test_numbers(classes: str, labels: dict[str, int], expected: list[int], source: Path, tmp_path: Path) -> None:
    assert main(["prepare", "folder", str(source), str(tmp_path / "out"), "--classes", *classes.split()]) == 0
    assert load_data_list(tmp_path / "out" / "dataset.json").information["labels"] == labels
    assert numbers(tmp_path / "out") == expected


def test_other_classes_make_the_masks_anew(source: Path, tmp_path: Path) -> None:
    prepare("folder", source, tmp_path / "out", classes=["background=0", "gland=1,2,7"])
    assert numbers(tmp_path / "out") == [0, 1, 1, 1]
    assert "2 prepared" in prepare("folder", source, tmp_path / "out", classes=["background=0,7", "gland=1,2"])
    assert numbers(tmp_path / "out") == [0, 1, 1, 0]
    assert "2 kept" in prepare("folder", source, tmp_path / "out", classes=["background=0,7", "gland=1,2"])


def test_white_is_a_number_too(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png")
    mask(tmp_path / "set" / "a_mask.png", [(1, 5, 1, 6, 255)])
    prepare("folder", tmp_path / "set", tmp_path / "out", classes=["background=0", "gland=255"])
    assert numbers(tmp_path / "out") == [0, 1, 0, 0]
    prepare("folder", tmp_path / "set", tmp_path / "out", classes=["background=0", "gland=1"])
    assert numbers(tmp_path / "out") == [0, 255, 0, 0]  # ignored, as always


def test_colours(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png")
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[1:5, 1:6], colours[8:12, 10:20], colours[14:18, 1:6] = (250, 50, 83), (51, 221, 255), (9, 9, 9)
    picture(tmp_path / "set" / "a_mask.png", colours)
    classes = ["background=#000000", "nucleus=#FA3253", "stroma=#33ddff,#090909"]
    prepare("folder", tmp_path / "set", tmp_path / "out", classes=classes)
    assert numbers(tmp_path / "out") == [0, 1, 2, 2]
    wrong = ["background=rest", "nucleus=#fa3253"]
    refused(r"a_mask\.png has #090909, #33ddff, and --classes lists no such colour", prepare, "folder",
            tmp_path / "set", tmp_path / "no", classes=wrong)  # fmt: skip


@pytest.mark.parametrize(("classes", "words"), [
    (["background=0", "gland"], "has 'gland': give NAME=VALUES"),
    (["background=0", "gland="], "has 'gland=': give NAME=VALUES"),
    (["background=0", "gland=1", "gland=2"], "names 'gland' twice"),
    (["background=0", "gland=1", "stroma=1"], "gives '1' to two classes"),
    (["gland=1"], "must name the background"),
    (["background=0", "ignore=1"], "must name the background and another class"),
    (["background=0", "gland=one"], "has the value 'one', which is no number or name"),
    (["background=#000", "gland=#fa3253"], "has the colour '#000'"),
    (["background=0", "gland=1"], r"a_mask\.png holds 2, 7, which --classes does not name"),
])  # fmt: skip
def test_mistakes_end_in_a_sentence(classes: list[str], words: str, source: Path, tmp_path: Path) -> None:
    refused(words, prepare, "folder", source, tmp_path / "out", classes=classes)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_objects_get_one_name(source: Path, tmp_path: Path) -> None:
    given = {"label_type": "instances", "classes": ["background=0", "nucleus=rest"]}
    prepare("folder", source, tmp_path / "out", **given)
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (content["labels"], content["label_type"]) == ({"background": 0, "nucleus": 1}, "instances")
    for classes in (["background=0", "a=1", "b=2"], ["background=0", "a=1"], ["background=0", "a=rest", "ignore=3"]):
        refused("objects are of one class", prepare, "folder", source, tmp_path / "no",
                label_type="instances", classes=classes)  # fmt: skip


def test_without_masks(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png")
    refused("no image of .*set has a mask", prepare, "folder", tmp_path / "set", tmp_path / "out",
            classes=["background=0", "gland=1"])  # fmt: skip


def test_tables_number_black_or_background_first() -> None:
    assert ColourTable("t", {"a": (1, 1, 1), "none": (0, 0, 0)}).names == {"none": 0, "a": 1}
    assert ColourTable("t", {"a": (1, 1, 1), "Background": (9, 9, 9)}).names == {"Background": 0, "a": 1}
    assert ColourTable("t", {"a": (1, 1, 1)}).names == {"background": 0, "a": 1}
    assert Classes.parse(["a=x", "background=0"]).numbers({"x": 4}) == ({4: 1, 0: 0}, None)
