"""``per_case.csv``: a row per case, from which the report can be made again when the masks are gone."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmdm.errors import UserError
from medmdm.files import atomic_write
from medmdm.reports.rendering import COUNTS, METRICS, OBJECT_COUNTS, PER_CLASS
from medmdm.reports.scoring import Excluded, Ruler, ScoredCase, Scores
from medmdm.runs.record import MAPS, Evaluation

_SHORTEST = 4  # characters of an id that is looked for inside other text: a "7" is in many names by chance


class Pseudonyms:
    """Numbers in the place of patient ids: ``P1``, ``P2``, ... in the order in which the cases are listed.

    A number says nothing of the id, whatever its length; hashes of short ids can be undone by trying all of them, for
    their salt has to be the same each time. Ids of four and more characters are replaced wherever they stand as a word:
    file names of public sets hold them (``TCGA-18-5592-01Z``).

    Args:
        patients: the ids by case; ``None`` for cases without one.
        keep: leave everything as it is.
    """

    def __init__(self, patients: Iterable[str | None], keep: bool = False) -> None:
        self._keep = keep
        distinct = list(dict.fromkeys(patient for patient in patients if patient is not None))
        width = len(str(len(distinct)))
        self._names = {patient: patient if keep else f"P{i:0{width}}" for i, patient in enumerate(distinct, 1)}
        hidden = sorted((p for p in distinct if len(p) >= _SHORTEST), key=len, reverse=True)
        words = "|".join(re.escape(patient) for patient in hidden)
        # Not inside a longer word, so that the patient 1234 does not change image_12345.
        self._pattern = re.compile(f"(?<![0-9A-Za-z])(?:{words})(?![0-9A-Za-z])") if words and not keep else None

    def name(self, patient: str | None) -> str | None:
        """Return what stands for a patient."""
        return None if patient is None else self._names[patient]

    def clean(self, text: str) -> str:
        """Return text without patient ids."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._names[match.group()], text)

    def clean_all(self, content: Any) -> Any:
        """Return JSON-able content without patient ids, in keys and in values.

        Text under keys such as ``patient_id`` is hidden whether it is known as an id or not.
        """
        if isinstance(content, str):
            return self.clean(content)
        if isinstance(content, Mapping):
            return {
                self.clean(str(key)): self.clean_all(self._hidden(value) if "patient" in str(key).lower() else value)
                for key, value in content.items()
            }
        if isinstance(content, (list, tuple)):
            return [self.clean_all(value) for value in content]
        return content

    def _hidden(self, value: Any) -> Any:
        """Return what stands for the value of a key about patients: ids of one character are ids too."""
        if isinstance(value, str) and not self._keep:
            return self._names.get(value, value if value in self._names.values() else "(hidden)")
        return [self._hidden(one) for one in value] if isinstance(value, (list, tuple)) else value


PER_CASE_FILE = "per_case.csv"
_FIXED = ("case", "patient", "seen", "excluded", "distance_unit", "tolerance", "prediction_file", "reference_file")
_SCORES = (*METRICS, *MAPS, *OBJECT_COUNTS.values())
_NUMBERED = re.compile(rf"(?:{'|'.join((*PER_CLASS, *COUNTS))})_\d+")


def write_per_case(scores: Scores, path: Path) -> None:
    """Write a row for each case, excluded ones with their reason.

    Numbers have all their digits; an empty cell is an undefined value, ``inf`` an infinite distance. Columns of the
    data list stand between, one that has the name of another column under ``list_<name>``.
    """
    keys = list(dict.fromkeys(key for case in scores.cases for key in case.scores))
    columns = list(dict.fromkeys(name for case in scores.cases for name in case.columns))
    titles = [f"list_{name}" if name in (*_FIXED, *_SCORES) or _NUMBERED.fullmatch(name) else name for name in columns]
    ruler = [scores.ruler.unit, _text(scores.ruler.tolerance)]
    rows: dict[int, list[str]] = {}
    for case in scores.cases:
        fixed = [case.name, case.patient or "", "yes" if case.seen else "", "", *ruler, *case.files]
        values = [_text(case.scores.get(key, math.nan)) for key in keys]
        rows[case.number] = [*fixed, *(case.columns.get(name, "") for name in columns), *values]
    for one in scores.excluded:
        rows[one.number] = [one.name, "", "", one.reason, *ruler, *[""] * (2 + len(columns) + len(keys))]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(
        [[*_FIXED, *titles, *keys], *(row for _, row in sorted(rows.items()))]
    )
    atomic_write(path, buffer.getvalue())


def read_per_case(path: Path, evaluation: Evaluation) -> Scores:
    """Read the scores back; names, patients and columns of the data list come from the evaluation.

    Args:
        path: a ``per_case.csv``.
        evaluation: of the same cases.

    Raises:
        UserError: it cannot be read, or is of other cases.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate again") from error
    by_name = {row.get("case"): row for row in rows}
    found = Scores([], [], Ruler("pixels", 0.0, 0.0), source="per_case.csv")
    pseudonyms = Pseudonyms([case.patient for case in evaluation.cases])
    for number, case in enumerate(evaluation.cases):
        row = by_name.get(case.name) or by_name.get(pseudonyms.clean(case.name))
        if row is None:
            raise UserError(f"{path} has no row for {pseudonyms.clean(case.name)}: evaluate again")
        if row.get("excluded"):
            found.excluded.append(Excluded(case.name, number, row["excluded"]))
            continue
        keys = [key for key in row if key in _SCORES or _NUMBERED.fullmatch(key or "")]
        found.cases.append(
            ScoredCase(
                name=case.name,
                number=number,
                patient=case.patient,
                columns=case.columns,
                seen=case.name in evaluation.provenance.overlapping,
                scores={key: _number(row[key], key, path) for key in keys},
                files=(row.get("prediction_file") or "", row.get("reference_file") or ""),
            )
        )
    unit = rows[0].get("distance_unit") or "pixels"
    tolerance = _number(rows[0].get("tolerance"), "tolerance", path)
    return replace(found, ruler=Ruler(unit, {"mm": 1.0, "µm": 1000.0}.get(unit, 0.0), tolerance))


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return repr(value) if isinstance(value, int) else repr(float(value))


def _number(text: str | None, key: str, path: Path) -> float:
    if not text:
        return math.nan
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError as error:
        raise UserError(f"{path}: {key} is {text!r}, which is no number: evaluate again") from error
