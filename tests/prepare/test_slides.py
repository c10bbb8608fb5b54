"""Annotated slides: images and labels against a brute force over all pixels, and what is refused."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from medmdm.data.cases import select_cases
from medmdm.data.files.pictures import read_image
from medmdm.data.files.slides import Slide
from medmdm.data.lists import load_data_list
from medmdm.data.reading import CaseReader
from medmdm.labels import IGNORE
from medmdm.prepare import prepare
from tests.data.files.test_outlines import feature, imagescope, square
from tests.made import refused
from tests.made_slides import tissue_everywhere, write_slide
from tests.prepare.layouts import contents

SHAPE = (620, 900)
TUMOR = feature([square(100, 60, 260, 200), square(140, 100, 180, 140)], "Tumor")
STROMA = feature([square(40, 30, 400, 300)], "Stroma")
REGION = feature([square(500, 320, 820, 560)], "Region*")
INSIDE = feature([square(560, 400, 640, 480)], "Tumor")


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    def make(
        features: Any, name: str = "a.geojson", slide: str = "a.tif", kind: str = "plain", mpp: float = 0.5
    ) -> Path:
        root = tmp_path / "source"
        root.mkdir(exist_ok=True)
        if not (root / slide).exists():
            write_slide(root / slide, SHAPE, tissue_everywhere, kind, mpp)
        (root / name).write_text(features if isinstance(features, str) else json.dumps(features))
        return root

    return make


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def painted(dest: Path, mpp: float = 0.5) -> np.ndarray:
    """All labels put back onto the slide's grid; −1 where there is no image."""
    whole = np.full([round(n * 0.5 / mpp) for n in SHAPE], -1)
    for entry in load_data_list(dest / "dataset.json").training:
        label = read_image(dest / entry["label"])[0]
        row, column = (round(entry[axis] * 0.5 / mpp) for axis in "yx")
        part = whole[row : row + label.shape[0], column : column + label.shape[1]]
        assert (part == -1).all()  # no pixel twice
        part[:] = label
    return whole


def boxes(shape: Sequence[int], scale: float, *drawn: tuple[Sequence[float], int]) -> np.ndarray:
    """Boxes (left, top, right, bottom) in pixels of the finest level, one after the other, pixel by pixel."""
    label = np.full(shape, IGNORE)
    for (left, top, right, bottom), number in drawn:
        for row in range(shape[0]):
            for column in range(shape[1]):
                if left <= (column + 0.5) * scale < right and top <= (row + 0.5) * scale < bottom:
                    label[row, column] = number
    return label


@pytest.mark.parametrize(("mpp", "tile"), [(0.5, 1024), (1.0, 1024), (0.5, 100), (0.7, 64)])
@pytest.mark.slow
def test_labels_are_those_of_a_brute_force(source, dest: Path, mpp: float, tile: int) -> None:
    prepare("slides", source([TUMOR, STROMA, REGION, INSIDE]), dest, mpp=mpp, tile=tile)
    found = painted(dest, mpp)
    with Slide(dest.parent / "source" / "a.tif") as slide:
        grid = slide.grid(mpp)
        assert found.shape == (grid.height, grid.width)
        for entry in load_data_list(dest / "dataset.json").training:
            image = read_image(dest / entry["image"])
            assert max(image.shape[1:]) <= tile
            place = [round(entry[axis] * grid.height / SHAPE[0]) for axis in "yx"]
            np.testing.assert_array_equal(image, slide.region(*place, *image.shape[1:], mpp))
            assert entry["spacing"] == [side / 1000 for side in grid.mpp]
    scale = SHAPE[0] / found.shape[0]
    # Stroma is 1 and Tumor 2 by their names; the smaller one is on top, and through its hole the larger one is seen.
    expected = boxes(
        found.shape, scale, ((500, 320, 820, 560), 0), ((40, 30, 400, 300), 1), ((100, 60, 260, 200), 2),
        ((140, 100, 180, 140), 1), ((560, 400, 640, 480), 2),
    )  # fmt: skip
    if abs(SHAPE[1] / found.shape[1] - scale) < 1e-9:
        np.testing.assert_array_equal(np.where(found < 0, IGNORE, found), expected)
    else:  # the sides of 0.7 µm are rounded by themselves
        assert (np.where(found < 0, IGNORE, found) != expected).mean() < 0.002
    assert (found >= 0).sum() > (expected != IGNORE).sum()


def test_the_list_is_read_by_the_other_commands(source, dest: Path) -> None:
    table = prepare("slides", source([TUMOR, REGION]), dest)
    content = json.loads((dest / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "Tumor": 1, "ignore": 255}
    assert {entry["patient_id"] for entry in content["training"]} == {"a"}
    assert {entry["slide"] for entry in content["training"]} == {"a.tif"}
    assert "255" not in table.split("notes:")[0]
    assert "give --subject" in table
    cases = select_cases(dest)
    assert (cases.classes, cases.declared) == ((0, 1), (0, 1, 255))
    loaded = list(CaseReader(cases, {"channels": 3}).read_all(cases.training))
    values = {int(v) for case in loaded for example in case.examples for v in np.unique(example.label)}
    assert values == {0, 1, 255}


def test_without_a_region_there_is_no_background(source, dest: Path) -> None:
    prepare("slides", source([TUMOR, STROMA]), dest)
    cases = select_cases(dest)
    assert cases.classes == (1, 2)
    assert set(np.unique(painted(dest)).tolist()) == {-1, 1, 2, IGNORE}


@pytest.mark.parametrize(
    ("options", "labels", "values"),
    [
        ({"classes": ["background=Stroma", "tumor=Tumor"]}, {"background": 0, "tumor": 1}, [0, 1, 255]),
        ({"classes": ["background=rest", "tumor=Tumor"]}, {"background": 0, "tumor": 1}, [0, 1, 255]),
        ({"classes": ["background=Tumor", "s=Stroma"]}, {"background": 0, "s": 1}, [0, 1, 255]),
        ({"region": ["Stroma"]}, {"background": 0, "Tumor": 1}, [0, 1, 255]),
    ],
)
def test_classes_are_named_merged_and_chosen(source, dest: Path, options: Any, labels: Any, values: list[int]) -> None:
    prepare("slides", source([TUMOR, STROMA]), dest, **options)
    assert json.loads((dest / "dataset.json").read_text())["labels"] == {**labels, "ignore": 255}
    assert np.unique(painted(dest))[1:].tolist() == values


def test_ignored_annotations_cover_others(source, dest: Path) -> None:
    hidden = feature([square(110, 70, 130, 90)], "Ignore*")
    prepare("slides", source([hidden, TUMOR, REGION]), dest)
    found = painted(dest)
    assert (found[70:90, 110:130] == IGNORE).all()
    assert found[75, 105] == 1


@pytest.mark.parametrize(("overlap", "value"), [("smallest", 2), ("last", 1), ("ignore", IGNORE), ("refuse", None)])
def test_overlaps(source, dest: Path, overlap: str, value: int | None) -> None:
    root = source([TUMOR, STROMA])
    if value is None:
        refused(
            "has .* pixels at 0.5 µm in annotations of several classes .first at x 100, y 60.",
            prepare,
            "slides",
            root,
            dest,
            overlap=overlap,
        )
        return
    prepare("slides", root, dest, overlap=overlap)
    assert painted(dest)[150, 110] == value


def test_imagescope_and_qupath_give_the_same(source, tmp_path: Path) -> None:
    xml = imagescope(
        ("Tumor", [('Type="0"', square(100, 60, 260, 200)), ('Type="0" NegativeROA="1"', square(140, 100, 180, 140))]),
        ("Stroma", [('Type="0"', square(40, 30, 400, 300)[:-1])]),
    )
    root = source([TUMOR, STROMA])
    prepare("slides", root, tmp_path / "qupath")
    (root / "a.geojson").unlink()
    prepare("slides", source(xml, "a.xml"), tmp_path / "imagescope")
    files = [contents(tmp_path / name) for name in ("qupath", "imagescope")]
    labels = [{k: v for k, v in found.items() if str(k).endswith(".png")} for found in files]
    assert labels[0]
    assert labels[0] == labels[1]


def test_a_second_run_changes_nothing_and_an_edit_makes_its_images_anew(source, dest: Path) -> None:
    root = source([TUMOR, REGION, INSIDE])
    assert "2 prepared, 0 kept" in prepare("slides", root, dest)
    before = contents(dest)
    assert "0 prepared, 2 kept" in prepare("slides", root, dest)
    assert contents(dest) == before
    source([TUMOR, REGION, feature([square(560, 400, 650, 480)], "Tumor")])
    assert "1 prepared, 1 kept" in prepare("slides", root, dest)


def test_names_of_slides_and_annotations(source, dest: Path) -> None:
    source([TUMOR], "b.geojson", "b.ome.tif", "ome")
    source([TUMOR], "c.ome.geojson", "c.ome.tif", "ome")
    source([TUMOR], "other.geojson")
    root = source([REGION, TUMOR], "d.tif.json", "d.tif")
    table = prepare("slides", root, dest, subject="([bcd])")
    entries = load_data_list(dest / "dataset.json").training
    assert {entry["patient_id"] for entry in entries} == {"b", "c", "d"}
    assert "1 slide is left out, for want of annotations (first: a.tif)" in table
    assert "1 file is left out, being named like no slide (first: other.geojson" in table


def test_a_slide_without_pixel_size_needs_one(source, dest: Path) -> None:
    root = source([TUMOR, REGION])
    (root / "a.tif").unlink()
    with tifffile.TiffWriter(root / "a.tif") as file:
        for step in (1, 2):
            image = tissue_everywhere(*(np.arange(0, n, step) for n in SHAPE))
            file.write(image, tile=(64, 64), subfiletype=int(step > 1), metadata=None, photometric="rgb")
    refused("a.tif does not say how large its pixels are: give --slide-mpp", prepare, "slides", root, dest)
    prepare("slides", root, dest, slide_mpp=0.25)
    assert max(read_image(path).shape[1] for path in (dest / "images").iterdir()) <= 320


@pytest.mark.parametrize(
    ("features", "options", "sentence"),
    [
        ([feature([square(100, 60, 950, 200)])], {}, "has x from 100 to 950, outside of a.tif, which has 900 pixels"),
        ([feature([square(100, 700, 150, 800)])], {}, "has y from 700 to 800, outside of a.tif"),
        ([feature([square(100, 60, 260, 200)[:-1]])], {}, "is an open polygon"),
        ([feature([square(1, 1, 9, 9)], None)], {}, "an annotation has no class"),
        ([REGION], {}, "the annotations' classes are Region"),
        ([], {}, "the annotations' classes are none"),
        (
            [TUMOR, STROMA],
            {"classes": ["background=Tumor", "x=Tumour"]},
            "the value 'Tumour' (did you mean 'Tumor'?)",
        ),
        ([TUMOR, STROMA], {"classes": ["background=rst", "x=Tumor"]}, "has the value 'rst'"),
        ([TUMOR, STROMA, INSIDE], {"classes": ["background=0", "x=Tumor"]}, "does not name the class 'Stroma'"),
        ([TUMOR], {"mpp": 0.0}, "micrometres per pixel: give numbers above 0"),
        ([TUMOR], {"tile": 8}, "--tile is 8: give 64 or more"),
        ([feature([square(1.1, 1.1, 1.2, 1.2)])], {}, "no annotation covers a pixel at 0.5 µm"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(source, dest: Path, features: Any, options: Any, sentence: str) -> None:
    refused(re.escape(sentence), prepare, "slides", source(features), dest, **options)
    assert not dest.exists() or not list(dest.rglob("*.png"))


def test_what_is_ambiguous_is_refused(source, dest: Path, tmp_path: Path) -> None:
    root = source([TUMOR])
    (root / "a.xml").write_text(imagescope(("Tumor", [])))
    refused("are both of the slide a.tif", prepare, "slides", root, dest)
    (root / "a.xml").unlink()
    (root / "more").mkdir()
    write_slide(root / "more" / "A.ome.tif", SHAPE)
    refused("have one name, so that annotations could be of either", prepare, "slides", root, dest)
    for path in (*root.rglob("*.ome.tif"), root / "a.geojson"):
        path.unlink()
    refused("holds no annotations named like a slide .such as a.geojson", prepare, "slides", root, dest)
    (root / "a.tif").unlink()
    (root / "x.txt").write_text("")
    refused("holds no slide", prepare, "slides", root, dest)
