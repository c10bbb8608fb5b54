"""How the numbers of a page came about: the run's record, cases left out, definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.definitions import METRICS
from medmdm.reports.markup import Content, Markup, join, tag
from medmdm.reports.wording import counted

__all__ = ["definitions_section", "excluded_section", "record_section"]

_RECORD_KEYS = ("medmdm", "git_revision", "seed", "command", "commands")


def record_section(summary: Mapping[str, Any]) -> Markup:
    """Return how the numbers came about: data, protocol, and the record of the run."""
    data, record = summary["data_list"], summary["record"]
    facts: list[tuple[str, Content]] = [("Data set", data.get("name") or summary["dataset"])]
    facts += [(key.capitalize(), data[key]) for key in ("description", "split", "licence", "citation") if data.get(key)]
    parts = [tag("h3", "Data"), _facts(facts)]
    if summary["protocol"]:
        parts += [tag("h3", "Protocol"), _facts(_flat(summary["protocol"]))]
    if record is None:
        return join(*parts, tag("p", "The run left no record of itself (run.json).", class_="soft"))
    known = [(key.replace("_", " ").capitalize(), record[key]) for key in _RECORD_KEYS if record.get(key) is not None]
    sessions = record.get("sessions") or []
    if sessions:
        known += [(f"Last session: {key}", text) for key, text in _flat(sessions[-1])]
    known += [(f"Training data: {key}", text) for key, text in _flat(record.get("data") or {})]
    full = tag("pre", json.dumps(record, indent=2, ensure_ascii=False))
    return join(
        *parts,
        tag("h3", "Run"),
        _facts([(key, _one_line(value)) for key, value in known]),
        tag("details", tag("summary", "The whole record (run.json)"), full),
    )


def excluded_section(summary: Mapping[str, Any]) -> Markup | None:
    """Return why cases were left out."""
    if not summary["excluded"]:
        return None
    return join(
        tag("p", f"{counted(len(summary['excluded']), 'case')} could not be scored and is in none of the numbers."),
        tag("ul", *[tag("li", one["reason"]) for one in summary["excluded"]]),
    )


def definitions_section(summary: Mapping[str, Any]) -> Markup:
    """Return what the metrics of the page are."""
    facts: list[tuple[str, Content]] = [(METRICS[key].title, METRICS[key].explanation) for key in summary["scores"]]
    if "surface_dice" in summary["scores"]:
        facts.append(("Tolerance", f"{summary['tolerance']:g} {summary['distance_unit']}, for outlines to agree."))
    facts.append(
        (
            "Interval",
            "A nominal 95 % interval of the mean: Student's t below 80 units, BCa bootstrap from there; what of it "
            "lies outside 0 to 1 is not shown.",
        )
    )
    if summary["ignore"] is not None:
        facts.append(("Ignored", f"Pixels whose label is {summary['ignore']} are in no number."))
    return _facts(facts)


def _facts(facts: Sequence[tuple[str, Content]]) -> Markup:
    return tag("dl", *[join(tag("dt", name), tag("dd", value)) for name, value in facts], class_="record")


def _flat(content: Any, name: str = "") -> list[tuple[str, str]]:
    """Return nested content as names and values, ``a.b`` for what is inside."""
    if isinstance(content, Mapping) and content:
        inner = [(f"{name}.{key}" if name else str(key), value) for key, value in content.items()]
        return [fact for key, value in inner for fact in _flat(value, key)]
    return [(name, _one_line(content))]


def _one_line(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)
