"""Data lists, labels and what cases share."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.damage.attempts import Attempt, check, damage, prepare, pretrain, split
from tests.damage.sound import data_list, picture


def every_door(listed: Path) -> list[Attempt]:
    """A list is used for training, checked and split."""
    return [pretrain(listed.parent), check(listed), split(listed, "--subset", "1")]


def broken(name: str, words: str, text: str) -> None:
    def make(root: Path) -> list[Attempt]:
        listed = data_list(root)
        listed.write_text(text)
        return every_door(listed)

    damage(name, words)(make)


broken("a list that is no JSON", r"dataset\.json is not JSON \(.*line 1", '{"training": [')
broken("a list of the wrong type", r"dataset\.json holds a list: it must be an object", "[1, 2]")
broken("a section of the wrong type", r"'training' is a dict: it must be a list", '{"training": {"image": "a.png"}}')
broken("an entry of the wrong type", r"training\[0\] is 3: an entry must be an object", '{"training": [3]}')
broken(
    "an unknown section",
    r"'trainning' is not a section \(did you mean 'training'\?\)",
    '{"trainning": [{"image": "a.png"}], "training": [{"image": "b.png"}]}',
)
broken("no section", r"'training' is missing or empty", '{"name": "a", "test": []}')
broken("a path outside the folder", r"'\.\./a\.png', which leaves the data set's folder", '{"training": ["../a.png"]}')
broken("an absolute path", r"'/etc/passwd', which leaves the data set's folder", '{"training": ["/etc/passwd"]}')
broken("a path outside, Windows' way", r"which leaves the data set's folder", r'{"training": ["x\\..\\..\\a.png"]}')
broken("an image listed twice", r"'training' lists 'a\.png' twice", '{"training": ["a.png", "a.png"]}')
broken(
    "an image in two sections by its name",
    r"'a\.png' is in 'training' and in 'test'",
    '{"training": ["a.png"], "test": ["a.png"]}',
)


@damage("a region outside its image", r"a\.png (has 20 rows, .* asks for rows 0 to 99|is 20x30 .* ends at 99x30)")
def _(root: Path) -> list[Attempt]:
    data_list(root)
    return [pretrain(root), check(data_list(root, [{"image": "a.png", "region": {"rows": [0, 99]}}]))]


@damage("a missing file", r"gone\.png( in training does not exist|\): correct)")
def missing(root: Path, name: str = "gone.png") -> list[Attempt]:
    data_list(root)
    return [pretrain(root), check(data_list(root, [{"image": "a.png"}, {"image": name}]))]


@damage("a link to nowhere", r"link\.png( in training does not exist: it is a link to nowhere|\): correct)")
def _(root: Path) -> list[Attempt]:
    os.symlink("nowhere.png", root / "link.png")
    return missing(root, "link.png")


@damage("an identical image in train and test", r"a copy of it, .*a\.png, in training|hold the same pixels")
def _(root: Path) -> list[Attempt]:
    listed = data_list(root)
    shutil.copy(root / "a.png", root / "c.png")
    return [pretrain(root), check(listed)]


@damage("the same in another file format", r"a\.png in training and c\.bmp in test hold the same pixels")
def _(root: Path) -> list[Attempt]:
    data_list(root)
    Image.open(root / "a.png").save(root / "c.bmp")
    return [check(data_list(root, [{"image": "a.png"}], test=[{"image": "c.bmp"}]))]


@damage("a copy within a section", r"a\.png and b\.png, both in training|b\.png and a\.png, both in", "warning")
def _(root: Path) -> list[Attempt]:
    listed = data_list(root)
    shutil.copy(root / "a.png", root / "b.png")
    return [check(listed)]


def shared_patient(root: Path, **keys: Any) -> Path:
    data_list(root)
    entries = [{"image": f"{name}.png", "label": f"{name}_mask.png", "patient_id": "DOE^JANE"} for name in "ac"]
    return data_list(root, entries[:1], test=entries[1:], **keys)


damage("a patient in both parts of a split of ours", r"1 of 1 test cases .*: patient 1 of 1 \(1 \+ 1 cases\)")(
    lambda root: [check(shared_patient(root))]
)


@damage("a patient in both parts of an official split", r"patient 1 of 1 .*this is the publisher's split", "warning")
def _(root: Path) -> list[Attempt]:
    return [check(shared_patient(root, split="official")), pretrain(root)]


@damage("names differ in letter case only", r"(a\.png and A\.png|A\.png and a\.png) differ in letter case", "warning")
def _(root: Path) -> list[Attempt]:
    data_list(root)
    picture(root / "A.png")
    if len(os.listdir(root)) == 7:
        pytest.skip("this file system does not tell letter cases apart")
    return [check(data_list(root, [{"image": "a.png"}, {"image": "A.png"}]))]


@damage("names that would become one", r"would both become images/\w+\.png|would both become")
def _(root: Path) -> list[Attempt]:
    picture(root / "a.png")
    picture(root / "A.tif")
    return [prepare("folder", root)]


@damage("more folds than patients", r"3 patients cannot be divided into 5 parts")
def _(root: Path) -> list[Attempt]:
    pooled = json.loads(data_list(root).read_text())
    return [split(data_list(root, [*pooled["training"], *pooled["test"]]), "--folds", "5")]


def label(name: str, words: str, array: np.ndarray, level: str = "error", prepared: str | None = None) -> None:
    """Add a row on a label that ``check`` complains of, and ``prepare`` too where it says something."""

    def make(root: Path) -> list[Attempt]:
        listed = data_list(root)
        suffix = ".tif" if array.dtype == np.float32 else ".png"
        picture(root / f"x_mask{suffix}", array)
        picture(root / "x.png")
        entries = json.loads(listed.read_text())["training"]
        doors = [check(data_list(root, [*entries, {"image": "x.png", "label": f"x_mask{suffix}"}]))]
        return doors if prepared is None else [*doors, prepare("folder", root)]

    damage(name, words if prepared is None else f"{words}|{prepared}", level)(make)


SIZE = r"x_mask\.png is 20x31 but its image"
label("a label of another size", SIZE, np.eye(20, 31), prepared=SIZE)
label(
    "a label with swapped axes", r"is 30x20 but its image .*axes are swapped", np.eye(30, 20), prepared=r"is 30x20 but"
)
label("a label value out of range", r"x_mask\.png holds 2, but the classes are 0, 1", 2 * np.eye(20, 30))
FRACTIONS = np.eye(20, 30, dtype=np.float32) / 2
label("a float label with fractions", r"not whole numbers \(such as 0\.5\)", FRACTIONS, prepared=r"not whole numbers")
label("NaN in a label", r"x_mask\.tif holds values that are not finite", FRACTIONS * np.nan, prepared="not finite")
label("negative labels", r"x_mask\.tif holds negative values", -2 * FRACTIONS, prepared="holds negative values")
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
label("a label of colours", r"x_mask\.png has 3 channels", COLOURS, prepared=r"x_mask\.png has colours")
label("a label without any object", r"x_mask\.png holds no object", np.zeros((20, 30)), "warning")


@damage("labels painted with 255", r"3 labels of 3 of 0 and 255 .*: 255 is read as class 1", "warning")
def _(root: Path) -> list[Attempt]:
    listed = data_list(root)
    for name in "abc":
        picture(root / f"{name}_mask.png", np.eye(20, 30) * 255)
    return [check(listed)]
