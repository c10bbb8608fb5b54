from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medmdm.errors import UserError
from medmdm.reports.study import read_study, summarise_study
from tests.reports.runs import study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return study(tmp_path / "study.csv", [f"case_{i}" for i in range(12)])


def test_a_row_for_each_point_of_the_curve(path: Path) -> None:
    rows = summarise_study(read_study(path))
    assert [(row["backbone"], row["shots"]) for row in rows] == [
        (backbone, shots) for backbone in ("mdm", "random") for shots in (1, 4, 16)
    ]
    table = pd.read_csv(path)
    for row in rows:
        cell = table[(table.backbone == row["backbone"]) & (table.shots == row["shots"])]
        assert row["dice"]["mean"] == pytest.approx(cell.dice.mean())
        assert row["dice"]["draws"] == pytest.approx([cell[cell.draw == draw].dice.mean() for draw in range(3)])
        by_case = cell.groupby("case").dice.mean()
        assert row["dice"]["case_sd"] == pytest.approx(by_case.std())
        low, high = row["dice"]["interval"]
        assert (low + high) / 2 == pytest.approx(by_case.mean())
        assert (row["dice"]["unit"], row["dice"]["n_draws"], row["dice"]["n_seeds"]) == ("images", 3, [2, 2])


def test_patients_are_what_is_counted_where_there_are_enough(path: Path) -> None:
    patients = {f"case_{i}": f"p{i % 10}" for i in range(12)}
    row = summarise_study(read_study(path), patients)[0]
    assert row["dice"]["unit"] == "patients"


def test_one_draw_and_one_seed_have_no_spread(path: Path) -> None:
    table = read_study(path)
    row = summarise_study(table[(table["draw"] == 0) & (table["seed"] == 0)])[0]
    assert (row["dice"]["draw_sd"], row["dice"]["seed_sd"]) == (None, None)
    assert np.isfinite(row["dice"]["case_sd"])


def test_wrong_tables_are_named(path: Path, tmp_path: Path) -> None:
    table = pd.read_csv(path)
    for broken, said in (
        (table.rename(columns={"shots": "shot"}), r"no column 'shots' \(did you mean 'shot'"),
        (table.assign(shots="few"), "'shots' must be the number"),
        (table.iloc[:0], "'shots' must be the number"),
    ):
        broken.to_csv(path, index=False)
        with pytest.raises(UserError, match=said):
            read_study(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "empty.csv")
