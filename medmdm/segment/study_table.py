"""The table of a study: means, and each kind of spread under its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medmdm.reports.study import summarise_study
from medmdm.runs.record import Provenance
from medmdm.stats.comparison import holm, paired
from medmdm.stats.statistics import json_ready

__all__ = ["study_table"]


def study_table(
    table: pd.DataFrame,
    patients: Mapping[str, str | None],
    seen: Mapping[str, Provenance],
    reference: Sequence[str] | None = None,
) -> tuple[dict[str, Any], str]:
    """Summarise a study.

    Args:
        table: a row for each test case and cell: backbone, head, shots, draw, seed, case, dice, iou.
        patients: the patient of each case, where known.
        seen: what each backbone has seen, by its name.
        reference: (backbone, head) that all others are compared with.

    Returns:
        The numbers (JSON-able) and a page in Markdown.
    """
    rows = summarise_study(table, patients)
    comparisons = [] if reference is None else _compare(table, patients, tuple(reference))
    lines = [
        "| backbone | head | labelled | Dice | 95 % interval over test images | SD of draws | SD of seeds | IoU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        dice, iou = row["dice"], row["iou"]
        lines.append(
            f"| {row['backbone']} | {row['head']} | {row['shots']} | {_n(dice['mean'])} | {_interval(dice)} "
            f"| {_n(dice.get('draw_sd'))} | {_n(dice.get('seed_sd'))} | {_n(iou['mean'])} |"
        )
    if comparisons:
        lines += [
            "",
            f"Difference in Dice to {' / '.join(reference or ())} with the same number of labels, paired by test image "
            "(each averaged over draws and seeds); p by sign flips, corrected by Holm over the table:",
            "",
            "| backbone | head | labelled | difference | 95 % interval | p (Holm) | better / equal / worse |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for c in comparisons:
            low, high = c["interval"]
            lines.append(
                f"| {c['backbone']} | {c['head']} | {c['shots']} | {c['difference']:+.3f} | {_n(low)} to {_n(high)} "
                f"| {c['p_holm']:.3g} | {c['wins']} / {c['ties']} / {c['losses']} |"
            )
    lines += ["", *(f"{name}: {one.kind}. {one.sentence}" for name, one in seen.items())]
    return json_ready({"rows": rows, "comparisons": comparisons}), "\n".join(lines) + "\n"


def _compare(
    table: pd.DataFrame, patients: Mapping[str, str | None], reference: tuple[str, ...]
) -> list[dict[str, Any]]:
    by_case = table.groupby(["shots", "backbone", "head", "case"])["dice"].mean()
    result = []
    for shots in sorted(table["shots"].unique()):
        here = by_case[shots]
        names = here.index.droplevel("case").unique()
        if reference not in names:
            continue
        base = here[reference]
        for backbone, head in names:
            if (backbone, head) == reference:
                continue
            other = here[backbone, head].reindex(base.index)
            groups = [patients.get(case) for case in base.index]
            comparison = paired(other.to_numpy(), base.to_numpy(), groups)
            result.append(
                {
                    "backbone": backbone,
                    "head": head,
                    "shots": int(shots),
                    "difference": comparison.difference,
                    "interval": list(comparison.t_interval),
                    "unit": comparison.unit,
                    "n": comparison.n,
                    "p": comparison.p_value,
                    "wins": comparison.wins,
                    "ties": comparison.ties,
                    "losses": comparison.losses,
                }
            )
    for row, p in zip(result, holm(np.array([row["p"] for row in result])) if result else [], strict=True):
        row["p_holm"] = float(p)
    return result


def _n(value: Any) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _interval(summary: Mapping[str, Any]) -> str:
    """Return what of an interval lies where scores can be; the numbers beside the page keep it whole."""
    interval = summary.get("interval")
    return "-" if not interval or interval[0] is None else f"{max(interval[0], 0):.3f} to {min(interval[1], 1):.3f}"
