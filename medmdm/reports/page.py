"""``index.html``: the report as one page that needs nothing else, no network, and to be read no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.album import Album
from medmdm.reports.charts import Chart, Curve, Strip, curves, strips
from medmdm.reports.definitions import METRICS
from medmdm.reports.rendering import render
from medmdm.reports.scoring import ScoredCase
from medmdm.reports.summary import HEADLINES, headline_keys
from medmdm.reports.wording import metric_title, number_text
from medmdm.stats.statistics import BCA_FROM

__all__ = ["make_page"]

_MOST_LINES = 8
_CLASS_COLUMNS = 4


def make_page(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> str:
    """Return the report as HTML.

    Args:
        summary: from :func:`medmdm.reports.summary.make_summary`.
        cases: the scored ones, names and patients as they are to be shown.
    """
    lines = _lines(summary["learning_curve"])
    columns = _columns(summary, cases)
    return render(
        "page.html.j2",
        summary=summary,
        cases=cases,
        album=Album(cases),
        headlines=headline_keys(summary["scores"]),
        columns=columns,
        titles=columns | {key: metric_title(key, summary["distance_unit"]) for key in METRICS if key not in columns},
        distributions=_distributions(summary, cases),
        risk=_risk(summary["risk_coverage"]),
        learning_curve=_learning_curve(lines),
        lines=len(lines),
        most_lines=_MOST_LINES,
        bca_from=BCA_FROM,
    )


def _columns(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> dict[str, str]:
    """Return the scores in the table of all cases, with their titles."""
    keys = [key for key in (*HEADLINES, "uncertainty") if any(key in case.scores for case in cases)]
    titles = {key: metric_title(key, summary["distance_unit"]) if key in METRICS else "Uncertainty" for key in keys}
    if not 2 < len(summary["classes"]) <= _CLASS_COLUMNS + 1:
        return titles
    by_class = {f"dice_{k}": f"Dice {name}" for k, name in enumerate(summary["classes"]) if k}
    return {"dice": titles["dice"], **by_class, **titles}


def _distributions(summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> list[Chart]:
    """Return a chart of every case for the metrics that stand first, distances on axes of their own."""
    shares = [key for key in headline_keys(summary["scores"]) if not METRICS[key].distance]
    charts = [(shares, "score of a case")]
    for key in ("hausdorff95", "object_hausdorff"):
        if key in summary["scores"]:
            charts.append(([key], f"{metric_title(key, summary['distance_unit'])} of a case"))
    found = [([row for key in keys if (row := _strip(key, summary, cases)) is not None], axis) for keys, axis in charts]
    return [strips(rows, axis) for rows, axis in found if rows]


def _strip(key: str, summary: Mapping[str, Any], cases: Sequence[ScoredCase]) -> Strip | None:
    entry = summary["scores"][key]
    known = [case for case in cases if math.isfinite(case.scores.get(key, math.nan))]
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


def _risk(curve: Mapping[str, Any] | None) -> Chart | None:
    """Return the risk-coverage curve, where uncertainty was written."""
    if curve is None or len(curve["coverage"]) < 2:
        return None
    sure = Curve("most certain cases kept", curve["coverage"], curve["risk"])
    chance = Curve("if uncertainty knew nothing", (curve["coverage"][0], 1.0), (curve["chance"], curve["chance"]))
    return curves([sure, chance], "share of cases kept", "1 \N{MINUS SIGN} Dice", "Risk against coverage")


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(f"{row['backbone']}, {row['head']}", []).append(row)
    return lines


def _learning_curve(lines: Mapping[str, list[Mapping[str, Any]]]) -> Chart | None:
    """Draw a study; if there are more lines than can be told apart, those that are best at their end."""
    best = sorted(lines, key=lambda name: -(lines[name][-1]["dice"]["mean"] or 0))[:_MOST_LINES]
    drawn = []
    for name, rows in lines.items():
        points = [row for row in rows if row["dice"]["mean"] is not None]
        if name in best and points:
            means = [row["dice"]["mean"] for row in points]
            draws = [[d for d in row["dice"]["draws"] if d is not None] or [row["dice"]["mean"]] for row in points]
            ends = [min(one) for one in draws], [max(one) for one in draws]
            drawn.append(Curve(name, [row["shots"] for row in points], means, *ends))
    shots = sorted({row["shots"] for rows in lines.values() for row in rows})
    if not drawn or len(shots) < 2:
        return None
    return curves(drawn, "labelled images", "Dice, mean over test cases", "Learning curve", shots)
