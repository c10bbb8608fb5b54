"""Missing values in a data list, in any column; and ids of patients, which are one whatever wrote them."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmdm.artifacts.pretrained import make_ledger, patient_hashes
from medmdm.data.lists import DataList, load_data_list
from medmdm.data.splits import k_folds, patient_groups, split_by_patient
from medmdm.errors import UserError
from medmdm.patients import patient_id
from medmdm.runs.record import EvaluatedCase
from medmdm.stats import paired, subgroups, summarise
from tests.bundle_runs import Run
from tests.made import refused
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

ONE = (1, "1", " 1", 1.0, "1.0", "1 ", np.int64(1), np.float64(1))


def listed(**columns: list[Any]) -> DataList:
    """A list with further columns, as pandas and ``json`` write it."""
    rows = pd.DataFrame({"image": [f"{i}.png" for i in range(3)], "label": [f"{i}_m.png" for i in range(3)], **columns})
    content = json.dumps({"name": "x", "labels": {"background": 0, "a": 1}, "training": rows.to_dict("records")})
    return load_data_list(json.loads(content))


@pytest.mark.parametrize("column", ["age", "grade", "patient_id", "region", "axis", "series_uid", "spacing", "label"])
@pytest.mark.parametrize("missing", [math.nan, None])
def test_a_missing_value_is_no_value(column: str, missing: float | None) -> None:
    entry = {"image": "a.png", "label": "a_m.png", column: missing}
    assert set(load_data_list({"training": [entry]}).training[0]) == {"image", "label"} - {column}


def test_columns_of_pandas() -> None:
    found = listed(age=[50.0, math.nan, 52.0], patient_id=[1.0, math.nan, 2.0], site=["A", None, math.nan])
    image = [{"image": f"{i}.png", "label": f"{i}_m.png"} for i in range(3)]
    assert list(found.training) == [
        {**image[0], "age": 50.0, "patient_id": "1", "site": "A"},
        image[1],
        {**image[2], "age": 52.0, "patient_id": "2"},
    ]


@pytest.mark.parametrize(("entry", "said"), [
    ({"image": math.nan}, r"training\[0\] has no 'image'"),
    ({"image": "a.png", "dose": math.inf}, r"'training'\[0\]: 'dose' is inf: give a finite number"),
    ({"image": "a.png", "more": {"a": [1.0, -math.inf]}}, r"'more': 'a'\[1\] is -inf"),
    ({"image": "a.png", "patient_id": 1.5}, r"training\[0\]: 'patient_id' must be text or a whole number"),
    ({"image": "a.png", "patient_id": " "}, "'patient_id' must be text"),
    ({"image": "a.png", "patient_id": True}, "'patient_id' must be text"),
])  # fmt: skip
def test_what_is_refused(entry: dict[str, Any], said: str) -> None:
    refused(said, load_data_list, {"training": [entry]})


def test_what_the_list_says_of_itself() -> None:
    assert load_data_list({"training": ["a.png"], "spacing": math.nan, "year": math.nan}).information == {}


@pytest.mark.bundle
@pytest.mark.parametrize("column", ["age", "scores", "patient_id"])
def test_a_run(run: Run, pictures: Path, tmp_path: Path, column: str) -> None:  # noqa: F811
    content = json.loads((pictures / "dataset.json").read_text())
    known: dict[str, Any] = {"age": 50.5, "scores": [1.0, 2.0], "patient_id": 7.0}
    for section in ("training", "test"):
        for i, entry in enumerate(content[section]):
            entry.pop("patient_id")
            entry[column] = known[column] if i else ([math.nan, 1.0] if column == "scores" else math.nan)
    (pictures / "dataset.json").write_text(json.dumps(content))
    run("mdm_segment", head={"_target_": "medmdm.heads.ClosedFormHead"})
    rows = list(csv.DictReader((tmp_path / "run" / "per_case.csv").read_text().splitlines()))
    shown = [row.get("patient" if column == "patient_id" else column) for row in rows]
    assert shown == {"age": ["", "50.5"], "scores": ["[None, 1.0]", "[1.0, 2.0]"], "patient_id": ["", "P1"]}[column]


def test_one_patient_everywhere() -> None:
    assert {patient_id(one) for one in ONE} == {"1"}
    assert [patient_id(one) for one in ("01", "1.5", "1a", "-1", -1, 10**17)] == [
        "01",
        "1.5",
        "1a",
        "-1",
        "-1",
        str(10**17),
    ]
    assert patient_id(None) is patient_id(math.nan) is None
    assert {patient_id(text) for text in ("nan", " NaN ", "None", "<NA>", "NaT")} == {None}
    entries = [{"image": f"{i}.png", "patient_id": one} for i, one in enumerate((*ONE[:4], 2, "3"))]
    names = {"0.png", "1.png", "2.png", "3.png"}
    assert [{e["image"] for e in group} for group in patient_groups(entries)] == [names, {"4.png"}, {"5.png"}]
    divisions: list[Callable[[], Any]] = [lambda: split_by_patient(entries, 0.3, seed=0), lambda: k_folds(entries, 3)]
    for division in divisions:
        parts = [{e["image"] for e in part} for part in division()]
        assert sum(names <= part for part in parts) == 1
        assert sum(bool(names & part) for part in parts) == 1
    ledger = make_ledger(["a"], ONE)
    assert ledger["patients"] == patient_hashes(["1"], ledger["salt"])
    assert {EvaluatedCase.of({"case": "a", "image": "a", "patient_id": p}, Path()).patient for p in ONE} == {"1"}


def test_one_patient_in_statistics() -> None:
    """Twenty images of ten patients, whose ids were written in two ways."""
    values = np.linspace(0.1, 0.9, 20)
    ids: list[Any] = [*range(10), *(f" {i}" for i in range(10))]
    plain = [i % 10 for i in range(20)]
    assert summarise(values, ids) == summarise(values, plain)
    assert (summarise(values, ids).unit, summarise(values, ids).n_patients) == ("patients", 10)
    assert paired(values, values[::-1].copy(), ids) == paired(values, values[::-1].copy(), plain)
    table = pd.DataFrame({"g": ["a"] * 20, "v": values, "p": pd.Series(ids, dtype=object), "q": plain})
    assert subgroups(table, "g", "v", "p") == subgroups(table, "g", "v", "q")


@pytest.mark.parametrize("other", [7, " 7", 7.0])
def test_a_patient_in_two_sections_is_found(other: Any) -> None:
    from medmdm.check.sharing import shared_patients

    content = {"training": [{"image": "a.png", "patient_id": "7"}], "test": [{"image": "b.png", "patient_id": other}]}
    assert [one.check for one in shared_patients(load_data_list(content))] == ["patient-in-two-sections"]


def test_a_number_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="must be text or a whole number"):
        patient_id([1])
