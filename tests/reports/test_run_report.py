from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from medmdm.cli import main
from medmdm.errors import UserError
from medmdm.reports import write_report
from tests.reports.runs import change, change_case, columns, picture_run, volume_run

FILES = ("index.html", "per_case.csv", "summary.json", "summary.md")


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


@pytest.mark.slow
def test_a_report_is_four_files_the_same_each_time_and_whole_after_a_kill(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=4)
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "index.html"
    assert {path.name for path in run.iterdir()} - before == set(FILES)
    first = contents(run)
    write_report(run)
    assert contents(run) == first
    change(run, dataset="another")
    with patch("medmdm.files.os.replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write_report(run)
    assert contents(run) == first  # a killed report leaves the old one
    write_report(run)
    assert not list(run.glob(".*.part"))


@pytest.mark.slow
def test_it_is_made_again_from_the_table_when_the_masks_are_gone(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=5)
    write_report(run)
    (run / "masks" / "case_2.png").unlink()
    write_report(run)
    first, table = json.loads((run / "summary.json").read_text()), (run / "per_case.csv").read_bytes()
    assert first["cases"]["excluded"] == 1  # one missing mask is not taken from an old table
    assert columns(run / "per_case.csv")[2]["dice"] == ""
    shutil.rmtree(run / "masks")
    write_report(run)
    again = json.loads((run / "summary.json").read_text())
    assert (first.pop("source"), again.pop("source")) == ("masks", "per_case.csv")
    assert again == first
    assert (run / "per_case.csv").read_bytes() == table
    page = (run / "index.html").read_text()
    assert "for the masks are gone" in page
    assert "There is no picture of this case" in page
    shutil.rmtree(tmp_path / "data")  # the same where the data are gone
    write_report(run)
    assert json.loads((run / "summary.json").read_text())["scores"] == first["scores"]


def test_wrong_cases_are_named_and_counted_first_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = volume_run(tmp_path, cases=3)
    (run / "masks" / "vol_0.nii.gz").unlink()
    change_case(run, 1, label=None)
    with pytest.raises(UserError, match=r"vol_0 has a truth, .* is missing \(1 more case is wrong\)"):
        write_report(run, strict=True)
    assert not (run / "index.html").exists()
    write_report(run)
    line = "1 case scored, 2 excluded"
    assert line in (run / "summary.md").read_text().splitlines()[0]
    text = re.sub(r"<(style|script).*?</\1>", "", (run / "index.html").read_text(), flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", " ", text.partition("<main>")[2])
    assert body.split()[:5] == line.split()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "vol_0 has a truth, but its predicted mask vol_0.nii.gz is missing",
        "vol_1 has no label in the data list: it cannot be scored",
    ]


def test_no_patient_id_leaves_the_run_unless_asked_for(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    # An id in a file's name, in a column, in a damaged case's reason and in the run's record.
    shutil.copy(tmp_path / "data" / "case_2.png", tmp_path / "data" / "SECRET-1_slide.png")
    change_case(run, 2, case="SECRET-1_slide", image="SECRET-1_slide.png", columns={"from": "SECRET-1"})
    (run / "masks" / "case_0.png").rename(run / "masks" / "SECRET-0.png")
    change_case(run, 0, prediction="masks/SECRET-0.png")
    change_case(run, 1, prediction="masks/SECRET-0_gone.png")
    (run / "run.json").write_text(json.dumps({"config": {"x": "SECRET-1"}, "patient_ids": ["SECRET-0", "9"]}))
    write_report(run)
    assert [name for name, content in contents(run).items() if b"SECRET" in content] == []
    written = [(row["case"], row["patient"]) for row in columns(run / "per_case.csv")]
    assert written == [("case_0", "P1"), ("case_1", ""), ("P2_slide", "P2")]
    shutil.rmtree(run / "masks")
    write_report(run)  # reads its own table, with the names it wrote
    assert b"SECRET" not in (run / "index.html").read_bytes()
    write_report(run, keep_patient_ids=True)
    assert b"SECRET-0" in (run / "index.html").read_bytes()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [picture_run(tmp_path, cases=3, name=name) for name in ("a", "b")]
    assert main(["report", *map(str, runs), "--no_surface"]) == 0
    assert capsys.readouterr().out.split() == [str(run / "index.html") for run in runs]
    (runs[0] / "masks" / "case_0.png").unlink()
    assert main(["report", str(runs[0]), "--strict"]) == 1
    assert capsys.readouterr().err.startswith("error: case_0 has a truth")
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "evaluation.json does not exist" in capsys.readouterr().err
