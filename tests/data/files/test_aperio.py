"""Aperio annotations: what is drawn, what is reported, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from medmdm.data.files import aperio as aperio_module
from medmdm.data.files.aperio import Drawing, Region, draw_regions, read_aperio
from medmdm.errors import UserError
from tests.made import refused
from tests.prepare.layouts import aperio, rectangle


@pytest.fixture
def draw(tmp_path: Path):
    def drawn(regions, shape: tuple[int, int] = (20, 30), **options) -> Drawing:
        path = tmp_path / "x.xml"
        path.write_text(aperio(regions, **options))
        return draw_regions(read_aperio(path).regions, shape)

    return drawn


def region(points, negative: bool = False) -> Region:
    return Region("1", np.array(points, float), negative)


def test_an_outline_around_whole_pixels_fills_exactly_these(draw) -> None:
    mask = draw([rectangle(2, 3, 6, 8)]).mask
    expected = np.zeros((20, 30), np.uint16)
    expected[3:8, 2:6] = 1
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 240), st.integers(-40, 240)), min_size=3, max_size=8))
def test_a_pixel_is_filled_when_its_centre_is_inside(points: list[tuple[int, int]]) -> None:
    # Off the grid of centres, where the two programs may treat a border differently.
    vertices = np.array(points) / 10 + 0.0137
    mask = draw_regions([region(vertices)], (20, 20)).mask
    centres = np.stack(np.meshgrid(np.arange(20) + 0.5, np.arange(20) + 0.5), -1).reshape(-1, 2)
    np.testing.assert_array_equal(mask.ravel() > 0, points_in_poly(centres, vertices))


def test_later_regions_win_and_instances_are_numbered_in_order(draw) -> None:
    drawing = draw([rectangle(0, 0, 4, 4), rectangle(2, 2, 6, 6), rectangle(10, 10, 12, 12)])
    assert drawing.mask[1, 1] == 1
    assert drawing.mask[3, 3] == 2
    assert drawing.mask[11, 11] == 3
    assert drawing.instances == 3


def test_two_vertices_are_not_filled_but_named(draw) -> None:
    drawing = draw([rectangle(0, 0, 4, 4), [(7, 7), (9, 9)], [], rectangle(10, 10, 12, 12)])
    assert [r.identifier for r in drawing.unfilled] == ["2", "3"]
    assert np.unique(drawing.mask).tolist() == [0, 1, 2]


def test_vertices_outside_the_image_are_cut_off(draw) -> None:
    drawing = draw([rectangle(-2.9, -2.9, 3, 2), rectangle(28, 18, 1002.1, 1002.1)])
    assert np.count_nonzero(drawing.mask == 1) == 3 * 2
    assert np.count_nonzero(drawing.mask == 2) == 2 * 2
    assert not drawing.outside


def test_a_region_beside_the_image_is_named(draw) -> None:
    drawing = draw([rectangle(100, 100, 110, 110), rectangle(1, 1, 3, 3)])
    assert [r.identifier for r in drawing.outside] == ["1"]
    assert drawing.instances == 1


def test_negative_regions_erase_and_what_comes_later_stays(draw) -> None:
    drawing = draw([rectangle(0, 0, 10, 10), (rectangle(2, 2, 8, 8), True), rectangle(4, 4, 6, 6)])
    assert drawing.mask[1, 1] == 1
    assert drawing.mask[3, 3] == 0
    assert drawing.mask[5, 5] == 2
    assert drawing.instances == 2
    assert [r.identifier for r in drawing.holes] == ["2"]


def test_a_region_wholly_painted_over_is_named_and_leaves_no_gap(draw) -> None:
    drawing = draw([rectangle(2, 2, 4, 4), rectangle(0, 0, 10, 10), rectangle(12, 12, 14, 14)])
    assert [r.identifier for r in drawing.overpainted] == ["1"]
    assert np.unique(drawing.mask).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("options", "microns"), [
    ({"header": False}, 0.252),
    ({"header": True}, 0.252),
    ({"microns": None}, None),
    ({"microns": ""}, None),
    ({"microns": "unknown"}, None),
    ({"microns": "-1"}, None),
    ({"microns": "nan"}, None),
])  # fmt: skip
def test_header_and_resolution_may_be_missing(tmp_path: Path, options, microns: float | None) -> None:
    path = tmp_path / "x.xml"
    path.write_text(aperio([rectangle(1, 1, 3, 3)], **options))
    annotation = read_aperio(path)
    assert annotation.microns_per_pixel == microns
    assert len(annotation.regions) == 1
    assert annotation.regions[0].area == 1.5


def test_byte_order_marks_and_utf_16_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(aperio([rectangle(1, 1, 3, 3)]).encode(encoding))
        assert len(read_aperio(path).regions) == 1


_LAUGHS = "\n".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
DAMAGED = {
    "billion laughs": (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{_LAUGHS}]><Annotations>&l11;</Annotations>',
        "declares a document type",
    ),
    "external entity": (
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Annotations>&e;</Annotations>',
        "declares a document type",
    ),
    "document type": ('<!DOCTYPE Annotations SYSTEM "x.dtd"><Annotations/>', "declares a document type"),
    "undeclared entity": ("<Annotations>&what;</Annotations>", "truncated or no XML"),
    "truncated": (aperio([rectangle(1, 1, 3, 3)])[:-40], "truncated or no XML"),
    "empty": ("", "empty"),
    "blank": (" \n", "empty"),
    "binary": ("\0\1\2", "truncated or no XML"),
    "other XML": ('<svg xmlns="http://www.w3.org/2000/svg"/>', "its outermost element is 'svg'"),
    "comma": (aperio([rectangle(1, 1, 3, 3)]).replace('X="3"', 'X="3,5"'), "region 1 has a vertex with X='3,5'"),
    "missing number": (aperio([rectangle(1, 1, 3, 3)]).replace('X="3"', ""), "region 1 has a vertex with X=None"),
    "NaN": (aperio([rectangle(1, 1, 3, 3)]).replace('X="3"', 'X="nan"'), "both must be pixel coordinates"),
    "infinity": (aperio([rectangle(1, 1, 3, 3)]).replace('X="3"', 'X="1e400"'), "both must be pixel coordinates"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_end_in_a_sentence_with_their_name(tmp_path: Path, damage: str) -> None:
    content, expected = DAMAGED[damage]
    path = tmp_path / "slide.xml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"slide\.xml") as error:
        read_aperio(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_large_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.xml"
    refused(r"slide\.xml cannot be read", read_aperio, path)
    path.write_text(aperio([rectangle(1, 1, 3, 3)]))
    monkeypatch.setattr(aperio_module, "MAX_BYTES", 100)
    refused("more than 100 are refused", read_aperio, path)


def test_more_regions_than_a_mask_can_number_are_refused() -> None:
    refused("70000 regions", draw_regions, [region([])] * 70000, (4, 4))
