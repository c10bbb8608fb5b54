"""The numbers of a page: scores, distributions, subgroups, uncertainty, learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.charts import Line, Strip, curves, interval_bar, strips
from medmdm.reports.definitions import METRICS
from medmdm.reports.document import table
from medmdm.reports.markup import Content, Markup, join, tag
from medmdm.reports.scoring import ScoredCase
from medmdm.reports.summary import headline_keys
from medmdm.reports.wording import counted, interval_text, metric_title, number_text, paper_rows, unit_sentence

__all__ = ["distribution_section", "learning_section", "risk_section", "scores_section", "subgroups_section"]

_MOST_LINES = 8
_GROUP_TITLES = {"pixels": "Pixels", "surfaces": "Outlines", "objects": "Objects"}


def scores_section(summary: Mapping[str, Any]) -> Markup:
    """Return the table of all metrics, one for each class where there are several, and the paper's block apart."""
    parts: list[Markup | None] = [_score_table(summary["scores"], summary, unit_sentence(summary))]
    if len(summary["class_scores"]) > 1:
        for entry in summary["class_scores"].values():
            parts += [tag("h3", f"Class {entry['name']}"), _score_table(entry["scores"], summary, None)]
    parts.append(_empty_sentences(summary))
    if summary["paper_conventions"]:
        block = summary["paper_conventions"]
        parts.append(
            tag(
                "div",
                tag("h3", "The paper's conventions"),
                tag(
                    "p",
                    "Only to compare with the tables of the masked diffusion paper (arXiv 2308.05695), in percent: its "
                    "program makes label maps binary before it scores them, so these are other quantities than their "
                    "names say. The numbers above are what their names say.",
                ),
                table(("Quantity", "Value"), paper_rows(block), f"Mean over {counted(block['images'], 'image')}."),
                class_="paper",
            )
        )
    return join(*parts)


def _score_table(scores: Mapping[str, Any], summary: Mapping[str, Any], caption: Content) -> Markup:
    some_left_out = any(entry["undefined"] or entry["infinite"] for entry in scores.values())
    header = ["Metric", "Mean", "95 % interval", "0 to 1", "Median", "SD", "Pooled", "n"]
    header += ["Left out"] if some_left_out else []
    head = tag(
        "tr", *[tag("th", cell, scope="col", class_="text" if i == 0 else None) for i, cell in enumerate(header)]
    )
    lines: list[Markup | None] = []
    group = None
    for key, entry in scores.items():
        metric = METRICS[key]
        if metric.group != group and len({METRICS[k].group for k in scores}) > 1:
            lines.append(tag("tr", tag("th", _GROUP_TITLES[metric.group], colspan=len(header)), class_="group"))
        group = metric.group
        bar = None if metric.distance or entry["mean"] is None else interval_bar(entry["mean"], *entry["interval"])
        lines.append(
            tag(
                "tr",
                tag("th", metric_title(key, summary["distance_unit"]), scope="row", title=metric.explanation),
                tag("td", number_text(entry["mean"], metric.distance)),
                tag("td", interval_text(entry["interval"], metric.distance), class_="interval"),
                tag("td", bar),
                tag("td", number_text(entry["median"], metric.distance)),
                tag("td", number_text(entry["sd"], metric.distance)),
                tag("td", number_text(entry.get("pooled"), metric.distance)),
                tag("td", f"{entry['n']} {entry['unit']}"),
                tag("td", _left_out(entry), class_="remark") if some_left_out else None,
                class_="main" if key == "dice" else None,
            )
        )
    above = None if caption is None else tag("caption", caption)
    return tag("div", tag("table", above, tag("thead", head), tag("tbody", *lines)), class_="scroll")


def _left_out(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry['undefined']} undefined"] if entry["undefined"] else []
    parts += [f"{entry['infinite']} infinite"] if entry["infinite"] else []
    return ", ".join(parts)


def _empty_sentences(summary: Mapping[str, Any]) -> Markup | None:
    """Say where there was nothing to find or nothing found, which no mean shows."""
    sentences = []
    several = len(summary["class_scores"]) > 1
    for entry in summary["class_scores"].values():
        empty, of = entry["empty"], f" of {entry['name']}" if several else ""
        for key, what in (
            ("pred", f"have truth{of} but no prediction (Dice 0)"),
            ("true", f"have a prediction{of} but no truth (Dice 0)"),
            ("both", f"have neither{of} (no value, left out)"),
        ):
            if empty[key]:
                sentences.append(tag("li", f"{counted(empty[key], 'case')} {what}."))
    return tag("ul", *sentences) if sentences else None


def distribution_section(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> Markup:
    """Return a chart of every case for the metrics that stand first, distances on axes of their own."""
    shown = headline_keys(summary["scores"])
    shares = [key for key in shown if not METRICS[key].distance]
    distances = [key for key in ("hausdorff95", "object_hausdorff") if key in summary["scores"]]
    charts = []
    unit = summary["distance_unit"]
    by_distance = [([key], f"{metric_title(key, unit)} of a case") for key in distances]
    for keys, axis in ((shares, "score of a case"), *by_distance):
        rows = [row for key in keys if (row := _strip(key, summary, cases)) is not None]
        if rows:
            charts.append(strips(rows, axis))
    caption = tag(
        "p",
        "A point is a case (click it to open it). Box: quartiles and median; thin line: smallest to largest; diamond "
        "and thick line: mean and its interval.",
        class_="soft",
    )
    return join(caption, *charts)


def _strip(key: str, summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> Strip | None:
    entry = summary["scores"][key]
    known = [case for case in cases if abs(case.scores.get(key, float("nan"))) < float("inf")]
    if not known:
        return None
    low, high = entry["interval"]
    return Strip(
        name=METRICS[key].title,
        values=[case.scores[key] for case in known],
        cases=[case.number for case in known],
        labels=[f"{case.name}: {number_text(case.scores[key], METRICS[key].distance)}" for case in known],
        mean=entry["mean"],
        interval=None if low is None or high is None else (low, high),
    )


def subgroups_section(summary: Mapping[str, Any]) -> Markup | None:
    """Return a table for each column of the data list that has a few values."""
    keys = headline_keys(summary["scores"])
    tables = []
    for column, groups in summary["subgroups"].items():
        title = column.replace("_", " ")
        header = [title, "Cases", *(metric_title(key, summary["distance_unit"]) for key in keys)]
        rows: list[list[Content]] = []
        for value, group in groups.items():
            row: list[Content] = [value, group["cases"]]
            for key in keys:
                entry, distance = group["scores"][key], METRICS[key].distance
                row.append(
                    join(number_text(entry["mean"], distance), tag("small", interval_text(entry["interval"], distance)))
                )
            rows.append(row)
        counted_as = sorted({group["scores"]["dice"]["unit"] for group in groups.values()})
        caption = (
            f"By {title}: mean and 95 % interval over {' or '.join(counted_as)}. Each interval is of its group alone, "
            "no test of a difference."
        )
        tables.append(table(header, rows, caption))
    return join(*tables) if tables else None


def risk_section(summary: Mapping[str, Any]) -> Markup | None:
    """Return the risk-coverage curve, where uncertainty was written."""
    curve = summary["risk_coverage"]
    if curve is None or len(curve["coverage"]) < 2:
        return None
    sure = Line("most certain cases kept", curve["coverage"], curve["risk"])
    chance = Line("if uncertainty knew nothing", (curve["coverage"][0], 1.0), (curve["chance"], curve["chance"]))
    text = (
        "Mean error (1 \N{MINUS SIGN} Dice) of the cases that are left when the most uncertain ones are set aside; a "
        f"case's uncertainty is the mean of its map. Area under the curve {number_text(curve['aurc'])}; "
        f"{number_text(curve['chance'])} if uncertainty knew nothing, {number_text(curve['best'])} at best."
    )
    chart = curves([sure, chance], "share of cases kept", "1 \N{MINUS SIGN} Dice", "Risk against coverage")
    return join(tag("p", text), chart)


def learning_section(summary: Mapping[str, Any]) -> Markup | None:
    """Return the learning curve and its table, where a study was run."""
    rows = summary["learning_curve"]
    if not rows:
        return None
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(f"{row['backbone']}, {row['head']}", []).append(row)
    # If there are too many to be told apart, the best at their end.
    best = sorted(lines, key=lambda name: -(lines[name][-1]["dice"]["mean"] or 0))[:_MOST_LINES]
    drawn = []
    for name in [name for name in lines if name in best]:
        points = [row for row in lines[name] if row["dice"]["mean"] is not None]
        if not points:
            continue
        means = [row["dice"]["mean"] for row in points]
        ends = [[d for d in row["dice"]["draws"] if d is not None] or [row["dice"]["mean"]] for row in points]
        drawn.append(
            Line(name, [row["shots"] for row in points], means, [min(e) for e in ends], [max(e) for e in ends])
        )
    shots = sorted({row["shots"] for row in rows})
    chart = None
    if drawn and len(shots) > 1:
        chart = curves(drawn, "labelled images", "Dice, mean over test cases", "Learning curve", shots)
    left_out = "" if len(lines) <= _MOST_LINES else f" The {_MOST_LINES} best of {len(lines)} are drawn."
    body = [
        (
            row["backbone"],
            row["head"],
            row["shots"],
            number_text(row["dice"]["mean"]),
            interval_text(row["dice"]["interval"]),
            number_text(row["iou"]["mean"]),
            row["dice"]["n_draws"],
            number_text(row["dice"]["draw_sd"]),
            number_text(row["dice"]["seed_sd"]),
            number_text(row["dice"]["case_sd"]),
        )
        for row in rows
    ]
    header = (
        "Backbone",
        "Head",
        "Labelled",
        "Dice",
        "95 % interval",
        "IoU",
        "Draws",
        "SD draws",
        "SD seeds",
        "SD cases",
    )
    caption = (
        "Three spreads that must not be mixed up: between draws of the labelled images, between seeds of the same "
        "draw, and between test cases. Intervals are over test cases."
    )
    sentence = tag("p", f"Whiskers: the worst and the best draw of labelled images.{left_out}", class_="soft")
    return join(sentence if chart else None, chart, table(header, body, caption, text_columns=2))
