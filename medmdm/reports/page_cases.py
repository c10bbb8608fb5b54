"""The cases of a page: their pictures, the galleries, the table of all, and the dialog that shows one."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.definitions import METRICS
from medmdm.reports.markup import Content, Markup, join, tag
from medmdm.reports.pictures import UNITS, CasePicture, encode_map, top_value
from medmdm.reports.scoring import ScoredCase
from medmdm.reports.summary import HEADLINES
from medmdm.reports.wording import counted, metric_title, number_text

__all__ = ["BUDGET", "Album", "cases_section", "chosen", "dialog", "gallery_section"]

BUDGET = 16_000_000  # bytes that the pictures of a page may take
_IN_A_ROW = 5
_COLOURS = 5  # of classes, in the style sheet
_CLASS_COLUMNS = 4
_MAPS = {
    "uncertainty": "Uncertainty",
    "disagreement": "Disagreement of the ensemble's members",
    "surprise": "Surprise: how badly the network restores the image",
}


def chosen(cases: Sequence[ScoredCase]) -> list[tuple[str, list[ScoredCase]]]:
    """Choose the worst, median and best five by Dice, fewer where these would overlap.

    Returns:
        Rows with their titles; cases without a Dice are in none.
    """
    ranked = sorted(
        (case for case in cases if not math.isnan(case.scores["dice"])), key=lambda c: (c.scores["dice"], c.number)
    )
    if len(ranked) <= _IN_A_ROW:
        return [("All cases, the worst first", ranked)] if ranked else []
    size = min(_IN_A_ROW, len(ranked) // 3)
    middle = (len(ranked) - size) // 2
    rows = (("worst", ranked[:size]), ("median", ranked[middle : middle + size]), ("best", ranked[::-1][:size]))
    return [(f"The {size} {name} by Dice" if size > 1 else f"The {name} by Dice", row) for name, row in rows]


class Album:
    """The pictures of a page: each is in it once, however often it is shown.

    Args:
        cases: the scored ones.
        classes: how many there are, the background included.
        budget: bytes that all may take; the cases of the galleries go first, then the others in their order.
    """

    def __init__(self, cases: Sequence[ScoredCase], classes: int, budget: int = BUDGET) -> None:
        self.classes = classes
        self.pictures: dict[int, CasePicture] = {}
        drawn = {case.number: case.picture for case in cases if case.picture is not None}
        first = [case for _, row in chosen(cases) for case in row]
        room = budget
        for number in dict.fromkeys(case.number for case in (*first, *cases)):
            picture = drawn.get(number)
            if picture is not None and picture.size <= room:
                self.pictures[number] = picture
                room -= picture.size
        self.missing = len(drawn) - len(self.pictures)
        self.tops = {name: top_value([p.maps for p in self.pictures.values()], name) for name in _MAPS}

    def store(self) -> Markup:
        """Return all pictures as symbols, to stand once in the page."""
        symbols = []
        for number, picture in self.pictures.items():
            symbols.append(self._symbol(f"pic-{number}", picture, picture.image, both=True))
            for name, values in picture.maps.items():
                symbols.append(
                    self._symbol(f"{name}-{number}", picture, encode_map(values, self.tops[name]), both=False)
                )
        return tag("svg", *symbols, class_="store", aria_hidden="true", focusable="false")

    def frame(self, number: int, kind: str = "pic", label: str | None = None) -> Markup:
        """Return a picture that refers to its symbol, or a box that says that there is none."""
        picture = self.pictures.get(number)
        if picture is None or (kind != "pic" and kind not in picture.maps):
            return tag("span", "no picture" if label else None, class_="empty-frame")
        box = f"0 0 {picture.width * UNITS} {picture.height * UNITS}"
        use = tag("use", href=f"#{kind}-{number}", width=picture.width * UNITS, height=picture.height * UNITS)
        role = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true"}
        return tag("svg", use, viewBox=box, class_="frame", **role)

    def _symbol(self, id_: str, picture: CasePicture, image: bytes | None, both: bool) -> Markup:
        width, height = picture.width * UNITS, picture.height * UNITS
        shown = None
        if image is not None:
            kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
            href = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
            shown = tag("image", href=href, width=width, height=height, preserveAspectRatio="none")
        layers = [tag("g", shown, class_="layer-image")]
        if both:
            layers.append(tag("g", *_outlines(picture.truth, "truth"), class_="layer-truth"))
            layers.append(tag("g", *_outlines(picture.prediction, "pred"), class_="layer-pred"))
        else:
            layers.append(tag("g", *_outlines(picture.prediction, "on-map"), class_="layer-pred"))
        return tag("symbol", *layers, id=id_, viewBox=f"0 0 {width} {height}")


def _outlines(paths: Mapping[int, str], kind: str) -> list[Markup]:
    drawn = [(number, path) for number, path in paths.items() if path]
    halo = {"truth": "outline halo", "pred": "outline halo dashed"}.get(kind)
    halos = [tag("path", d=path, class_=halo) for _, path in drawn if halo]
    lines = [
        tag("path", d=path, class_=f"outline {kind} class-{(number - 1) % _COLOURS + 1}") for number, path in drawn
    ]
    return [*halos, *lines]


def gallery_section(cases: Sequence[ScoredCase], album: Album, summary: Mapping[str, Any]) -> Markup | None:
    """Return the worst, median and best cases, which stand in the page and in print without a click."""
    rows = chosen(cases)
    if not album.pictures or not rows:
        return None
    parts = [_legend(summary, album)]
    for title, row in rows:
        items = []
        for case in row:
            score = number_text(case.scores["dice"])
            maps = [album.frame(case.number, "uncertainty")] if _has_map(album, case.number, "uncertainty") else []
            text = tag("span", tag("b", f"Dice {score}"), tag("br"), case.name, class_="caption")
            picture = album.frame(case.number, label=f"{case.name}, outlines of truth and prediction")
            items.append(tag("li", tag("button", picture, *maps, text, type="button", data_case=case.number)))
        parts += [tag("h3", title), tag("ul", *items, class_="gallery")]
    return join(*parts)


def _legend(summary: Mapping[str, Any], album: Album) -> Markup:
    entries = []
    for number, name in enumerate(summary["classes"]):
        if number == 0:
            continue
        colour = f"class-{(number - 1) % _COLOURS + 1}"
        for kind, what in (("truth", "truth"), ("pred", "prediction")):
            line = tag("path", d="M4 9h36", class_=f"outline {kind} {colour}")
            sample = tag("svg", line, viewBox="0 0 44 18", width=44, height=18, aria_hidden="true")
            several = f" {name}" if len(summary["classes"]) > 2 else ""
            line_style = "whole line" if kind == "truth" else "dashed line"
            entries.append(tag("span", sample, f"{what}{several} ({line_style})"))
    if album.tops["uncertainty"] > 0:
        entries.append(
            tag("span", "uncertainty: 0", tag("span", class_="scale"), f"{album.tops['uncertainty']:.2g} and more")
        )
    return tag("div", *entries, class_="legend")


def _has_map(album: Album, number: int, name: str) -> bool:
    return number in album.pictures and name in album.pictures[number].maps


def cases_section(cases: Sequence[ScoredCase], album: Album, summary: Mapping[str, Any]) -> Markup:
    """Return the table of all cases, sortable by each column."""
    unit = summary["distance_unit"]
    keys = [key for key in (*HEADLINES, "uncertainty") if any(key in case.scores for case in cases)]
    names = {key: metric_title(key, unit) if key in METRICS else "Uncertainty" for key in keys}
    if 2 < len(summary["classes"]) <= _CLASS_COLUMNS + 1:
        by_class = {f"dice_{k}": f"Dice {name}" for k, name in enumerate(summary["classes"]) if k}
        keys = [keys[0], *by_class, *keys[1:]]
        names |= by_class
    patients = any(case.patient is not None for case in cases)
    seen = any(case.seen for case in cases)
    columns = list(dict.fromkeys(name for case in cases for name in case.columns))
    seen_title = "Patient seen" if summary["stamp"]["kind"] == "patients shared" else "Seen"
    texts = ["Case", *(["Patient"] if patients else []), *([seen_title] if seen else [])]
    texts += [column.replace("_", " ") for column in columns]
    head = [tag("th", tag("span", "Picture"), scope="col", class_="text")]
    for title in texts:
        head.append(tag("th", tag("button", title, type="button"), scope="col", class_="text", data_kind="text"))
    for key in keys:
        head.append(tag("th", tag("button", names[key], type="button"), scope="col", data_kind="number"))
    rows = []
    for case in cases:
        name = tag("button", case.name, type="button", class_="open", data_case=case.number, aria_haspopup="dialog")
        cells: list[Markup] = [
            tag("td", album.frame(case.number), class_="thumb"),
            tag("th", name, scope="row", data_value=case.name),
        ]
        values: list[Content] = [
            *([case.patient] if patients else []),
            *((["yes" if case.seen else ""]) if seen else []),
        ]
        values += [case.columns.get(column, "") for column in columns]
        cells += [tag("td", value, class_="text") for value in values]
        for key in keys:
            cells.append(_number_cell(case.scores.get(key, math.nan), key))
        rows.append(tag("tr", *cells, data_case=case.number))
    note = ""
    if album.missing:
        note = (
            f" {counted(album.missing, 'case')} have no picture here, to keep the page small (pictures take at most "
            f"{BUDGET // 1_000_000} MB)."
        )
    caption = (
        "Every case that was scored. Click a heading to sort, a row to open it; all numbers are in per_case.csv." + note
    )
    tools = tag(
        "div",
        tag("label", "Filter: ", tag("input", type="search", id="filter", placeholder="any text of a row")),
        tag("span", f"{len(cases)} of {len(cases)} shown", id="shown", aria_live="polite", class_="soft"),
        class_="tools",
    )
    table = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *rows), id="cases"
    )  # fmt: skip
    return join(tools, tag("div", table, class_="tall", tabindex=0, role="region", aria_label="Table of all cases"),
                *[_template(case, album, summary, names) for case in cases])  # fmt: skip


def _number_cell(value: float, key: str) -> Markup:
    distance = key in METRICS and METRICS[key].distance
    if math.isnan(value):
        return tag("td", number_text(None), class_="none", data_value="")
    if math.isinf(value):
        return tag("td", "∞", data_value="Infinity")
    return tag("td", number_text(value, distance), data_value=repr(float(value)))


def _template(case: ScoredCase, album: Album, summary: Mapping[str, Any], names: Mapping[str, str]) -> Markup:
    """Return what the dialog shows of a case."""
    picture = album.pictures.get(case.number)
    views = []
    if picture is not None:
        caption = f"Outlines of truth and prediction{', ' if picture.caption else ''}{picture.caption}"
        views.append(tag("figure", tag("figcaption", caption), album.frame(case.number, label=caption)))
        for name in picture.maps:
            scale = tag("span", "0", tag("span", class_="scale"), f"{album.tops[name]:.2g}")
            figcaption = tag("figcaption", _MAPS[name], " ", scale)
            views.append(tag("figure", figcaption, album.frame(case.number, name, _MAPS[name])))
    else:
        views.append(tag("p", "There is no picture of this case: its files are gone, or the page would be too large."))
    facts: list[tuple[str, str]] = []
    facts += [("Patient", case.patient)] if case.patient is not None else []
    facts += [("In the stamp", summary["stamp"]["kind"])] if case.seen else []
    facts += [(name.replace("_", " "), value) for name, value in case.columns.items()]
    facts += [("Mask", case.files[0]), ("Label", case.files[1])]
    unit = summary["distance_unit"]
    known = {**names, **{key: metric_title(key, unit) for key in METRICS if key not in names}}
    numbers = [(known[key], case.scores[key], key) for key in known if key in case.scores]
    lines = [tag("tr", tag("th", name, scope="row"), _number_cell(value, key)) for name, value, key in numbers]
    lines += [tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in facts if text]
    side = tag("aside", tag("table", tag("tbody", *lines)))
    wide = picture is not None and picture.width > 1.15 * picture.height
    content = tag("div", tag("div", *views, class_="views wide" if wide else "views"), side, class_="case")
    return tag("template", content, id=f"case-{case.number}", data_title=case.name)


def dialog(album: Album) -> Markup:
    """Return the dialog that a case is opened in; the script fills it."""
    buttons = [
        tag("button", "← Previous", type="button", id="previous"),
        tag("button", "Next →", type="button", id="next"),
        tag("button", "Close", type="button", id="close"),
    ]
    layers = [
        tag("label", tag("input", type="checkbox", checked=True, data_layer=name), f" {title}")
        for name, title in (("image", "image"), ("truth", "truth (whole line)"), ("pred", "prediction (dashed)"))
    ]
    return tag(
        "dialog",
        tag("header", tag("h2", id="case-title"), *buttons),
        tag("div", *layers, class_="layers") if album.pictures else None,
        tag("div", id="case-content"),
        id="case-dialog",
        aria_labelledby="case-title",
    )
