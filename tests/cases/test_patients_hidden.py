"""No patient's id and no path of this computer in what leaves a run folder."""

import json
from pathlib import Path

import pytest

from medmdm.cli import main
from medmdm.reports import write_report
from medmdm.reports.pseudonyms import without_paths
from tests.bundle_runs import HEAD, Run
from tests.reports.runs import change, picture_run
from tests.segment.conftest import pictures, run  # noqa: F401  fixtures

LEAVES = ("index.html", "summary.json", "summary.md", "per_case.csv", "segmenter.pt", "plan.json")


def test_training_patients_of_a_run(run: Run, tmp_path: Path, pictures: Path) -> None:  # noqa: F811
    content = json.loads((pictures / "dataset.json").read_text())
    for section in ("training", "test"):
        for entry in content[section]:
            patient, number = f"MUELLER-{entry['image'][0]}", entry["image"][0]
            for key, name in (("image", f"{patient}.png"), ("label", f"{patient}_mask.png")):
                (pictures / entry[key]).rename(pictures / name)
                entry[key] = name
            entry["patient_id"] = patient
            assert number.isdigit()
    (pictures / "dataset.json").write_text(json.dumps(content))
    folders = [tmp_path / "run", tmp_path / "other", tmp_path / "evaluated"]
    run("mdm_segment")
    run("mdm_segment", run_dir=str(folders[1]), shots=3, head={**HEAD, "members": 3})
    run("mdm_evaluate", run_dir=str(folders[2]), segmenter=str(folders[0] / "segmenter.pt"))
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "compared")]) == 0
    leaving = [folder / name for folder in folders for name in LEAVES if (folder / name).is_file()]
    leaving += [path for path in (tmp_path / "compared").iterdir() if path.is_file()]
    assert len(leaving) > 18
    for path in leaving:
        for secret in (b"MUELLER", str(tmp_path).encode()):
            assert secret not in path.read_bytes(), (path, secret)
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["protocol"]["training_cases"] == ["P3", "P4", "P5", "P6"]  # P1 and P2 are those tested
    assert summary["protocol"]["training_patients"] == ["P3", "P4", "P5", "P6"]
    assert summary["protocol"]["backbone"] == "model.pt"
    assert len(summary["protocol"]["segmenter_sha256"]) == 64
    assert summary["protocol"]["segmenter_sha256"] in (folders[0] / "index.html").read_text()
    write_report(folders[0], keep_patient_ids=True)
    assert b"MUELLER-0" in (folders[0] / "index.html").read_bytes()


@pytest.mark.slow
def test_training_cases_of_a_record_of_0_1(tmp_path: Path) -> None:
    runs = [picture_run(tmp_path, cases=3, name=name) for name in ("a", "b")]
    for number, one in enumerate(runs):
        change(
            one, protocol={"training_cases": [f"MUELLER-{k}" for k in range(2 + number)], "backbone": "/home/x/m.pt"}
        )
        write_report(one)
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "compared")]) == 0
    for path in [*(tmp_path / "compared").iterdir(), *(one / name for one in runs for name in LEAVES[:4])]:
        assert b"MUELLER" not in path.read_bytes(), path
        assert b"/home/x" not in path.read_bytes(), path


def test_paths_are_cut_to_names_and_addresses_are_not() -> None:
    content = {"a": "/home/x/m.pt", "b": ["C:\\Users\\x\\m.pt", "~/m.pt", "\\\\server\\x\\m.pt"]}
    assert without_paths(content) == {"a": "m.pt", "b": ["m.pt", "m.pt", "m.pt"]}
    kept = {"a": "https://doi.org/10.1000/1", "b": "runs/m.pt", "c": 3, "d": None, "e": "n/a", "f": "$a / b"}
    assert without_paths(kept) == kept
