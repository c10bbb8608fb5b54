"""``summary.md``: the tables of a report as text, to be pasted into notes and issues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medmdm.reports.definitions import METRICS
from medmdm.reports.summary import headline_keys
from medmdm.reports.wording import (
    first_line,
    interval_text,
    metric_title,
    number_text,
    paper_rows,
    stamp_title,
    unit_sentence,
)

__all__ = ["make_markdown", "markdown_table"]


def make_markdown(summary: Mapping[str, Any]) -> str:
    """Return the report as Markdown.

    Args:
        summary: from :func:`medmdm.reports.summary.make_summary`.
    """
    lines = [f"# {_plain(summary['dataset'])}, {_plain(summary['section'])}: {first_line(summary)}", ""]
    stamp = summary["stamp"]
    lines += [f"**{stamp_title(stamp['kind'])}.** {_plain(stamp['sentence'])}".rstrip(), ""]
    lines += [*(f"- {_plain(note)}" for note in summary["notes"]), ""] if summary["notes"] else []
    lines += [unit_sentence(summary), "", *_scores(summary["scores"], summary["distance_unit"]), ""]
    if len(summary["class_scores"]) > 1:
        for entry in summary["class_scores"].values():
            lines += [f"## Class {_plain(entry['name'])}", "", *_scores(entry["scores"], summary["distance_unit"]), ""]
    if summary["paper_conventions"]:
        lines += ["## The paper's conventions", "", "To compare with its tables only, in percent.", ""]
        lines += [*markdown_table(("quantity", "value"), paper_rows(summary["paper_conventions"])), ""]
    lines += _subgroups(summary)
    lines += _learning_curve(summary["learning_curve"])
    if summary["excluded"]:
        lines += ["## Excluded", "", *(f"- {_plain(one['reason'])}" for one in summary["excluded"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Return a table; the first columns are text, the others numbers."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *([_plain(cell) for cell in row] for row in rows))]


def _scores(scores: Mapping[str, Any], unit: str) -> list[str]:
    rows = []
    for key, entry in scores.items():
        distance = METRICS[key].distance
        left_out = entry["undefined"] + entry["infinite"]
        rows.append(
            (
                metric_title(key, unit),
                number_text(entry["mean"], distance),
                interval_text(entry["interval"], distance),
                number_text(entry["median"], distance),
                number_text(entry["sd"], distance),
                number_text(entry.get("pooled"), distance),
                f"{entry['n']} {entry['unit']}",
                str(left_out) if left_out else "",
            )
        )
    header = ("metric", "mean", "95 % interval", "median", "SD", "pooled", "n", "left out")
    return markdown_table(header, rows)


def _subgroups(summary: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    keys = headline_keys(summary["scores"])
    for column, groups in summary["subgroups"].items():
        header = [_plain(column), "cases"]
        for key in keys:
            header += [metric_title(key, summary["distance_unit"]), "95 % interval"]
        rows = []
        for value, group in groups.items():
            row = [value, str(group["cases"])]
            for key in keys:
                entry, distance = group["scores"][key], METRICS[key].distance
                row += [number_text(entry["mean"], distance), interval_text(entry["interval"], distance)]
            rows.append(row)
        lines += [f"## By {_plain(column)}", "", *markdown_table(header, rows), ""]
    return lines


def _learning_curve(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    header = (
        "backbone",
        "head",
        "labelled",
        "draws",
        "Dice",
        "95 % interval",
        "SD draws",
        "SD seeds",
        "SD cases",
    )
    body = [
        (
            row["backbone"],
            row["head"],
            str(row["shots"]),
            str(row["dice"]["n_draws"]),
            number_text(row["dice"]["mean"]),
            interval_text(row["dice"]["interval"]),
            number_text(row["dice"]["draw_sd"]),
            number_text(row["dice"]["seed_sd"]),
            number_text(row["dice"]["case_sd"]),
        )
        for row in rows
    ]
    return ["## Learning curve", "", *markdown_table(header, body, text_columns=2), ""]


def _plain(text: str) -> str:
    """Keep text from becoming a table's border, a line's end or a tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
