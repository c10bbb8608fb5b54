"""Masks with other values than classes: one rule for prepare, check, training and reports, or a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medmdm.check.data_list import check
from medmdm.data.cases import select_cases
from medmdm.data.files.pictures import read_image, read_mask
from medmdm.data.reading import CaseReader
from medmdm.errors import UserError
from medmdm.prepare import prepare
from medmdm.reports.case_files import read_case
from medmdm.runs.record import EvaluatedCase, Evaluation
from tests.made import refused
from tests.written import picture

TRUTH = np.zeros((48, 40), np.uint8)
TRUTH[5:30, 8:20], TRUTH[35:44, 3:38] = 1, 1
TWO = TRUTH.copy()
TWO[35:44, 3:38] = 2
PLAN = {"channels": 3, "intensity_range": None}
OTHER = np.roll(TRUTH, 3, axis=1)


def save(path: Path, array: np.ndarray, kind: str) -> None:
    """Write numbers of classes in one of the ways that programs have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = Image.fromarray(array.astype(np.uint8) * 255)
    colours = {"voc": [0, 0, 0, 128, 0, 0, 0, 128, 0], "grey": [0] * 3 + [128] * 3 + [255] * 3,
               "inverted": [255] * 3 + [128] * 3 + [0] * 3, "black": [0] * 9,
               "sorted": [9, 80, 3, 0, 0, 0, 0, 128, 0]}  # fmt: skip
    if kind.isdigit() and kind not in ("127", "64"):
        white = int(kind)
        picture(path, array.astype(np.uint16 if white > 255 else np.uint8) * white)
    elif kind in colours:
        image = Image.fromarray(array, "L").copy()
        image = Image.frombytes("P", image.size, array.tobytes())
        image.putpalette(colours[kind])
        image.save(path)
    elif kind == "bare":
        Image.frombytes("P", array.shape[::-1], array.tobytes()).save(path)
    elif kind == "imagej":  # its inverting look-up table: stored 255 is shown black
        image = Image.frombytes("P", array.shape[::-1], (array * 255).tobytes())
        image.putpalette([255 - i // 3 for i in range(768)])
        image.save(path)
    elif kind in ("RGB", "RGBA", "LA"):
        grey.convert(kind).save(path)
    elif kind == "alpha":
        Image.merge("RGBA", [Image.new("L", grey.size)] * 3 + [grey]).save(path)
    elif kind == "both":
        Image.merge("LA", [grey, grey]).save(path)
    elif kind == "jpeg":
        grey.save(path, "JPEG", quality=95)
    elif kind == "smooth":
        small = grey.resize((30, 30), Image.Resampling.BILINEAR)
        small.resize(grey.size, Image.Resampling.BILINEAR).save(path)
    elif kind == "smooth100":
        small = grey.resize((30, 30), Image.Resampling.BILINEAR).resize(grey.size, Image.Resampling.BILINEAR)
        picture(path, np.round(np.asarray(small) / 2.55))
    elif kind == "smooth16":
        small = grey.resize((30, 30), Image.Resampling.BILINEAR).resize(grey.size, Image.Resampling.BILINEAR)
        picture(path, np.asarray(small).astype(np.uint16) * 257)
    elif kind == "soft":  # a single grey between
        picture(path, np.where(array != np.roll(array, 1, 0), 128, array * 255))
    elif kind in ("127", "64"):  # of a third class, or of soft edges
        picture(path, np.where(array != np.roll(array, 1, 0), int(kind), array * 255))
    elif kind.startswith("pages"):  # an object a page; "pages of classes" numbers them
        second = np.roll(array, 9, 1) * (2 if kind.endswith("classes") else 1)
        tifffile.imwrite(path, np.stack([array, second]), photometric="minisblack")
    else:
        raise ValueError(kind)


def make(folder: Path, kinds: list[str], suffix: str = "png", **labels: int) -> Path:
    """Write a set whose masks are of the kinds, and a list of one class."""
    entries = []
    for number, kind in enumerate(kinds):
        picture(folder / f"images/{number}.png", shape=(*TRUTH.shape, 3), seed=str(number))
        save(folder / f"masks/{number}.{suffix}", TRUTH if number % 2 == 0 else OTHER, kind)
        entries.append({"image": f"images/{number}.png", "label": f"masks/{number}.{suffix}"})
    listed = {"name": "s", "labels": {"background": 0, "object": 1, **labels}, "training": entries[:-1]}
    (folder / "dataset.json").write_text(json.dumps({**listed, "test": entries[-1:]}))
    return folder


def truths(folder: Path) -> list[np.ndarray]:
    """Read every label as training does, and as reports do; both must agree."""
    cases = select_cases(folder)
    reader = CaseReader(cases, PLAN)
    information = cases.data_list.information if cases.data_list is not None else {}
    evaluation = Evaluation(folder, "s", folder, "test", ("background", "object"), (), data_list=information)
    found = []
    for entry in (*cases.training, *cases.test):
        truth = reader.read(entry).truth
        written = folder.with_suffix(".png")
        Image.fromarray(np.zeros(TRUTH.shape, np.uint8)).save(written)
        case = EvaluatedCase("x", Path(entry["image"]), Path(entry["label"]), written)
        np.testing.assert_array_equal(read_case(case, evaluation).truth, truth)
        found.append(truth)
    return found


@pytest.mark.parametrize("kinds", [
    ["255"] * 3, ["65535"] * 3, ["100"] * 3, ["128"] * 3, ["254"] * 3, ["1"] * 3,
    ["1", "255", "255"], ["255", "1", "1"],
    ["1", "65535", "1"], ["alpha"] * 3, ["both"] * 3, ["RGB"] * 3, ["RGBA"] * 3, ["LA"] * 3, ["RGB", "1", "RGBA"],
    ["voc"] * 3, ["grey"] * 3, ["black"] * 3, ["voc", "255", "alpha"],
])  # fmt: skip
def test_two_values_are_two_classes(tmp_path: Path, kinds: list[str], caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path / "set", kinds)
    expected = [TRUTH, OTHER, TRUTH]
    for read, true in zip(truths(folder), expected, strict=True):
        np.testing.assert_array_equal(read, true)
    report = check(folder / "dataset.json", progress=False)
    assert not report.errors
    whites = {"1", "voc", "grey", "black"} >= set(kinds)
    said = [finding.message for finding in report.findings if finding.check == "white-labels"]
    assert bool(said) != whites
    assert all("is read as class 1" in message for message in said)
    (folder / "dataset.json").unlink()
    prepared = prepare("folder", folder, tmp_path / "out")
    assert ("became" in prepared) != whites
    for read, true in zip(truths(tmp_path / "out"), expected, strict=False):
        np.testing.assert_array_equal(read, true)
    assert not check(tmp_path / "out" / "dataset.json", progress=False).findings


@pytest.mark.parametrize(("kind", "sentence"), [
    ("jpeg", "compressed as JPEG|grey levels"), ("smooth", "grey levels"), ("smooth16", "grey levels"),
    ("smooth100", "grey levels"), ("soft", "grey levels|holds 128"), ("inverted", "palette shows 0 lighter"),
    ("imagej", "palette shows 0 lighter"), ("bare", "palette of 1 colour"), ("sorted", "palette shows 0 lighter"),
])  # fmt: skip
def test_what_is_doubtful_is_refused_by_all(tmp_path: Path, kind: str, sentence: str) -> None:
    folder = make(tmp_path / "set", [kind] * 3)
    if kind == "bare":
        save(folder / "masks/0.png", TWO, "bare")
        for number in (1, 2):
            save(folder / f"masks/{number}.png", TRUTH, "bare")
    assert check(folder / "dataset.json", progress=False).errors
    refused(sentence, truths, folder)
    (folder / "dataset.json").unlink()
    refused(sentence, prepare, "folder", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_255_beside_1_is_ignored_and_must_not_be_white_elsewhere(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", ["1", "1", "255"])
    scribbles = TRUTH.copy()
    scribbles[:3] = 255
    picture(folder / "masks/0.png", scribbles)
    refused('add "ignore": 255', truths, folder)
    (error,) = check(folder / "dataset.json", progress=False).errors
    assert 'add "ignore": 255' in error.message
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"]["ignore"] = 255
    (folder / "dataset.json").write_text(json.dumps(content))
    for read, true in zip(truths(folder), [scribbles, OTHER, TRUTH * 255], strict=True):
        np.testing.assert_array_equal(read, true)
    assert not check(folder / "dataset.json", progress=False).errors
    (folder / "dataset.json").unlink()
    prepare("folder", folder, tmp_path / "out")
    for read, true in zip(truths(tmp_path / "out"), [scribbles, OTHER, TRUTH * 255], strict=False):
        np.testing.assert_array_equal(read, true)
    assert not check(tmp_path / "out" / "dataset.json", progress=False).errors


@pytest.mark.parametrize("kind", ["voc", "grey", "black"])
def test_palettes_hold_numbers(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "a.png", TWO, kind)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), TWO[None])
    if kind != "black":
        assert read_image(tmp_path / "a.png").shape[0] == 3


@pytest.mark.parametrize("grey", ["127", "64", "soft"])
def test_a_grey_beside_white(tmp_path: Path, grey: str) -> None:
    """255 would be ignored, and the objects with it; ``--classes`` says what is meant."""
    folder = make(tmp_path / "set", [grey] * 2)
    (folder / "dataset.json").unlink()
    refused("grey levels between 0 and 255", prepare, "folder", folder, tmp_path / "out")
    number = {"soft": "128"}.get(grey, grey)
    said = prepare("folder", folder, tmp_path / "out", classes=["background=0", f"edge={number}", "object=255"])
    assert "2 object" in said


@pytest.mark.parametrize("kind", ["pages", "pages of classes"])
def test_a_mask_of_several_pages(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "set", [kind] * 2, "tif")
    refused("is a label of 2 pages", truths, folder)
    assert "is a label of 2 pages" in str(check(folder / "dataset.json", progress=False).errors)
    (folder / "dataset.json").unlink()
    refused("is a label of 2 pages", prepare, "folder", folder, tmp_path / "out")


def test_smaller_pages_are_no_masks(tmp_path: Path) -> None:
    """Previews and pyramids."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(TRUTH, photometric="minisblack")
        file.write(TRUTH[::2, ::2], photometric="minisblack")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif")[0], TRUTH)


@pytest.mark.parametrize(
    ("tag", "own", "said"), [(6, 1, True), (3, 1, True), (8, 3, True), (6, 6, False), (1, 1, False)]
)
def test_a_turned_image_whose_mask_is_not(tmp_path: Path, tag: int, own: int, said: bool) -> None:
    for name, array, orientation in (("images/a.jpg", TRUTH[:40] * 200, tag), ("masks/a.png", TRUTH[:40], own)):
        (tmp_path / "s" / name).parent.mkdir(parents=True)
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(array).save(tmp_path / "s" / name, exif=exif)
    assert ("turned by an orientation tag" in prepare("folder", tmp_path / "s", tmp_path / "out")) == said
    listed = {"name": "x", "labels": {"background": 0, "a": 1}}
    (tmp_path / "s/dataset.json").write_text(
        json.dumps({**listed, "training": [{"image": "images/a.jpg", "label": "masks/a.png"}]})
    )
    findings = check(tmp_path / "s/dataset.json", progress=False).findings
    assert any(finding.check == "orientation-tag" for finding in findings) == said


def test_white_is_zero_as_imagej_saves_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", TRUTH * 255, photometric="miniswhite")
    refused("stores white as 0", read_mask, tmp_path / "a.tif")


def test_colours_and_alpha_that_disagree(tmp_path: Path) -> None:
    grey, alpha = (Image.fromarray(mask * 255) for mask in (TRUTH, OTHER))
    Image.merge("LA", [grey, alpha]).save(tmp_path / "a.png")
    refused("show different things", read_mask, tmp_path / "a.png")


def test_numbers_that_classes_cannot_have(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", ["1"] * 3)
    (folder / "dataset.json").unlink()
    numbers = TWO.astype(np.uint16)
    numbers[TWO == 2] = 300
    picture(folder / "masks/0.png", numbers)
    refused(
        "holds 300, and classes must be below 255.*--label-type instances", prepare, "folder", folder, tmp_path / "o"
    )
    with pytest.raises(UserError):
        prepare("folder", folder, tmp_path / "o")
