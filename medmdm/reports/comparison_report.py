"""Writing a comparison: table, record, text and page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmdm.errors import UserError
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.charts import Band, Chart, differences, intervals
from medmdm.reports.comparison import LEVEL, compare, load_runs
from medmdm.reports.rendering import METRICS, csv_text, metric_title, render
from medmdm.reports.report import PAGE_FILE
from medmdm.reports.summary import Pseudonyms
from medmdm.runs.record import EVALUATION_FILE

_MOST_BARS = 3  # pairs whose cases are drawn one by one


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    keep_patient_ids: bool = False,
) -> Path:
    """Compare runs on the cases that all of them scored.

    Writes ``comparison.csv``, ``comparison.json``, ``comparison.md`` and ``index.html``.

    Args:
        run_dirs: at least two folders with ``evaluation.json``; where one has no ``per_case.csv`` yet, its report is
            made first.
        out: folder to write into.
        metrics: to be tested, such as ``["dice"]``: choose them before looking, for every p-value is corrected for the
            number of tests. Default: Dice, and Hausdorff 95 % and the metrics of objects where there are any.
        keep_patient_ids: write patient ids as they are instead of numbers.

    Returns:
        The page.

    Raises:
        UserError: fewer than two runs, no common case, or a metric that a run lacks.
    """
    folder = Path(out)
    if (folder / EVALUATION_FILE).exists():
        raise UserError(f"{folder} is a run folder, whose report the comparison would replace: give another --out.")
    runs = load_runs(run_dirs)
    patients = [case.patient for run in runs for case in run.evaluation.cases]
    content = compare(runs, metrics, Pseudonyms(patients, keep_patient_ids))
    charts = {"mean_differences": _mean_differences(content), "case_differences": _case_differences(content)}
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    atomic_write(folder / "comparison.csv", _csv(content))
    save_json(content, folder / "comparison.json")
    atomic_write(folder / "comparison.md", render("comparison.md.j2", content=content, level=LEVEL))
    atomic_write(folder / PAGE_FILE, render("comparison.html.j2", content=content, level=LEVEL, **charts))
    return folder / PAGE_FILE


def _csv(content: Mapping[str, Any]) -> str:
    columns = [(key, run["letter"]) for key in content["metrics"] for run in content["runs"]]
    lines = [["case", "patient", *(f"{key}_{letter}" for key, letter in columns)]]
    for row in content["rows"]:
        values = [row[key][letter] for key, letter in columns]
        lines.append([row["case"], row["patient_number"] or "", *("" if v is None else repr(v) for v in values)])
    return csv_text(lines)


def _mean_differences(content: Mapping[str, Any]) -> Chart | None:
    bands = []
    for one in content["comparisons"]:
        metric, (low, high) = METRICS[one["metric"]], one["t_interval"]
        if not metric.distance and one["difference"] is not None:
            name = f"{metric.title}, {one['a']} \N{MINUS SIGN} {one['b']}"
            bands.append(Band(name, one["difference"], low, high, one["verdict"]))
    return intervals(bands, "mean difference, with its 95 % interval (t)", "Mean differences") if bands else None


def _case_differences(content: Mapping[str, Any]) -> list[Chart]:
    """Return a chart of the first metric's differences, case by case, for each of the first pairs."""
    names = {run["letter"]: run["name"] for run in content["runs"]}
    main = content["metrics"][0]
    charts = []
    for one in [one for one in content["comparisons"] if one["metric"] == main][:_MOST_BARS]:
        a, b = one["a"], one["b"]
        known = [row for row in content["rows"] if row[main][a] is not None and row[main][b] is not None]
        if known:
            metric = metric_title(main, content["distance_unit"])
            title = f"{metric} of each case: {a} ({names[a]}) less {b} ({names[b]})"
            values = [row[main][a] - row[main][b] for row in known]
            charts.append(differences(values, [row["case"] for row in known], "difference", title))
    return charts
