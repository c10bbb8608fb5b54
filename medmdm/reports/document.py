"""An HTML document that holds its style and its script, and tables in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from medmdm.reports.markup import Content, Markup, raw, tag

__all__ = ["document", "table"]


def document(title: str, body: Markup, store: Markup | None = None, after: Markup | None = None) -> str:
    """Return a whole HTML document with the style and the script of reports in it.

    Args:
        title: of the window.
        body: of the main part.
        store: pictures to be used in it.
        after: what comes after the main part.
    """
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing may be loaded, and only this script may run, whatever a file name or a config holds.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        raw(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", raw(_asset("report.css"))),
    )
    skip = tag("a", "Skip to the cases", href="#all-cases", class_="skip") if after else None
    page = tag("body", skip, store, tag("main", body), after, tag("script", raw(script)))
    return f'<!doctype html>\n<html lang="en">{head}\n{page}</html>\n'


def table(
    header: Sequence[Content],
    rows: Sequence[Sequence[Content]],
    caption: Content = None,
    text_columns: int = 1,
    main: int | None = None,
) -> Markup:
    """Return a table whose first column names its rows.

    Args:
        header: of each column.
        rows: of cells.
        caption: above it.
        text_columns: how many of the first columns are text, to the left.
        main: number of the row that stands out.
    """

    def kind(column: int) -> str | None:
        return "text" if column < text_columns else None

    head = tag("tr", *[tag("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(header)])
    lines = []
    for number, row in enumerate(rows):
        cells = [tag("td", cell, class_=kind(i)) for i, cell in enumerate(row) if i]
        lines.append(tag("tr", tag("th", row[0], scope="row"), *cells, class_="main" if number == main else None))
    above = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", above, tag("thead", head), tag("tbody", *lines)), class_="scroll")


def _asset(name: str) -> str:
    return resources.files("medmdm.reports").joinpath(f"assets/{name}").read_text(encoding="utf-8")
