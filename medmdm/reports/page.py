"""``index.html``: the report as one page that needs nothing else, no network, and to be read no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.reports.charts import Chart, Curve, Strip, curves, strips
from medmdm.reports.pictures import CasePicture, encode_map, top_value
from medmdm.reports.rendering import METRICS, metric_title, number_text, render
from medmdm.reports.scoring import ScoredCase
from medmdm.reports.summary import HEADLINES, headline_keys
from medmdm.runs.record import MAPS
from medmdm.stats.statistics import BCA_FROM

BUDGET = 16_000_000  # bytes that the pictures of a page may take
_IN_A_ROW = 5


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
        budget: bytes that all may take; the cases of the galleries go first, then the others in their order.

    Attributes:
        rows: of the galleries, from :func:`chosen`.
        pictures: by the number of their case.
        missing: how many there was no room for.
        tops: of each kind of map, the value that is drawn lightest, so that cases can be compared.
    """

    def __init__(self, cases: Sequence[ScoredCase], budget: int = BUDGET) -> None:
        self.budget = budget
        self.rows = chosen(cases)
        self.pictures: dict[int, CasePicture] = {}
        drawn = {case.number: case.picture for case in cases if case.picture is not None}
        room = budget
        for number in dict.fromkeys(case.number for row in (*(row for _, row in self.rows), cases) for case in row):
            picture = drawn.get(number)
            if picture is not None and picture.size <= room:
                self.pictures[number] = picture
                room -= picture.size
        self.missing = len(drawn) - len(self.pictures)
        self.tops = {name: top_value([p.maps for p in self.pictures.values()], name) for name in MAPS}

    def drawn_map(self, number: int, name: str) -> bytes:
        """Return a map of a case as a JPEG."""
        return encode_map(self.pictures[number].maps[name], self.tops[name])


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
