"""The learning curve of a study: how scores grow with labelled images, and what makes them vary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medmdm.errors import UserError, nearest
from medmdm.stats import spread
from medmdm.stats.statistics import json_ready, summarise

__all__ = ["read_study", "summarise_study"]

_COLUMNS = ("backbone", "head", "shots", "draw", "seed", "case", "dice", "iou")


def read_study(path: Path) -> pd.DataFrame:
    """Read a study's table: a row for each test image and cell (backbone, head, shots, draw, seed).

    Raises:
        UserError: it cannot be read, a column is missing, or shots are no whole numbers.
    """
    try:
        table = pd.read_csv(path, dtype={"backbone": str, "head": str, "case": str})
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"the study {path} cannot be read ({error}): run it again") from error
    for column in _COLUMNS:
        if column not in table:
            raise UserError(f"the study {path} has no column {column!r}{nearest(column, map(str, table.columns))}")
    numbers = pd.to_numeric(table["shots"], errors="coerce")
    if table.empty or numbers.isna().any() or (numbers != numbers.round()).any():
        raise UserError(f"the study {path}: 'shots' must be the number of labelled images in each row")
    return table.assign(shots=numbers.astype(int))


def summarise_study(table: pd.DataFrame, patients: Mapping[str, str | None] | None = None) -> list[dict[str, Any]]:
    """Return a row for each backbone, head and number of labelled images.

    Args:
        table: from :func:`read_study`.
        patients: the patient of each case, where known.

    Returns:
        ``backbone``, ``head``, ``shots``; ``dice`` and ``iou``, each with ``mean``, ``interval`` and ``unit`` over test
        cases (averaged over draws and seeds first), what :class:`medmdm.stats.Spread` says, and ``draws``, the mean
        of each draw of labelled images.
    """
    rows = []
    for (backbone, head, shots), cell in table.groupby(["backbone", "head", "shots"], sort=True, dropna=False):
        row: dict[str, Any] = {"backbone": str(backbone), "head": str(head), "shots": int(shots)}
        for metric in ("dice", "iou"):
            row[metric] = _curve_point(cell, metric, patients or {})
        rows.append(row)
    return [json_ready(row) for row in rows]


def _curve_point(cell: pd.DataFrame, metric: str, patients: Mapping[str, str | None]) -> dict[str, Any]:
    by_draw = cell.groupby(["case", "draw"], sort=True)[metric].mean().unstack("draw")
    by_case = by_draw.mean(axis=1)
    over_cases = summarise(by_case.to_numpy(), [patients.get(str(case)) for case in by_case.index])
    return {
        **spread(cell, metric).as_dict(),
        "mean": over_cases.mean,
        "interval": over_cases.interval,
        "interval_name": over_cases.interval_name,
        "unit": over_cases.unit,
        "draws": by_draw.mean().tolist(),
    }
