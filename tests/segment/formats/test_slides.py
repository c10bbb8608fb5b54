"""Shapes painted on a slide come back as polygons in the pixels of its finest level; other formats are refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from skimage.measure import perimeter
from torch import nn

from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading
from medmdm.segment import COCO, DicomSeg, GeoJSON, ObjectTable, OMETiff, PostProcess
from medmdm.segment.evaluation import Outputs
from medmdm.segment.formats.base import Origin
from medmdm.segment.formats.measurements import measure_classes
from medmdm.segment.saved_segmenter import OpenSegmenter
from medmdm.segment.slides import segment_slide
from tests.bundle_runs import Run
from tests.data.test_tracing import rasterised
from tests.made import refused
from tests.made_slides import write_slide
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures
from tests.segment.conftest import refused as refused_in_bundle  # noqa: F401 - fixture
from tests.segment.formats.test_geojson import read, shape_of
from tests.segment.test_slides import reader

pytest.importorskip("zarr")
SHAPE = 602, 899  # of neither is every level's size half of the one before
SQUARE = shapely.box(120, 60, 420, 300) - shapely.box(200, 150, 300, 220)  # x from, y from, to; with a hole
L_SHAPE = shapely.Polygon([(560, 330), (700, 330), (700, 460), (860, 460), (860, 560), (560, 560)])


class Brightness(nn.Module):
    """What is dark is of class 1, to the pixel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bright = 20 * image.mean(1, keepdim=True)
        return torch.cat([bright, -bright], 1)


def dark_shapes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    x, y = np.meshgrid(columns + 0.5, rows + 0.5)
    dark = shapely.contains_xy(shapely.union_all([SQUARE, L_SHAPE]), x, y)[..., None]
    return np.where(dark, np.array([60, 30, 80], np.uint8), np.array([225, 150, 200], np.uint8))


def checked(feature: dict[str, Any], side: float, mpp: float) -> None:
    """See that an outline is what was painted, within a traced pixel of ``side`` pixels of level 0."""
    found = shape_of(feature)
    assert found.is_valid
    assert found.geom_type == "MultiPolygon"
    parts = sorted(found.geoms, key=lambda part: part.bounds[0])
    for part, painted in zip(parts, (SQUARE, L_SHAPE), strict=True):
        assert len(part.interiors) == len(painted.interiors)
        assert part.boundary.hausdorff_distance(painted.boundary) <= side * np.sqrt(2)
        np.testing.assert_allclose(part.bounds, painted.bounds, atol=side)
    measured = feature["properties"]["measurements"]
    assert set(measured) == {"Area µm^2", "Perimeter µm"}
    assert measured["Area µm^2"] == pytest.approx(found.area * mpp**2, rel=1e-5)
    assert measured["Perimeter µm"] == pytest.approx((SQUARE.length + L_SHAPE.length) * mpp, rel=0.05)


@pytest.mark.parametrize("longest", [8192, 300])
def test_through_the_bundle(longest: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "s.ome.tif", SHAPE, dark_shapes, mpp=0.5)
    monkeypatch.setattr("medmdm.segment.slides._OUTLINED", longest)
    monkeypatch.setattr("medmdm.data.pyramid_writer._SMALLEST", 200)
    stand_in = Predictor(Brightness(), Reading((64, 64), overlap=0.25))
    monkeypatch.setattr(OpenSegmenter, "predictor", lambda *_: stand_in)
    out = tmp_path / "out"
    settings = {
        "segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(out),
        "dataset_dir": str(tmp_path / "slides"), "write_formats": [{"_target_": "medmdm.segment.GeoJSON"}],
    }  # fmt: skip
    run("mdm_infer", **settings)
    (feature,) = read(out / "predictions" / "s.geojson")
    step = 1 if longest == 8192 else 4  # 899, 450, 225 pixels
    checked(feature, step, 0.5)
    mask = tifffile.imread(out / "predictions" / "s.ome.tif")
    coarse = mask[::step, ::step]
    assert mask.shape == SHAPE
    centres = rasterised(shapely.affinity.scale(shape_of(feature), 1 / step, 1 / step, origin=(0, 0)), coarse.shape)
    np.testing.assert_array_equal(centres, coarse == 1)
    assert feature["properties"]["classification"]["name"] == "blob"
    assert feature["properties"]["objectType"] == "annotation"
    (image,) = json.loads((out / "run.json").read_text())["images"]
    assert image["slide"]["outlines_mpp"] == [0.5 * step] * 2
    assert "predictions/*.geojson" in image["files"]
    before = (out / "predictions" / "s.geojson").read_bytes()
    run("mdm_infer", **settings)
    assert (out / "predictions" / "s.geojson").read_bytes() == before


def test_of_a_resampled_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE, dark_shapes, mpp=0.25)
    monkeypatch.setattr("medmdm.segment.slides._OUTLINED", 300)
    monkeypatch.setattr("medmdm.data.pyramid_writer._SMALLEST", 200)
    predictor = Predictor(Brightness(), Reading((64, 64), overlap=0.25))
    outputs = Outputs(tmp_path, formats=[GeoJSON()])
    entry = {"case": "a", "image": str(path)}
    made = segment_slide(entry, reader([0.0004, 0.0004]), predictor, PostProcess(), outputs)
    made = made.written(outputs, Origin(["ground", "blob"], "0" * 64))
    assert made.facts["size"] == [376, 562]
    (feature,) = read(tmp_path / made.found.files["geojson"])
    assert made.facts["outlines_mpp"] == pytest.approx([0.8, 0.8], rel=0.01)
    checked(feature, 3.2, 0.25)


def test_a_last_pixel_that_reaches_over_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE, lambda r, c: np.full((len(r), len(c), 3), 60, np.uint8))
    monkeypatch.setattr("medmdm.segment.slides._MOST_EDGES", -1)  # the coarsest level
    monkeypatch.setattr("medmdm.data.pyramid_writer._SMALLEST", 200)
    outputs = Outputs(tmp_path, formats=[GeoJSON()])
    predictor = Predictor(Brightness(), Reading((64, 64), overlap=0.25))
    made = segment_slide({"case": "a", "image": str(path)}, reader(), predictor, PostProcess(), outputs)
    made = made.written(outputs, Origin(["ground", "blob"], "0" * 64))
    assert made.facts["outlines_mpp"] == [4.0, 4.0]
    (feature,) = read(tmp_path / made.found.files["geojson"])
    assert shape_of(feature).equals(shapely.box(0, 0, 899, 602))
    assert feature["properties"]["measurements"]["Area µm^2"] == pytest.approx(899 * 602 * 0.25)


def test_parts_measure_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmdm.segment.formats.measurements._ROWS", 16)
    mask = np.random.default_rng(0).integers(0, 3, (97, 40)).repeat(3, axis=0).repeat(2, axis=1).astype(np.uint8)
    ones = np.ones(mask.shape[0]), np.ones(mask.shape[1])
    found = measure_classes(mask.astype(np.uint16), mask, (0.5, 0.5), ones).set_index("label")
    assert list(found.index) == [1, 2]
    for number in (1, 2):
        assert found["area_um2"][number] == pytest.approx((mask == number).sum() / 4)
        assert found["perimeter_um"][number] == pytest.approx(perimeter(mask == number) / 2, rel=1e-6)
    assert measure_classes(mask, mask, (0.5, 0.7), ones)["perimeter_um"].isna().all()


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE, dark_shapes)
    entries = [{"image": str(path)}]
    GeoJSON().check(entries, ["ground", "blob"])
    made: list[Any] = [OMETiff(), ObjectTable()]
    made += [
        kind()
        for package, kind in (("pycocotools", COCO), ("highdicom", DicomSeg))
        if importlib.util.find_spec(package)
    ]
    for form in made:
        name = type(form).__name__
        refused(f"a.ome.tif is a slide, which {name} cannot be written for", form.check, entries, ["ground", "blob"])
    refused("GeoJSON has annotations only", GeoJSON(annotations=False).check, entries, ["ground", "blob"])


def test_the_bundle_refuses_before_it_predicts(run: Run, refused_in_bundle: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "s.ome.tif", SHAPE, dark_shapes)
    settings = {
        "segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(tmp_path / "out"),
        "dataset_dir": str(tmp_path / "slides"), "write_formats": [{"_target_": "medmdm.segment.ObjectTable"}],
    }  # fmt: skip
    refused_in_bundle("which ObjectTable cannot be written for", "mdm_infer", **settings)
    assert not (tmp_path / "out").exists()
