"""Hostile slides and annotations: nothing outside the file is opened, and what a file claims costs no memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from medmdm.data.files import outlines
from medmdm.data.files.annotations import read_annotations
from medmdm.data.files.decoding import decode
from medmdm.data.files.outlines import fill_ring
from medmdm.data.files.slides import Slide, is_slide
from tests.made import refused

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
LAUGHS = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]


def slide(
    path: Path, before: str = "", size: str = "0.5", more: str = "", sizes: str = "64x48", planes: str = "1"
) -> Path:
    """Write a tiled picture whose OME-XML says so."""
    columns, rows = sizes.split("x")
    pixels = (
        f'SizeX="{columns}" SizeY="{rows}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{size}" PhysicalSizeY="0.5"'
    )
    inner = f'<Channel SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="{planes}">{more}</TiffData>'
    image = f'<Image ID="0"><Pixels DimensionOrder="XYCZT" Type="uint8" {pixels}>{inner}</Pixels></Image>'
    text = f'{before}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{image}</OME>'
    tifffile.imwrite(path, PICTURE, description=text.encode(), metadata=None, photometric="rgb", tile=(16, 16))
    return path


@pytest.mark.parametrize("given", [
    {},
    {"before": f'<!DOCTYPE l [<!ENTITY a "ha">{LAUGHS}]>', "more": "<D>&j;</D>"},
    {"before": '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "more": "<D>&x;</D>"},
    {"before": '<!DOCTYPE OME SYSTEM "http://example.org/ome.dtd">'},
    {"before": '<?xml version="1.0" encoding="klingon"?>'},
    {"more": "<a>" * 20_000 + "</a>" * 20_000},
    {"more": f"<a>{'n' * 5000}</a>"},
])  # fmt: skip
def test_the_pixels_are_those_of_the_file(given: dict[str, str], tmp_path: Path) -> None:
    path = slide(tmp_path / "a.ome.tif", **given)
    expected = np.moveaxis(PICTURE, -1, 0)
    assert np.array_equal(decode(path).array, expected)
    with Slide(path) as opened:
        assert np.array_equal(opened.region(0, 0, 48, 64, 0.5), expected)


@pytest.mark.parametrize("given", [
    {"sizes": "2000000000x2000000000"}, {"planes": "2000000000"}, {"sizes": "&#50;000000000x2000000000"},
])  # fmt: skip
def test_claims_cost_no_memory(given: dict[str, str], tmp_path: Path) -> None:
    path = slide(tmp_path / "a.ome.tif", **given)
    tracemalloc.start()
    assert not is_slide(path)
    refused("more than 1000000 planes", Slide, path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert decode(path).array.shape == (3, 48, 64)  # as a picture


@pytest.mark.parametrize("size", ["abc", "nan", "inf", "0", "-1", "[1]"])
def test_sizes_of_pixels_of_other_kinds(size: str, tmp_path: Path) -> None:
    refused("a.ome.tif says in its header that its pixels are", Slide, slide(tmp_path / "a.ome.tif", size=size))


def test_other_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "secret.tif", PICTURE)
    (tmp_path / "given").mkdir()
    named = '<UUID FileName="../secret.tif">urn:uuid:1</UUID>'
    path = slide(tmp_path / "given" / "a.ome.tif", more=named)
    opened = list[str]()
    known = tifffile.FileHandle.open
    monkeypatch.setattr(tifffile.FileHandle, "open", lambda self: (opened.append(str(self._file)), known(self))[1])
    assert not is_slide(path)
    with Slide(path) as found:
        assert found.region(0, 0, 48, 64, 0.5).shape == (3, 48, 64)
    assert opened
    assert not any("secret" in one for one in opened)


def written(path: Path, coordinates: Any) -> Path:
    geometry = {"type": "Polygon", "coordinates": coordinates}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    return path


@pytest.mark.parametrize("text", [
    "[" * 20_000 + "]" * 20_000,
    '{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": ' + "[" * 20_000,
    '{"type": "Feature", "geometry": null, "properties": ' + '{"a":' * 20_000 + "1" + "}" * 20_001,
    '{"type": "Feature", "properties": {}, "geometry": {"coordinates": [[[' + "9" * 5000 + ", 1]]]}}",
])  # fmt: skip
def test_nested_and_endless_geojson(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    refused("a.geojson is truncated or no JSON", read_annotations, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e8, "1", None, [1]])
def test_coordinates_that_are_none(value: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.geojson", [[[0, 0], [value, 0], [10, 10], [0, 0]]])
    refused("coordinates that are no pixels", read_annotations, path)


def test_lines_that_cross_themselves_and_holes_that_cover_all(tmp_path: Path) -> None:
    crossed = written(tmp_path / "a.geojson", [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]])
    holed = written(tmp_path / "b.geojson", [SQUARE, [[-5, -5], [30, -5], [30, 30], [-5, 30], [-5, -5]]])
    covered = [read_annotations(path)[0][0].fill((20, 20)).sum() for path in (crossed, holed)]
    assert covered == [50, 0]


@pytest.mark.slow
def test_a_zigzag_is_filled_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(0, 64, 2000)
    ring = np.stack([x, np.where(np.arange(len(x)) % 2, 64.0, 0.0)], axis=1)
    expected = fill_ring(ring, (64, 64))
    monkeypatch.setattr(outlines, "_MOST_CROSSINGS", 100)
    assert np.array_equal(fill_ring(ring, (64, 64)), expected)
    monkeypatch.undo()
    many = np.tile(ring, (20, 1))  # 2 560 000 crossings, of which each takes some 200 bytes
    tracemalloc.start()
    fill_ring(many, (64, 64))
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()
