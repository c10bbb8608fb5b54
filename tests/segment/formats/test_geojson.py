"""GeoJSON read back by shapely, by QuPath's published rules, and rasterised."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from scipy import ndimage

from medmdm.segment import GeoJSON
from medmdm.segment.formats.base import COLOURS
from tests.data.test_tracing import rasterised
from tests.made import refused
from tests.segment.formats.made import NAMES, made_mask, segmented
from tests.written import picture


def read(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
    features: list[dict[str, Any]] = content["features"]
    return features


def shape_of(feature: dict[str, Any]) -> shapely.Geometry:
    return shapely.from_geojson(json.dumps(feature["geometry"]))


def test_classes_and_instances_are_the_pixels(tmp_path: Path) -> None:
    mask = made_mask()
    instances = ndimage.label(mask > 0)[0]
    instances[mask == 2] += 100
    made = segmented(tmp_path, mask, instances)
    assert GeoJSON().write(made) == {"geojson": "predictions/a.geojson"}
    content = (tmp_path / "predictions" / "a.geojson").read_bytes()
    features = read(tmp_path / "predictions" / "a.geojson")
    kinds = [feature["properties"]["objectType"] for feature in features]
    assert kinds == ["annotation"] * 2 + ["detection"] * len(np.unique(instances[instances > 0]))
    for feature, number in zip(features, (1, 2), strict=False):
        np.testing.assert_array_equal(rasterised(shape_of(feature), mask.shape), mask == number)
        known = {"name": NAMES[number], "color": list(COLOURS[number - 1])}
        assert feature["properties"]["classification"] == known
    for feature in features[2:]:
        label = int(feature["properties"]["name"])
        np.testing.assert_array_equal(rasterised(shape_of(feature), mask.shape), instances == label)
        measured = feature["properties"]["measurements"]
        assert measured["Area µm^2"] == pytest.approx(np.count_nonzero(instances == label) * 0.25)
        assert measured["Mean probability"] == pytest.approx(0.75)
        assert set(measured) == {
            "Area µm^2", "Perimeter µm", "Equivalent diameter µm", "Eccentricity", "Mean probability",
        }  # fmt: skip
    GeoJSON().write(made)
    assert (tmp_path / "predictions" / "a.geojson").read_bytes() == content


def test_a_region_lies_in_its_picture(tmp_path: Path) -> None:
    mask = made_mask()
    path = picture(tmp_path / "a.png", np.zeros((60, 90, 3)))
    entry = {"image": str(path), "region": {"rows": [7, 27], "columns": [40, 73]}}
    made = segmented(tmp_path, mask, None, entry=entry, spacing=None)
    GeoJSON().write(made)
    features = read(tmp_path / "predictions" / "a.geojson")
    for feature, number in zip(features, (1, 2), strict=True):
        np.testing.assert_array_equal(rasterised(shape_of(feature), (60, 90)), made.case.in_place(mask) == number)
        assert {"Area px^2", "Perimeter px"} <= set(feature["properties"]["measurements"])


def test_simplified_outlines_are_valid_and_near(tmp_path: Path) -> None:
    rows, columns = np.indices((80, 120))
    mask = ((rows - 40) ** 2 + ((columns - 60) / 1.4) ** 2 < 900).astype(np.uint8)
    mask[(rows - 40) ** 2 + (columns - 60) ** 2 < 80] = 0
    mask[2, 3] = 2  # one pixel stays, however much is simplified
    shapes = {}
    for tolerance in (0.0, 1.0):
        GeoJSON(simplify=tolerance).write(segmented(tmp_path, mask))
        shapes[tolerance] = [shape_of(feature) for feature in read(tmp_path / "predictions" / "a.geojson")]
    for exact, simple in zip(shapes[0.0], shapes[1.0], strict=True):
        assert simple.is_valid
        assert shapely.hausdorff_distance(exact.boundary, simple.boundary) <= 1.0 + 1e-9
    ring = shapes[1.0][0]
    assert shapely.get_num_interior_rings(ring) == 1
    assert shapely.get_num_coordinates(ring) < 0.4 * shapely.get_num_coordinates(shapes[0.0][0])


def test_parts_of_nested_collections_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bow_tie = shapely.Polygon([(2, 2), (6, 6), (6, 2), (2, 6), (2, 8), (2, 6)])  # and a line, which is made valid so
    assert {part.geom_type for part in shapely.get_parts(shapely.make_valid(bow_tie))} == {"MultiPolygon", "LineString"}
    monkeypatch.setattr(shapely, "simplify", lambda shape, tolerance: bow_tie)
    GeoJSON(simplify=1.0, detections=False).write(segmented(tmp_path, np.ones((9, 9), np.uint8)))
    (feature,) = read(tmp_path / "predictions" / "a.geojson")
    assert shape_of(feature).area == shapely.make_valid(bow_tie).area == 8


def test_nothing_found_is_an_empty_collection(tmp_path: Path) -> None:
    GeoJSON().write(segmented(tmp_path, np.zeros((5, 9), np.uint8), np.zeros((5, 9), np.int32)))
    assert read(tmp_path / "predictions" / "a.geojson") == []


def test_what_is_refused(tmp_path: Path) -> None:
    refused("simplify is -1", GeoJSON, simplify=-1)
    refused("both false", GeoJSON, annotations=False, detections=False)
    refused("is a volume, and GeoJSON is for pictures", GeoJSON().check, [{"image": "x.nii.gz"}], NAMES)


def test_a_picture_that_a_tag_turns_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    picture(tmp_path / "upright.png", np.zeros((8, 6, 3)))
    GeoJSON().check([{"image": str(tmp_path / "upright.png")}], NAMES)
    assert "orientation tag" not in caplog.text
    GeoJSON().check([{"image": str(tmp_path / name)} for name in ("turned.jpg", "upright.png")], NAMES)
    assert "1 image turned by an orientation tag" in caplog.text
