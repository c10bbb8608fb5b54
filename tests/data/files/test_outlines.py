"""Outlines of slides: the pixels that they cover, by other programs; annotations of QuPath and ImageScope."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask
from skimage.measure import points_in_poly

from medmdm.data.files.annotations import read_annotations
from medmdm.data.files.outlines import Outline, fill_ring
from medmdm.errors import UserError

POINTS = st.lists(st.tuples(st.integers(-40, 240), st.integers(-40, 340)), min_size=3, max_size=9)


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(rings: list[Any], name: str | None = "Tumor", kind: str = "Polygon", **more: Any) -> dict[str, Any]:
    properties = {"objectType": "annotation", **more}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "a", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


@pytest.fixture
def read(tmp_path: Path):
    def written(content: Any, name: str = "s.geojson") -> tuple[list[Outline], list[str]]:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_annotations(path)

    return written


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_a_pixel_is_covered_when_its_centre_is_inside(points: list[tuple[int, int]]) -> None:
    ring = np.array(points) / 10 + np.sqrt([2, 3]) / 100  # no line through a centre, on which programs differ
    centres = np.stack(np.meshgrid(np.arange(31) + 0.5, np.arange(20) + 0.5), -1).reshape(-1, 2)
    expected = points_in_poly(centres, ring).reshape(20, 31)
    np.testing.assert_array_equal(fill_ring(ring, (20, 31)), expected)
    np.testing.assert_array_equal(fill_ring(ring[::-1], (20, 31)), expected)
    np.testing.assert_array_equal(polygon2mask((20, 31), ring[:, ::-1] - 0.5), expected)


def test_polygons_with_holes_are_shapelys() -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    for _ in range(12):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
        star = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(8, 14, (40, 1)) + (17.3, 14.1)
        holes = [
            star * f + np.array([17.3, 14.1]) * (1 - f) + shift for f, shift in ((0.3, (2.1, 0)), (0.15, (-5, 0.3)))
        ]
        other = star * 0.2 + (28.0, 20.0)
        outline = Outline("", "", ((star, *holes), (other,)))
        found = outline.fill((60, 90), origin=(3, -4), scale=(0.5, 0.4))
        truth = shapely.MultiPolygon([(star, []), (other, [])]).buffer(0)
        truth = truth.difference(shapely.MultiPolygon([(hole, []) for hole in holes]).buffer(0))
        x, y = np.meshgrid((np.arange(90) + 0.5 - 4) * 0.4, (np.arange(60) + 0.5 + 3) * 0.5)
        inside_other = shapely.contains_xy(shapely.Polygon(other), x, y)
        np.testing.assert_array_equal(found, shapely.contains_xy(truth, x, y) | inside_other)


def test_outlines_that_share_a_line_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(1)
    points = rng.integers(0, 20, (12, 2)) + 0.5  # corners on centres
    middle = np.concatenate([[(10.5, -1.0)], points, [(10.5, 21.0)]])
    left = np.concatenate([middle, [(-5, 21), (-5, -1)]])
    right = np.concatenate([middle[::-1], [(30, -1), (30, 21)]])
    both = fill_ring(left, (20, 22)).astype(int) + fill_ring(right, (20, 22))
    np.testing.assert_array_equal(both, np.ones((20, 22)))
    halves = fill_ring(np.array(square(0, 0, 3.5, 8)[:4]), (8, 9)).astype(int) + fill_ring(
        np.array(square(3.5, 0, 9, 8)[:4]), (8, 9)
    )
    np.testing.assert_array_equal(halves, np.ones((8, 9)))


@pytest.mark.parametrize("layout", ["feature", "array", "collection"])
def test_the_three_layouts_of_geojson(read, layout: str) -> None:
    one = feature([square(2, 3, 9, 8), square(4, 4, 6, 6)])
    content = {"feature": one, "array": [one], "collection": {"type": "FeatureCollection", "features": [one]}}[layout]
    (outline,), notices = read(content)
    assert (outline.name, outline.bounds, outline.area, notices) == ("Tumor", (2, 3, 9, 8), 35, [])
    expected = np.zeros((12, 15), bool)
    expected[3:8, 2:9] = True
    expected[4:6, 4:6] = False
    np.testing.assert_array_equal(outline.fill((12, 15)), expected)
    np.testing.assert_array_equal(outline.fill((4, 5), origin=(3, 4)), expected[3:7, 4:9])


def test_classes_as_versions_of_qupath_write_them(read) -> None:
    outlines, notices = read([
        feature([square(0, 0, 4, 4)], None, classification={"name": "Tumor", "colorRGB": -3670016}),
        feature([square(0, 0, 4, 4)], None, classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]}),
        feature([square(0, 0, 4, 4)], None),
        feature([[square(0, 0, 4, 4)], [square(6, 6, 8, 8)]], "Région*", "MultiPolygon", objectType="detection"),
        feature([square(0, 0, 4, 4)], objectType="tma_core"),
        {**feature([]), "geometry": {"type": "Point", "coordinates": [1, 2]}},
    ])  # fmt: skip
    assert [outline.name for outline in outlines] == ["Tumor", "Tumor: Positive", "", "Région*"]
    assert outlines[3].fill((10, 10)).sum() == 20
    assert notices == ["s.geojson: left out as no annotated areas: 1 tma_core, 1 point"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (feature([square(0, 0, 4, 4)[:-1]]), "annotation 1 (Tumor) is an open polygon"),
        (feature([[0, 0], [4, 4]], kind="LineString"), "is a LineString, which encloses no area"),
        (feature([[[0, 0], ["a", 4], [4, 4], [0, 0]]]), "has coordinates that are no pixels"),
        (feature([[[0, 0], [1e9, 4], [4, 4], [0, 0]]]), "has coordinates that are no pixels"),
        (feature([]), "is a Polygon without coordinates"),
        (feature([square(0, 0, 4, 4)], None, classification=7), "has the classification 7"),
        (feature([square(0, 0, 4, 4)], objectType="mesh"), "is of the type 'mesh'"),
        ({"type": "FeatureCollection"}, "is no GeoJSON of features"),
        ({"training": []}, "is no GeoJSON of features"),
        ([{"type": "Polygon"}], "annotation 1 is no GeoJSON feature"),
        ([feature([square(0, 0, 4, 4)]), 3], "annotation 2 is no GeoJSON feature"),
        ('{"type": "Feature"', "is truncated or no JSON"),
        ("", "is truncated or no JSON"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_sentence(read, content: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read(content)
    message = str(error.value)
    assert sentence in message
    assert "s.geojson" in message
    assert message.count(". ") == 0
    assert message.endswith(".")


def test_other_planes_are_refused(read) -> None:
    one = feature([square(0, 0, 4, 4)])
    one["geometry"]["plane"] = {"c": -1, "z": 0, "t": 0}
    assert len(read(one)[0]) == 1
    one["geometry"]["plane"]["z"] = 2
    with pytest.raises(UserError, match="another plane"):
        read(one)


def imagescope(*layers: tuple[str, list[tuple[str, list[list[float]]]]]) -> str:
    """ImageScope's XML: layers of (attributes of a region, its vertices)."""
    text = '<Annotations MicronsPerPixel="0.25">'
    for i, (name, regions) in enumerate(layers, 1):
        text += f'<Annotation Id="{i}" Name="{name}"><Regions><RegionAttributeHeaders/>'
        for k, (attributes, points) in enumerate(regions, 1):
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
            text += f'<Region Id="{k}" {attributes}><Vertices>{vertices}</Vertices></Region>'
        text += "</Regions></Annotation>"
    return text + "</Annotations>"


def test_layers_of_imagescope_are_classes_and_negative_regions_their_holes(read) -> None:
    outlines, notices = read(
        imagescope(
            ("Tumor", [('Type="0"', square(0, 0, 8, 8)), ('Type="0" NegativeROA="1"', square(2, 2, 4, 5))]),
            ("", [('Type="1"', square(1, 1, 9, 9)[:-1]), ('Type="4"', [[0, 0], [5, 5]])]),
        ),
        "s.xml",
    )
    assert [outline.name for outline in outlines] == ["Tumor", ""]
    assert [int(outline.fill((10, 10)).sum()) for outline in outlines] == [64 - 6, 64]
    assert notices == ["s.xml: 1 arrow or ruler is left out"]


@pytest.mark.parametrize(
    ("attributes", "points", "sentence"),
    [
        ('Type="2"', [[0, 0], [8, 8]], "region 1 is an ellipse"),
        ('Type="0"', [[0, 0], [8, 8]], "region 1 has 2 vertices, which enclose no area"),
    ],
)
def test_shapes_of_imagescope_without_area_are_refused(read, attributes: str, points: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(imagescope(("Tumor", [(attributes, points)])), "s.xml")
