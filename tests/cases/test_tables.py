"""What tables and sentences look like: one image is one image, no cell is a formula, nothing is <NA>."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from medmdm.errors import counted
from medmdm.files import no_formula, plain_cell, table_text
from medmdm.prepare import prepare
from medmdm.reports.rendering import csv_text
from medmdm.stats import summarise
from tests.prepare import layouts


@pytest.mark.parametrize(("number", "said"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_counted(number: int, said: str) -> None:
    assert counted(number, "image") == said
    assert counted(number, "image", "is", "are") == f"{said} {'is' if number == 1 else 'are'}"


def test_a_warning_of_one_image() -> None:
    assert summarise([0.5]).warnings == ("Only 1 image: intervals cover less than they claim, or say little.",)


@pytest.mark.parametrize("text", ["=1+1", "@sum", "+a", "-x", "=cmd|' /C calc'!A0", "\t=1"])
def test_a_formula_is_text(text: str) -> None:
    assert no_formula(text) == f"'{text}"
    assert plain_cell(no_formula(text)) == text
    cells = next(csv.reader(io.StringIO(csv_text([["a", text]]), newline="")))
    assert cells == ["a", f"'{text}"]
    table = pd.read_csv(io.StringIO(table_text(pd.DataFrame({"case": [text], "value": [-0.5]})), newline=""))
    assert table["value"][0] == -0.5
    assert str(table["case"][0]).startswith("'")


@pytest.mark.parametrize("text", ["-0.5", "+1", "-inf", "1e-3", "", "a=b", "x-1", "'quoted'"])
def test_numbers_and_other_text_stay(text: str) -> None:
    assert no_formula(text) == plain_cell(text) == text


def test_rows_without_labels(tmp_path: Path) -> None:
    """Objects are counted where there are labels, and a dash stands where there are none."""
    table = prepare("dsb2018", layouts.MAKERS["dsb2018"](tmp_path / "dsb2018"), tmp_path / "made")
    assert "<NA>" not in table
    row = next(line for line in table.splitlines() if line.split()[:1] == ["test"])
    assert row.split()[2:4] == ["0", "-"]
