"""Objects that are counted and measured: against numbers worked out by hand, and pycocotools."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from medmdm.data.files.volumes import Slicing
from medmdm.runs.folder import RunFolder
from medmdm.segment import COCO, ObjectTable, PostProcess
from medmdm.segment.evaluation import Outputs
from medmdm.segment.formats.measurements import measure
from medmdm.segment.formats.tables import BoxTable
from medmdm.segment.journal import Journal
from medmdm.segment.one_by_one import write_all
from tests.made import refused
from tests.segment.formats.made import NAMES, made_mask, segmented
from tests.written import picture


def test_a_disc_and_a_rectangle() -> None:
    rows, columns = np.indices((90, 130))
    labels = ((rows - 40) ** 2 + (columns - 50) ** 2 <= 30**2).astype(np.int32)
    labels[5:15, 90:130] = 4
    table = measure(labels, (labels > 0).astype(np.uint8), spacing=(0.002, 0.002)).set_index("label")
    disc, bar = table.loc[1], table.loc[4]
    assert disc["area_px"] == np.count_nonzero(labels == 1)
    assert disc["area_um2"] == 4 * disc["area_px"]
    assert disc["perimeter_um"] == pytest.approx(2 * math.pi * 60, rel=0.06)  # the estimator is 5 % high on discs
    assert disc["equivalent_diameter_um"] == pytest.approx(120, rel=0.01)
    assert disc["eccentricity"] < 0.05
    assert (disc["centroid_row"], disc["centroid_column"]) == (40, 50)
    assert bar["eccentricity"] == pytest.approx(math.sqrt(1 - (10**2) / (40**2)), abs=1e-3)
    assert (bar["centroid_row"], bar["centroid_column"]) == (9.5, 109.5)
    # Pixels that are four times as high as wide: the bar is a square, and a perimeter is not to be had.
    flat = measure(labels, labels > 0, spacing=(0.004, 0.001)).set_index("label").loc[4]
    assert flat["eccentricity"] < 0.1  # moments of pixel centres
    assert flat["area_um2"] == 400 * 4
    assert math.isnan(flat["perimeter_um"])
    assert "area_um2" not in measure(labels, labels > 0)


def test_objects_of_a_picture(tmp_path: Path) -> None:
    mask = made_mask()
    form = ObjectTable()
    table = form.describe(segmented(tmp_path, mask))
    assert list(table["class_name"]) == ["gland", "Tumor ü", "Tumor ü"]
    assert table["area_px"].sum() == np.count_nonzero(mask)
    assert (table["mean_probability"] - 0.75).abs().max() < 1e-6
    empty = form.describe(segmented(tmp_path, np.zeros_like(mask)))
    assert len(empty) == 0
    assert list(empty.columns) == list(table.columns)
    (tmp_path / "objects.csv").write_text(form.text({"a": table, "b": empty}))
    again = form.read(tmp_path / "objects.csv")
    pd.testing.assert_frame_equal(again["a"], table, check_dtype=False)
    assert "mean_probability" not in ObjectTable(mean_probability=False).describe(segmented(tmp_path, mask))


@pytest.mark.parametrize("name", ["NA", "007", "-a", "=1+1", "'b"])
def test_names_are_read_as_they_were_given(name: str, tmp_path: Path) -> None:
    mask, names = made_mask(), ("background", name, "None")
    made = segmented(tmp_path, mask)
    made = replace(made, origin=replace(made.origin, class_names=names))
    form = ObjectTable()
    table = form.describe(made).assign(case=name)
    text = form.text({name: table})
    (tmp_path / "objects.csv").write_text(text)
    again = form.read(tmp_path / "objects.csv")
    assert list(again) == [name]
    assert list(again[name]["class_name"]) == list(table["class_name"])
    assert form.text(again) == text


def test_objects_of_a_volume(tmp_path: Path) -> None:
    mask = np.zeros((6, 7, 5), np.uint8)
    mask[1:3, 2:6, 3] = 2
    slicing = Slicing(mask.shape, np.diag([0.5, 2.0, 3.0, 1.0]))
    table = ObjectTable().describe(segmented(tmp_path, mask, slicing=slicing, spacing=(0.5, 2.0, 3.0)))
    row = table.iloc[0]
    assert (row["voxels"], row["volume_mm3"], row["class"]) == (8, 24, 2)
    assert [row[f"centroid_{axis}"] for axis in "ijk"] == [1.5, 3.5, 3]
    assert row["equivalent_diameter_mm"] == pytest.approx((6 * 24 / math.pi) ** (1 / 3))


def test_boxes_say_how_sure_they_are(tmp_path: Path) -> None:
    mask = made_mask()
    mask[0, 20:30] = 1  # in the row where classes are 0.25 probable
    mask[1, 20:30] = 1  # and the next, where they are 0.75
    instances = PostProcess(instances="components").finished(mask)["instances"]
    assert instances is not None
    instances[instances == 2] = 9  # a gap
    made = segmented(tmp_path, mask, instances)
    table = BoxTable().describe(made)
    assert table is not None
    assert list(table["label"]) == [1, 3, 4, 9]
    own = {n: made.probabilities[mask[instances == n][0]][instances == n].mean() for n in table["label"]}  # type: ignore[index]
    assert dict(zip(table["label"], table["score"], strict=True)) == pytest.approx(own, rel=1e-6)
    assert sorted(set(np.round(table["score"], 6))) == [0.5, 0.75]
    bare = BoxTable().describe(replace(made, probabilities=None))
    assert bare is not None
    assert "score" not in bare


def test_coco_is_read_by_pycocotools(tmp_path: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    noise = (ndimage.gaussian_filter(rng.random((41, 27)), 2) > 0.5).astype(np.uint8)
    noise[:, 13:] *= 2
    noise[-1, -1] = 1  # the very last pixel, and the first
    noise[0, 0] = 1
    path = picture(tmp_path / "whole.png", np.zeros((60, 90, 3)))
    region = {"image": str(path), "name": "whole.png", "region": {"rows": [7, 27], "columns": [40, 73]}}
    instances = PostProcess(instances="watershed").finished(noise)["instances"]
    cases = {
        "a": segmented(tmp_path, noise, instances),
        "b": segmented(tmp_path, made_mask(), entry=region),
        "empty": segmented(tmp_path, np.zeros((4, 9), np.uint8)),
    }
    form = COCO()
    pieces = {name: form.describe(made) for name, made in cases.items()}
    for name, piece in pieces.items():
        piece["image"]["case"] = name
    file = tmp_path / "coco.json"
    file.write_text(form.text(pieces))
    assert form.text(form.read(file)) == file.read_text()
    assert len(form.read(file)["empty"]["annotations"]) == 0
    read = pycocotools.COCO(str(file))
    assert [(one["id"], one["name"]) for one in read.loadCats(read.getCatIds())] == [(1, NAMES[1]), (2, NAMES[2])]
    for image, made in zip(read.loadImgs(read.getImgIds()), cases.values(), strict=True):
        mask, objects = made.case.in_place(made.mask), made.case.in_place(made.objects)
        assert (image["height"], image["width"]) == mask.shape
        assert not Path(image["file_name"]).is_absolute()
        found = read.loadAnns(read.getAnnIds(imgIds=image["id"]))
        assert len(found) == len(np.unique(objects[objects > 0]))
        drawn = np.zeros_like(mask)
        for annotation in found:
            decoded = read.annToMask(annotation)
            np.testing.assert_array_equal(decoded, objects == annotation["label"])
            assert annotation["area"] == decoded.sum()
            rows, columns = np.nonzero(decoded)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            drawn[decoded > 0] = annotation["category_id"]
        np.testing.assert_array_equal(drawn, mask)
    assert len(json.loads(file.read_text())["images"]) == 3
    # The annotations are results of detection, too.
    detected = read.loadRes([{**one} for one in json.loads(file.read_text())["annotations"]])
    scores = {one["label"]: one["score"] for one in detected.loadAnns(detected.getAnnIds(imgIds=2))}
    table = ObjectTable().describe(cases["b"])
    assert scores == dict(zip(table["label"], table["mean_probability"], strict=True))
    assert all("score" not in one for one in COCO(score=False).describe(cases["b"])["annotations"])
    refused("COCO is for pictures", form.check, [{"image": "x.nii"}], NAMES)


def test_without_pycocotools_only_coco_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pycocotools" else found(name))
    refused("COCO needs pycocotools", COCO().check, [], NAMES)
    run = RunFolder(tmp_path, {"bundle": "mdm_infer"}, {}, {}, 0)
    run.open()
    kept = {"image": {"case": "b", "file_name": "b.png", "height": 2, "width": 3}, "annotations": [], "categories": []}
    (tmp_path / "coco.json").write_text(COCO().text({"b": kept}))
    before = (tmp_path / "coco.json").read_text()
    assert write_all([], iter(()), Outputs(tmp_path), (), Journal(run, [], None)) == []
    assert (tmp_path / "coco.json").read_text() == before
