"""A study: how scores grow with labelled images, what makes them vary, and which backbone and head is better."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medmdm.errors import UserError, nearest
from medmdm.files import delimiter_of, plain_cell, text_of
from medmdm.reports.baselines import beyond
from medmdm.reports.rendering import render
from medmdm.runs.record import Provenance
from medmdm.stats import crossed_interval, json_ready, paired, spread, summarise, with_holm

_COLUMNS = ("backbone", "head", "shots", "draw", "seed", "case", "dice", "iou")


def read_study(path: Path) -> pd.DataFrame:
    """Read a study's table: a row for each test image and cell (backbone, head, shots, draw, seed).

    Raises:
        UserError: it cannot be read, a column is missing, or shots are no whole numbers.
    """
    try:
        text = text_of(path.read_bytes())
        commas = {} if (delimiter := delimiter_of(text)) == "," else {"sep": delimiter, "decimal": ","}
        converters = dict.fromkeys(("backbone", "head", "case"), plain_cell)
        table = pd.read_csv(io.StringIO(text, newline=""), converters=converters, **commas)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"the study {path} cannot be read ({error}): run it again.") from error
    for column in _COLUMNS:
        if column not in table:
            raise UserError(f"the study {path} has no column {column!r}{nearest(column, map(str, table.columns))}.")
    numbers = pd.to_numeric(table["shots"], errors="coerce")
    if table.empty or numbers.isna().any() or (numbers != numbers.round()).any():
        raise UserError(f"the study {path}: 'shots' must be the number of labelled images in each row.")
    if "section" in table:  # a study that also scored training images that were left out
        table = table[table["section"] == "test"]
    return table.assign(shots=numbers.astype(int))


def study_table(
    table: pd.DataFrame,
    patients: Mapping[str, str | None],
    seen: Mapping[str, Provenance],
    reference: Sequence[str] | None = None,
    baselines: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> tuple[dict[str, Any], str]:
    """Summarise a study, and compare its cells with a reference.

    Args:
        table: a row for each test case and cell: backbone, head, shots, draw, seed, case, dice, iou; with a column
            ``section`` those of ``training`` are cases that were left out.
        patients: the patient of each case, where known.
        seen: what each backbone has seen, by its name.
        reference: (backbone, head) that all others are compared with.
        baselines: the same columns for masks that cost nothing, named in ``head``: ``all_foreground`` with 0 shots, and
            ``mean_mask`` of the labelled masks of each number of shots and draw, where it is known.
        notes: sentences that a reader of the numbers should know.

    Returns:
        The numbers (JSON-able), and the tables in Markdown.
    """
    content: dict[str, Any] = {}
    if "section" in table:
        left_out, table = (table[table["section"] == section] for section in ("training", "test"))
        content = {"left_out": dict(zip(("rows", "comparisons"), _rows(left_out, patients, reference), strict=True))}
    rows, comparisons = _rows(table, patients, reference)
    free, gains = [], []
    if baselines is not None:
        free, gains = summarise_study(baselines, patients), json_ready([*_gains(table, baselines, patients)])
    content |= {"rows": rows, "comparisons": comparisons, "baselines": free, "gains": gains}
    return content, render("study.md.j2", **{"left_out": None, **content}, seen=seen, reference=reference, notes=notes)


def _rows(
    table: pd.DataFrame, patients: Mapping[str, str | None], reference: Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of the curve, and each compared with the reference."""
    comparisons = [] if reference is None else json_ready(_compare(table, patients, tuple(reference)))
    return summarise_study(table, patients), comparisons


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
    over_cases = summarise(by_case.to_numpy(), [patients.get(str(case)) for case in by_case.index]).as_dict()
    return {
        **spread(cell, metric).as_dict(),
        **{key: over_cases[key] for key in ("mean", "interval", "interval_name", "unit")},
        "draws": by_draw.mean().tolist(),
    }


def _compare(
    table: pd.DataFrame, patients: Mapping[str, str | None], reference: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Compare cells with the reference of as many labels, by test image on the same draws, averaged over seeds."""
    by_draw = table.groupby(["shots", "backbone", "head", "case", "draw"])["dice"].mean().unstack("draw")
    found = []
    for shots in sorted(table["shots"].unique()):
        here = by_draw.loc[shots].dropna(axis=1, how="all")
        names = here.index.droplevel("case").unique()
        if reference not in names:
            continue
        base = here.loc[reference]
        groups = [patients.get(case) for case in base.index]
        for backbone, head in names:
            if (backbone, head) == reference:
                continue
            differences = here.loc[backbone, head].reindex(base.index) - base
            by_case = differences.mean(axis=1)
            outcome = paired(by_case.to_numpy(), np.zeros(len(by_case)), groups).as_dict()
            row = {"backbone": backbone, "head": head, "shots": int(shots), "difference": outcome["difference"]}
            row |= {"interval": outcome["t_interval"], "unit": outcome["unit"], "n": outcome["n"]}
            if differences.shape[1] > 1:  # other images could have been labelled, too
                if outcome["unit"] == "patients":
                    differences = differences.groupby(np.asarray(groups, dtype=str)).mean()
                row["interval"] = crossed_interval(differences.to_numpy().T)
            found.append(row | {"p": outcome["p_value"], **{key: outcome[key] for key in ("wins", "ties", "losses")}})
    return with_holm(found, "p")


def _gains(
    table: pd.DataFrame, baselines: pd.DataFrame, patients: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Compare each cell with the better of the baselines of as many labels, by test image."""
    free = baselines.groupby(["head", "shots", "case"])["dice"].mean()
    for (shots, backbone, head), cell in table.groupby(["shots", "backbone", "head"]):
        by_case = cell.groupby("case")["dice"].mean()
        found = {}
        for name, labels in free.index.droplevel("case").unique():
            if labels in (0, shots):
                found[name] = free[name, labels].reindex(by_case.index)[by_case.notna()]
        name = max(found, key=lambda name: found[name].mean())
        groups = [patients.get(case) for case in by_case.index]
        gain = beyond(by_case, found[name].reindex(by_case.index), groups)
        yield {"backbone": backbone, "head": head, "shots": int(shots), "baseline": name, **gain}
