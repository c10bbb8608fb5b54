"""Comparing runs on the same cases: differences, intervals, tests corrected for their number, and their page."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import medmdm
from medmdm.errors import UserError, counted, nearest, refuse_full_disk
from medmdm.files import atomic_write, save_json, sweep_temporaries
from medmdm.reports.charts import Band, Chart, differences, intervals
from medmdm.reports.pseudonyms import Pseudonyms, public_protocol
from medmdm.reports.rendering import METRICS, csv_text, flat, metric_title, render
from medmdm.reports.report import PAGE_FILE, write_report
from medmdm.reports.scoring import ScoredCase, Scores
from medmdm.reports.summary import PER_CASE_FILE, read_per_case
from medmdm.runs.record import EVALUATION_FILE, Evaluation
from medmdm.stats import json_ready, paired, summarise, with_holm

LEVEL = 0.05
_TESTED = ("dice", "hausdorff95", "object_dice", "object_f1", "aji", "pq")
_NAMED = 5  # cases that a sentence names
_MOST_BARS = 3  # pairs whose cases are drawn one by one


@dataclass(frozen=True)
class Run:
    """A run that is compared."""

    letter: str  # by which tables refer to it: "A", "B", ...
    name: str  # its folder, with as much of the path as tells the runs apart
    evaluation: Evaluation
    scores: Scores  # names and patients as in the evaluation

    @cached_property
    def cases(self) -> dict[str, ScoredCase]:
        """The scored cases by name."""
        return {case.name: case for case in self.scores.cases}


def load_runs(run_dirs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read the scores of runs; where there is no ``per_case.csv`` yet, its report is made first.

    Raises:
        UserError: there are fewer than two, one is given twice, or one cannot be read.
    """
    folders = [Path(folder) for folder in run_dirs]
    if len(folders) < 2:
        raise UserError(f"{counted(len(folders), 'run')} given: a comparison needs at least two run folders")
    resolved = [folder.resolve() for folder in folders]
    runs = []
    for number, (folder, name) in enumerate(zip(folders, _names(resolved), strict=True)):
        if resolved.count(resolved[number]) > 1:
            raise UserError(f"{folder} is given twice: name different runs")
        evaluation, table = Evaluation.load(folder), folder / PER_CASE_FILE
        if not table.is_file():
            write_report(folder)
        letter = chr(ord("A") + number) if number < 26 else f"R{number + 1}"
        runs.append(Run(letter, name, evaluation, read_per_case(table, evaluation)))
    return runs


def compare(
    runs: Sequence[Run], metrics: Sequence[str] | None = None, pseudonyms: Pseudonyms | None = None
) -> dict[str, Any]:
    """Compare every run with every other one on the cases that all of them scored.

    Args:
        runs: from :func:`load_runs`.
        metrics: to be tested; default: Dice, and Hausdorff 95 % and the metrics of objects where all runs have them.
        pseudonyms: what stands for patients in what is returned.

    Returns:
        JSON-able: ``runs``, ``cases``, ``left_out``, ``notes``, ``means`` (by metric and run, on the common cases),
        ``comparisons`` (of each pair and metric, differences being the first less the second), ``rows`` (by case) and
        ``protocols`` (what differs).

    Raises:
        UserError: the runs have no case in common, or lack a metric.
    """
    names = [name for name in runs[0].cases if all(name in run.cases for run in runs)]
    if not names:
        which = ", ".join(run.name for run in runs)
        raise UserError(f"the runs {which} have no scored case in common: compare evaluations of one data set")
    keys = _metrics(runs, names, metrics)
    patients = [next((run.cases[name].patient for run in runs if run.cases[name].patient), None) for name in names]
    values = {
        key: {run.letter: [run.cases[name].scores.get(key, math.nan) for name in names] for run in runs} for key in keys
    }
    found = []
    for a, b in itertools.combinations([run.letter for run in runs], 2):
        for key in keys:
            outcome = paired(values[key][a], values[key][b], patients, higher_is_better=not METRICS[key].distance)
            found.append({"a": a, "b": b, "metric": key, **outcome.as_dict()})
    found = [one | {"verdict": _verdict(one)} for one in with_holm(found)]
    everyone = dict.fromkeys(case.name for run in runs for case in run.evaluation.cases)
    left_out = [name for name in everyone if name not in set(names)]
    hide = pseudonyms or Pseudonyms.of(run.evaluation for run in runs)
    content = {
        "format": 1,
        "medmdm": medmdm.__version__,
        "runs": [
            {
                "letter": run.letter,
                "name": run.name,
                "dataset": run.evaluation.dataset,
                "section": run.evaluation.section,
                "stamp": run.evaluation.provenance.kind,
                "scored": len(run.scores.cases),
                "excluded": len(run.scores.excluded),
            }
            for run in runs
        ],
        "distance_unit": runs[0].scores.ruler.unit,
        "metrics": keys,
        "tests": sum(one["p_value"] is not None for one in found),
        "cases": len(names),
        "left_out": left_out,
        "notes": _notes(runs, left_out, found),
        "means": {
            key: {letter: summarise(column, patients).as_dict() for letter, column in values[key].items()}
            for key in keys
        },
        "comparisons": found,
        "rows": [
            {
                "case": name,
                "patient_number": hide.name(patients[i]),
                **{key: {letter: column[i] for letter, column in values[key].items()} for key in keys},
            }
            for i, name in enumerate(names)
        ],
        "protocols": _differing(runs),
    }
    return hide.clean_all(json_ready(content))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of paths, as long as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _metrics(runs: Sequence[Run], names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    def lacks(key: str) -> str | None:
        for run in runs:
            if not any(key in run.cases[name].scores for name in names):
                return f"{run.name} has no {METRICS[key].title} for the common cases"
        rulers = {(run.scores.ruler.unit, run.scores.ruler.tolerance) for run in runs}
        if METRICS[key].group == "surfaces" and len(rulers) > 1:
            return "the runs measure distances in different units, or with different tolerances"
        return None

    if wanted is None:
        return [key for key in _TESTED if lacks(key) is None]
    for key in wanted:
        if key not in METRICS:
            raise UserError(f"{key!r} is no metric{nearest(key, METRICS)}: use one of {', '.join(METRICS)}")
        problem = lacks(key)
        if problem is not None:
            raise UserError(f"{key} cannot be compared, for {problem}: choose another metric")
    return list(dict.fromkeys(wanted))


def _verdict(outcome: Mapping[str, Any]) -> str:
    """Say in words what the corrected test says, and no more."""
    p, difference = outcome["p_holm"], outcome["difference"]
    if p is None or difference is None:
        return "no test"
    if p >= LEVEL:
        return "no difference shown"
    return f"{outcome['a'] if (difference < 0) == METRICS[outcome['metric']].distance else outcome['b']} better"


def _notes(runs: Sequence[Run], left_out: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    datasets = {(run.evaluation.dataset, run.evaluation.section) for run in runs}
    if len(datasets) > 1:
        listed = ", ".join(f"{run.letter} on {run.evaluation.dataset}, {run.evaluation.section}" for run in runs)
        notes.append(f"The runs were evaluated on data sets of different names: {listed}.")
    if len({run.evaluation.provenance.kind for run in runs}) > 1:
        listed = ", ".join(f"{run.letter} {run.evaluation.provenance.kind}" for run in runs)
        notes.append(f"The encoders have not seen the same of the test cases: {listed}.")
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        notes.append(
            f"{counted(len(left_out), 'case')} not scored in every run {'is' if len(left_out) == 1 else 'are'} left "
            f"out: {', '.join(left_out[:_NAMED])}{more}."
        )
    notes += [warning for one in found if one["metric"] == found[0]["metric"] for warning in one["warnings"]]
    return list(dict.fromkeys(notes))


def _differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the protocols say differently, which is what the comparison compares."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    protocols = [{key: text(value) for key, value in flat(public_protocol(run.evaluation))} for run in runs]
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    return [
        {"what": key, **{run.letter: protocol.get(key) for run, protocol in zip(runs, protocols, strict=True)}}
        for key in keys
        if len({protocol.get(key) for protocol in protocols}) > 1
    ]


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
    content = compare(runs, metrics, Pseudonyms.of([run.evaluation for run in runs], keep_patient_ids))
    charts = {"mean_differences": _mean_differences(content), "case_differences": _case_differences(content)}
    with refuse_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    columns = [(key, run["letter"]) for key in content["metrics"] for run in content["runs"]]
    table = [["case", "patient", *(f"{key}_{letter}" for key, letter in columns)]]
    for row in content["rows"]:
        values = ("" if row[key][letter] is None else repr(row[key][letter]) for key, letter in columns)
        table.append([row["case"], row["patient_number"] or "", *values])
    atomic_write(folder / "comparison.csv", csv_text(table))
    save_json(content, folder / "comparison.json")
    atomic_write(folder / "comparison.md", render("comparison.md.j2", content=content, level=LEVEL))
    atomic_write(folder / PAGE_FILE, render("comparison.html.j2", content=content, level=LEVEL, **charts))
    return folder / PAGE_FILE


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
