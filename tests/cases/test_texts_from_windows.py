"""Text files as programs on Windows write them: byte order marks, UTF-16, semicolons and decimal commas."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.aperio import read_aperio
from medmdm.data.lists import load_data_list
from medmdm.files import delimiter_of, text_of
from medmdm.prepare import prepare
from medmdm.reports.scoring import score_cases
from medmdm.reports.study import read_study
from medmdm.reports.summary import read_per_case, write_per_case
from medmdm.runs.record import Evaluation
from tests.made import refused
from tests.reports.runs import picture_run
from tests.written import picture

MARKED = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("encoding", [*MARKED, "utf-16-le"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_data_list(encoding: str, line_end: str, tmp_path: Path) -> None:
    content = {"name": "Zürich", "labels": {"background": 0, "Zyste": 1}, "training": [{"image": "ä.png"}]}
    text = json.dumps(content, ensure_ascii=False, indent=1).replace("\n", line_end)
    (tmp_path / "dataset.json").write_bytes(text.encode(encoding))
    read = load_data_list(tmp_path / "dataset.json")
    assert (read.name, read.training[0]["image"]) == ("Zürich", "ä.png")


def test_a_list_in_no_unicode(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes('{"name": "Zürich", "training": [{"image": "x.png"}]}'.encode("latin-1"))
    refused("dataset.json is not JSON", load_data_list, tmp_path / "dataset.json")


@pytest.mark.parametrize("encoding", MARKED)
def test_colours_of_classes(encoding: str, tmp_path: Path) -> None:
    picture(tmp_path / "s/JPEGImages/a.png", shape=(12, 10, 3))
    colours = np.zeros((12, 10, 3), np.uint8)
    colours[2:5] = (250, 50, 83)
    picture(tmp_path / "s/SegmentationClass/a.png", colours)
    table = "background:0,0,0::\r\nnucleus:250,50,83::\r\n".encode(encoding)
    (tmp_path / "s/labelmap.txt").write_bytes(table)
    assert "1 nucleus 25.0%" in prepare("folder", tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize(("size", "read", "said"), [
    ("0,252000", 0.252, False), ("0.252", 0.252, False), (" 0,5 ", 0.5, False), ("0", None, False), ("", None, False),
    ("0,25 um", None, True), ("1.234,5", None, True), ("nan", None, True), ("-0,25", None, True),
])  # fmt: skip
def test_decimal_commas(size: str, read: float | None, said: bool, tmp_path: Path, caplog) -> None:
    path = tmp_path / f"{size!r}.xml".replace("/", "")
    path.write_text(f'<Annotations MicronsPerPixel="{size}"></Annotations>', encoding="utf-8-sig")
    assert read_aperio(path).microns_per_pixel == read
    assert ("no size of pixels" in caplog.text) == said


def saved_by_excel(path: Path, delimiter: str, encoding: str) -> None:
    """Save a table of ours as Excel does where decimals have a comma."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    if delimiter != ",":
        rows = [rows[0], *([cell.replace(".", ",") if cell.count(".") == 1 and cell.replace(".", "").isdigit() else cell
                            for cell in row] for row in rows[1:])]  # fmt: skip
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


EXCEL = [(",", "utf-8-sig"), (";", "utf-8-sig"), ("\t", "utf-16"), (";", "utf-8")]


@pytest.mark.parametrize(("delimiter", "encoding"), EXCEL)
def test_scores_of_cases(delimiter: str, encoding: str, tmp_path: Path) -> None:
    evaluation = Evaluation.load(picture_run(tmp_path, cases=2))
    path = tmp_path / "per_case.csv"
    write_per_case(score_cases(evaluation), path)
    before = read_per_case(path, evaluation)
    saved_by_excel(path, delimiter, encoding)
    after = read_per_case(path, evaluation)
    assert [case.scores["dice"] for case in after.cases] == [case.scores["dice"] for case in before.cases]
    assert after.ruler == before.ruler
    assert any(0 < case.scores["dice"] < 1 for case in after.cases)


@pytest.mark.parametrize(("delimiter", "encoding"), EXCEL)
def test_study(delimiter: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_text("backbone,head,shots,draw,seed,case,dice,iou\na,ridge,2,0,0,x.png,0.75,0.6\n")
    before = read_study(path)
    saved_by_excel(path, delimiter, encoding)
    after = read_study(path)
    assert after.to_dict() == before.to_dict()
    assert after["dice"][0] == 0.75


def test_what_a_text_is() -> None:
    for encoding in MARKED:
        assert text_of("größe;1\n".encode(encoding)) == "größe;1\n"
    assert [delimiter_of(line) for line in ("a,b", "a;b;c\n1,5;2;3", "a\tb", "a")] == [",", ";", "\t", ","]
