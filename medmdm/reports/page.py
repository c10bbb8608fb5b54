"""``index.html``: the report as one page that needs nothing else, no network, and to be read no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.definitions import METRICS
from medmdm.reports.document import document
from medmdm.reports.markup import Markup, join, tag
from medmdm.reports.page_cases import Album, cases_section, dialog, gallery_section
from medmdm.reports.page_record import definitions_section, excluded_section, record_section
from medmdm.reports.page_scores import (
    distribution_section,
    learning_section,
    risk_section,
    scores_section,
    subgroups_section,
)
from medmdm.reports.scoring import ScoredCase
from medmdm.reports.summary import headline_keys
from medmdm.reports.wording import counted, first_line, interval_text, metric_title, number_text, stamp_title

__all__ = ["make_page"]


def make_page(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> str:
    """Return the report as HTML.

    Args:
        summary: from :func:`medmdm.reports.summary.make_summary`.
        cases: the scored ones, names and patients as they are to be shown.
    """
    album = Album(cases, len(summary["classes"]))
    title = f"{summary['dataset']}, {summary['section']}"
    sections = [
        ("scores", "Scores", scores_section(summary)),
        ("distribution", "Distribution", distribution_section(summary, cases)),
        ("pictures", "Pictures", gallery_section(cases, album, summary)),
        ("all-cases", "All cases", cases_section(cases, album, summary)),
        ("subgroups", "Subgroups", subgroups_section(summary)),
        ("uncertainty", "Uncertainty", risk_section(summary)),
        ("learning-curve", "Learning curve", learning_section(summary)),
        ("excluded", "Excluded cases", excluded_section(summary)),
        ("record", "Record", record_section(summary)),
        ("definitions", "Definitions", definitions_section(summary)),
    ]
    kept = [(name, heading, content) for name, heading, content in sections if content]
    body = join(
        tag("p", first_line(summary), class_="first"),
        tag("h1", title),
        _figures(summary),
        _stamp(summary["stamp"]),
        _notes(summary["notes"]),
        tag("nav", *[tag("a", heading, href=f"#{name}") for name, heading, _ in kept], aria_label="Sections"),
        *[tag("section", tag("h2", heading, id=name), content) for name, heading, content in kept],
        tag(
            "footer",
            f"Made by medmdm {summary['medmdm']} from {_source(summary['source'])}. ",
            "Make it again with ",
            tag("code", "python -m medmdm report RUN"),
            ", RUN being the folder that this page lies in.",
        ),
    )
    return document(title, body, album.store(), dialog(album))


def _figures(summary: Mapping[str, Any]) -> Markup:
    """The few numbers that most readers came for."""
    boxes = []
    for key in headline_keys(summary["scores"]):
        entry, distance = summary["scores"][key], METRICS[key].distance
        boxes.append(
            tag(
                "div",
                tag("dt", f"{metric_title(key, summary['distance_unit'])}, mean"),
                tag("dd", number_text(entry["mean"], distance), class_="value"),
                tag("dd", f"95 % interval {interval_text(entry['interval'], distance)}", class_="interval"),
                tag("dd", f"n = {entry['n']} {entry['unit']}", class_="interval"),
            )
        )
    return tag("dl", *boxes, class_="figures")


def _stamp(stamp: Mapping[str, Any]) -> Markup:
    title, _, rest = stamp_title(stamp["kind"]).partition(": ")
    names = stamp["overlapping"]
    listed = None
    if names:
        listed = tag("details", tag("summary", f"The {counted(len(names), 'case')} concerned"), ", ".join(names))
    sentence = stamp["sentence"] or f"{rest[0].upper()}{rest[1:]}."
    kind = stamp["kind"].replace(" ", "-")
    return tag("div", tag("b", title), tag("p", sentence), listed, class_=f"stamp {kind}", role="note")


def _notes(notes: Sequence[str]) -> Markup | None:
    return tag("ul", *[tag("li", note) for note in notes], class_="notes") if notes else None


def _source(source: str) -> str:
    return "the masks" if source == "masks" else "per_case.csv, for the masks are gone"
