"""What a plan of further labels says, as a table, as text and as a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmdm.errors import UserError
from medmdm.reports.charts import Chart, Curve, curves
from medmdm.reports.rendering import counted

if TYPE_CHECKING:
    import pandas as pd

CSV_FILE = "label_plan.csv"
JSON_FILE = "label_plan.json"


def read_label_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan that a run wrote into its folder (:class:`medmdm.segment.LabelPlanner`); None without one.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / JSON_FILE
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not {"curve", "continued", "note", "next"} <= set(plan):
            raise ValueError("it is no plan of labels")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, or make it again.") from error
    return dict(plan)


def label_chart(plan: Mapping[str, Any] | None) -> Chart | None:
    """Return the curve of a plan over the number of labelled images; None where it has one point alone."""
    if plan is None or len(plan["curve"]) + len(plan["continued"]) < 2:
        return None
    lines = []
    for name, key in (("measured", "curve"), ("expected", "continued")):
        rows = plan[key]
        if rows:
            parts = ([row[part] for row in rows] for part in ("images", "score", "low", "high"))
            lines.append(Curve(name, *parts))
    marks = sorted({row["images"] for key in ("curve", "continued") for row in plan[key]})
    return curves(lines, "labelled images", "Dice of images that were left out", "How many labels?", marks)


def as_table(plan: Mapping[str, Any]) -> pd.DataFrame:
    """Return a plan as a table: rows of kind ``measured``, ``expected`` and ``next``."""
    import pandas as pd  # slow to import

    rows: list[dict[str, Any]] = []
    rows += [{"kind": "measured", **row, "dice": row["score"]} for row in plan["curve"]]
    rows += [{"kind": "expected", **row, "dice": row["score"]} for row in plan["continued"]]
    rows += [{"kind": "next", "rank": rank, **row} for rank, row in enumerate(plan["next"], start=1)]
    columns = ["kind", "images", "dice", "low", "high", "sd", "draws", "rank", "image", "leverage"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    return table.astype(dict.fromkeys(("images", "draws", "rank"), "Int64"))


def as_text(plan: Mapping[str, Any]) -> str:
    """Return what a plan says in about ten lines."""
    curve, known = plan["curve"], plan["patients_known"]
    of = counted(plan["patients"], "patient") if known else "patients that the list does not name"
    if plan.get("parts_of_one_image"):
        of = "one image, whose parts are more alike than new images will be"
    images = counted(plan["labelled"], "labelled image")
    lines = [f"{images} of {of}; {plan['head']} on {plan['features']}, Dice of left-out images:"]
    for row in curve:
        spread = f"{row['low']:.3f} to {row['high']:.3f} over {counted(row['draws'], 'draw')}"
        lines.append(f"  {row['images']:4d} labelled: {row['score']:.3f} ({spread})")
    for row in plan["continued"]:
        interval = f"95 % interval {row['low']:.3f} to {row['high']:.3f}"
        lines.append(f"  {row['images']:4d} expected: {row['score']:.3f} ({interval})")
    lines += [f"Not continued: {plan['note']}"] if plan["note"] else []
    if plan["all_foreground"] is not None:
        lines.append(f"Marking every pixel gives {plan['all_foreground']:.3f}.")
    names = ", ".join(row["image"] for row in plan["next"])
    rest = (
        f"of the {plan['unlabelled']} unlabelled ones" if plan["unlabelled"] else "none: there are no unlabelled ones"
    )
    lines.append(f"Label next, {rest}{': ' + names if names else ''}.")
    return "\n".join(lines)
