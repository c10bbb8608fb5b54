from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmdm.reports.charts import Band, Curve, Strip, curves, differences, intervals, strips, ticks
from medmdm.reports.rendering import environment

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def svg_of(macro: str, *arguments: Any) -> ElementTree.Element:
    drawn = getattr(environment().get_template("charts.html.j2").module, macro)(*arguments)
    return ElementTree.fromstring(str(drawn).strip())


def texts(svg: ElementTree.Element, tag: str = "text") -> list[str | None]:
    return [element.text for element in svg.iter(tag)]


@given(FINITE, FINITE)
def test_ticks_enclose_the_values(a: float, b: float) -> None:
    low, high = sorted((a, b))
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 12
    slack = 1e-6 * max(1, abs(low), abs(high))
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert marks == sorted(set(marks))


def test_ticks_are_round() -> None:
    assert ticks(0.13, 0.92) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert 3 in ticks(3, 3)


def strip(values: list[float]) -> Strip:
    return Strip("Dice", values, list(range(len(values))), [str(v) for v in values], sum(values) / len(values), None)


def test_points_stand_where_their_values_are() -> None:
    values = [0.5, 1.0, 0.75, 0.75, 0.75]
    svg = svg_of("strips", strips([strip(values)], "score"))
    points = {int(c.attrib["data-case"]): (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter("circle")}
    assert len(points) == 5
    left, right = points[0][0], points[1][0]
    assert points[2][0] == pytest.approx((left + right) / 2, abs=0.11)
    assert len({points[i] for i in (2, 3, 4)}) == 3  # heaped, not on each other
    assert texts(svg, "title").count("0.75") == 3
    assert {"0", "40"} <= set(texts(svg_of("strips", strips([strip([3.0, 40.0])], "mm"))))  # distances start at zero


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_any_scores_can_be_drawn_inside_the_picture(values: list[float]) -> None:
    svg = svg_of("strips", strips([strip(values)], "score"))
    width, height = (float(size) for size in svg.attrib["viewBox"].split()[2:])
    places = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in svg.iter("circle")]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_lines_differ_in_dashes_and_markers() -> None:
    lines = [Curve(f"line {i}", [1, 8, 85], [0.1 * i, 0.2, 0.3], [0, 0, 0], [1, 1, 1]) for i in range(8)]
    svg = svg_of("curves", curves(lines, "x", "y", "title", x_marks=[1, 8, 85]))
    drawn = [line.attrib.get("stroke-dasharray", "") for line in svg.iter("polyline")][::2]
    assert len(set(drawn)) == 8
    assert texts(svg).count("85") == 1
    assert sum(line.attrib["class"].startswith("whisker") for line in svg.iter("line")) == 24


def test_a_flat_line_and_one_point() -> None:
    for line in (Curve("a", [0.5], [0.2]), Curve("a", [0.0, 1.0], [0.0, 0.0])):
        svg = svg_of("curves", curves([line], "x", "y", "title"))  # no range to divide by
        assert not re.search("nan|inf", ElementTree.tostring(svg, "unicode").lower())
        assert svg.tag.endswith("svg")


def test_interval_bar_is_cut_at_0_and_1() -> None:
    svg = svg_of("bar", 0.5, -3.0, 2.0)
    (interval,) = [line for line in svg.iter("line") if line.attrib["class"] == "interval"]
    assert (interval.attrib["x1"], interval.attrib["x2"]) == ("4", "116")
    assert len(list(svg_of("bar", 0.5, None, None).iter("line"))) == 4


def test_intervals_show_zero() -> None:
    svg = svg_of("intervals", intervals([Band("a", 0.2, 0.1, 0.3, "b"), Band("c", 0.1, None, None)], "x", "title"))
    (zero,) = [line for line in svg.iter("line") if line.attrib["class"] == "zero"]
    dots = [float(circle.attrib["cx"]) for circle in svg.iter("circle")]
    assert float(zero.attrib["x1"]) < dots[1] < dots[0]


def test_bars_of_differences_are_ordered_and_losses_marked() -> None:
    svg = svg_of("differences", differences([-0.1, 0.2, 0.0, -0.3], list("abcd"), "y", "title"))
    bars = list(svg.iter("rect"))
    assert [bar.find("title").text[0] for bar in bars] == ["b", "c", "a", "d"]
    assert [bar.attrib["class"] for bar in bars] == ["gain", "gain", "loss", "loss"]
    assert float(bars[3].attrib["height"]) == pytest.approx(3 * float(bars[2].attrib["height"]), rel=0.02)
