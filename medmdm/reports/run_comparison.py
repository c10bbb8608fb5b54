"""Writing a comparison: table, record, text and page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmdm.errors import UserError
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.charts import HATCH, Band, differences, intervals
from medmdm.reports.comparison import LEVEL, compare, load_runs
from medmdm.reports.definitions import METRICS
from medmdm.reports.document import document, table
from medmdm.reports.markdown import markdown_table
from medmdm.reports.markup import Content, Markup, join, tag
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.reports.report import PAGE_FILE
from medmdm.reports.wording import counted, interval_text, metric_title, number_text
from medmdm.runs.record import EVALUATION_FILE

__all__ = ["write_comparison"]

_MOST_BARS = 3  # pairs whose cases are drawn one by one


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    keep_patient_ids: bool = False,
) -> Path:
    """Compare runs on the cases that all of them scored, and write ``comparison.csv``, ``comparison.json``,
    ``comparison.md`` and ``index.html``.

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
        raise UserError(f"{folder} is a run folder, whose report the comparison would replace: give another --out")
    runs = load_runs(run_dirs)
    patients = [case.patient for run in runs for case in run.evaluation.cases]
    content = compare(runs, metrics, Pseudonyms(patients, keep_patient_ids))
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    atomic_write(folder / "comparison.csv", _csv(content))
    save_json(content, folder / "comparison.json")
    atomic_write(folder / "comparison.md", _markdown(content))
    atomic_write(folder / PAGE_FILE, _page(content))
    return folder / PAGE_FILE


def _csv(content: Mapping[str, Any]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    letters = [run["letter"] for run in content["runs"]]
    columns = [(key, letter) for key in content["metrics"] for letter in letters]
    writer.writerow(["case", "patient", *(f"{key}_{letter}" for key, letter in columns)])
    for row in content["rows"]:
        values = [row[key][letter] for key, letter in columns]
        writer.writerow([row["case"], row["patient_number"] or "", *("" if v is None else repr(v) for v in values)])
    return buffer.getvalue()


def _first_line(content: Mapping[str, Any]) -> str:
    runs = len(content["runs"])
    where = "both runs" if runs == 2 else f"all {runs} runs"
    return f"{counted(content['cases'], 'case')} scored in {where}, {len(content['left_out']) or 'none'} left out"


def _title(content: Mapping[str, Any]) -> str:
    return f"{content['runs'][0]['dataset']}: comparison of {len(content['runs'])} runs"


def _explanation(content: Mapping[str, Any]) -> str:
    return (
        "Differences are the first run less the second, on the same cases. The p-value is of a two-sided permutation "
        f"test (signs flipped); the corrected one (Holm) allows for all {counted(content['tests'], 'test')} here, and "
        f"only it, below {LEVEL:g}, counts as a difference. Wins and losses are of the first run."
    )


def _test_rows(content: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for one in content["comparisons"]:
        distance = METRICS[one["metric"]].distance
        rows.append(
            [
                metric_title(one["metric"], content["distance_unit"]),
                f"{one['a']} \N{MINUS SIGN} {one['b']}",
                number_text(one["difference"], distance, signed=True),
                interval_text(one["t_interval"], distance, signed=True),
                interval_text(one["bca_interval"], distance, signed=True),
                _p_text(one["p_value"]),
                _p_text(one["p_holm"]),
                f"{one['wins']} / {one['ties']} / {one['losses']}",
                f"{one['n']} {one['unit']}",
                one["verdict"],
            ]
        )
    return rows


_TEST_HEADER = (
    "Metric", "Runs", "Difference", "95 % interval (t)", "95 % interval (BCa)", "p", "p corrected",
    "Wins / ties / losses", "n", "Verdict",
)  # fmt: skip


def _mean_rows(content: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for key, by_run in content["means"].items():
        for run in content["runs"]:
            entry, distance = by_run[run["letter"]], METRICS[key].distance
            rows.append(
                [
                    metric_title(key, content["distance_unit"]),
                    f"{run['letter']}: {run['name']}",
                    number_text(entry["mean"], distance),
                    interval_text(entry["interval"], distance),
                    number_text(entry["median"], distance),
                    number_text(entry["sd"], distance),
                    f"{entry['n']} {entry['unit']}",
                ]
            )
    return rows


_MEAN_HEADER = ("Metric", "Run", "Mean", "95 % interval", "Median", "SD", "n")


def _p_text(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(content: Mapping[str, Any]) -> str:
    lines = [f"# {_title(content)}: {_first_line(content)}", ""]
    lines += [*(f"- {note}" for note in content["notes"]), ""] if content["notes"] else []
    header = ("run", "folder", "data set", "stamp", "scored", "excluded")
    lines += [*markdown_table(header, _run_rows(content), text_columns=4), "", _explanation(content), ""]
    lines += [
        *markdown_table(_TEST_HEADER, _test_rows(content), text_columns=2),
        "",
        "## Means on the common cases",
        "",
    ]
    lines += [*markdown_table(_MEAN_HEADER, _mean_rows(content), text_columns=2), ""]
    if content["protocols"]:
        lines += ["## What differs", "", *markdown_table(_protocol_header(content), _protocol_rows(content), 9), ""]
    return "\n".join(lines).rstrip() + "\n"


def _run_rows(content: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            run["letter"],
            run["name"],
            f"{run['dataset']}, {run['section']}",
            run["stamp"],
            str(run["scored"]),
            str(run["excluded"]),
        ]
        for run in content["runs"]
    ]


def _protocol_header(content: Mapping[str, Any]) -> list[str]:
    return ["", *(run["letter"] for run in content["runs"])]


def _protocol_rows(content: Mapping[str, Any]) -> list[list[str]]:
    return [[row["what"], *(row[run["letter"]] or "" for run in content["runs"])] for row in content["protocols"]]


def _page(content: Mapping[str, Any]) -> str:
    sections: list[tuple[str, str, Markup | None]] = [
        ("tests", "Differences", _tests(content)),
        ("means", "Means on the common cases", table(_MEAN_HEADER, _mean_rows(content), text_columns=2)),
        ("all-cases", "All cases", _cases(content)),
        ("protocol", "What differs", _protocols(content)),
    ]
    kept = [(name, heading, body) for name, heading, body in sections if body]
    header = ("Run", "Folder", "Data set", "The encoder's stamp", "Scored", "Excluded")
    body = join(
        tag("p", _first_line(content), class_="first"),
        tag("h1", _title(content)),
        table(header, _run_rows(content), text_columns=4),
        tag("ul", *[tag("li", note) for note in content["notes"]], class_="notes") if content["notes"] else None,
        tag("nav", *[tag("a", heading, href=f"#{name}") for name, heading, _ in kept], aria_label="Sections"),
        *[tag("section", tag("h2", heading, id=name), part) for name, heading, part in kept],
        tag("footer", f"Made by medmdm {content['medmdm']} from the runs' per_case.csv."),
    )
    return document(_title(content), body, HATCH)


def _tests(content: Mapping[str, Any]) -> Markup:
    shares = [one for one in content["comparisons"] if not METRICS[one["metric"]].distance]
    bands = [
        Band(
            f"{METRICS[one['metric']].title}, {one['a']} \N{MINUS SIGN} {one['b']}",
            one["difference"],
            one["t_interval"][0],
            one["t_interval"][1],
            one["verdict"],
        )
        for one in shares
        if one["difference"] is not None
    ]
    parts: list[Content] = [tag("p", _explanation(content))]
    if bands:
        parts.append(intervals(bands, "mean difference, with its 95 % interval (t)", "Mean differences"))
    header = (
        "Metric",
        "Verdict",
        "Difference",
        "95 % interval (t, BCa)",
        "p",
        "p corrected",
        "Wins / ties / losses",
        "n",
    )
    rows: list[list[Content]] = [
        [f"{metric}, {pair}", verdict, difference, join(t, tag("small", bca)), p, p_holm, wins, n]
        for metric, pair, difference, t, bca, p, p_holm, wins, n, verdict in _test_rows(content)
    ]
    parts.append(table(header, rows, text_columns=2))
    names = {run["letter"]: run["name"] for run in content["runs"]}
    main = content["metrics"][0]
    pairs = [one for one in content["comparisons"] if one["metric"] == main][:_MOST_BARS]
    for one in pairs:
        a, b = one["a"], one["b"]
        known = [row for row in content["rows"] if row[main][a] is not None and row[main][b] is not None]
        if known:
            title = (
                f"{metric_title(main, content['distance_unit'])} of each case: {a} ({names[a]}) less {b} ({names[b]})"
            )
            values = [row[main][a] - row[main][b] for row in known]
            bars = differences(values, [row["case"] for row in known], "difference", title)
            parts += [tag("h3", title), tag("p", "Below zero the bars are hatched.", class_="soft"), bars]
    return join(*parts)


def _cases(content: Mapping[str, Any]) -> Markup:
    letters = [run["letter"] for run in content["runs"]]
    patients = any(row["patient_number"] for row in content["rows"])
    columns = [(key, letter) for key in content["metrics"] for letter in letters]
    unit = content["distance_unit"]
    head = [tag("th", tag("button", "Case", type="button"), scope="col", class_="text", data_kind="text")]
    if patients:
        head.append(tag("th", tag("button", "Patient", type="button"), scope="col", class_="text", data_kind="text"))
    for key, letter in columns:
        title = f"{metric_title(key, unit)} {letter}"
        head.append(tag("th", tag("button", title, type="button"), scope="col", data_kind="number"))
    rows = []
    for row in content["rows"]:
        cells = [tag("th", row["case"], scope="row")]
        cells += [tag("td", row["patient_number"] or "", class_="text")] if patients else []
        for key, letter in columns:
            value = row[key][letter]
            text = number_text(value, METRICS[key].distance)
            cells.append(tag("td", text, data_value="" if value is None else repr(value)))
        rows.append(tag("tr", *cells))
    tools = tag(
        "div",
        tag("label", "Filter: ", tag("input", type="search", id="filter", placeholder="any text of a row")),
        tag("span", f"{len(rows)} of {len(rows)} shown", id="shown", aria_live="polite", class_="soft"),
        class_="tools",
    )
    caption = tag("caption", "Click a heading to sort. A dash is a value that is undefined or infinite.")
    body = tag("table", caption, tag("thead", tag("tr", *head)), tag("tbody", *rows), id="cases")
    return join(tools, tag("div", body, class_="tall", tabindex=0, role="region", aria_label="Table of all cases"))


def _protocols(content: Mapping[str, Any]) -> Markup | None:
    if not content["protocols"]:
        return None
    columns = len(content["runs"]) + 1
    return table(
        _protocol_header(content), _protocol_rows(content), "What the runs' protocols say.", text_columns=columns
    )
