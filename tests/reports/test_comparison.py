from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medmdm.cli import main
from medmdm.errors import UserError
from medmdm.reports import write_comparison, write_report
from medmdm.reports.comparison import compare, load_runs
from tests.reports.runs import cases_of, change, change_case, columns, picture_run, volume_run


def dices(run: Path) -> dict[str, float]:
    return {row["case"]: float(row["dice"]) for row in columns(run / "per_case.csv") if row["dice"]}


@pytest.mark.slow
def test_two_runs_on_the_same_cases(tmp_path: Path) -> None:
    good, bad = (picture_run(tmp_path, cases=12, name=name, shift=shift) for name, shift in (("good", 1), ("bad", 3)))
    change(bad, protocol={"head": "other", "shots": 8})
    page = write_comparison([good, bad], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html", "comparison.csv", "comparison.json", "comparison.md"
    }  # fmt: skip
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    found = {one["metric"]: one for one in content["comparisons"]}
    one, hausdorff = found["dice"], found["hausdorff95"]
    difference = np.array(list(dices(good).values())) - np.array(list(dices(bad).values()))
    assert one["difference"] == pytest.approx(difference.mean())
    assert one["t_interval"] == pytest.approx([*stats.ttest_1samp(difference, 0).confidence_interval()])
    signs = np.sign(difference.round(12)).tolist()
    assert [one[key] for key in ("wins", "ties", "losses")] == [signs.count(sign) for sign in (1, 0, -1)]
    assert hausdorff["difference"] < 0
    assert one["verdict"] == hausdorff["verdict"] == "A better"  # less distance is better
    assert content["protocols"][0] == {"what": "head", "A": "ridge", "B": "other"}
    rows = columns(tmp_path / "out" / "comparison.csv")
    assert [float(row["dice_A"]) for row in rows] == list(dices(good).values())
    assert [row["patient"] for row in rows][:3] == ["P1", "P1", "P2"]
    text = page.read_text()
    assert "12 cases scored in both runs, none left out" in text
    assert "SECRET" not in text + json.dumps(content)


@pytest.mark.slow
def test_holm_over_all_tests(tmp_path: Path) -> None:
    runs = load_runs([picture_run(tmp_path, cases=10, name=f"r{i}", shift=i + 1) for i in range(3)])
    content = compare(runs, ["dice", "precision", "aji"])
    found = content["comparisons"]
    p = [one["p_value"] for one in found]
    assert len(p) == content["tests"] == 9
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate([p[i] * (len(p) - k) for k, i in enumerate(order)])
    assert [found[i]["p_holm"] for i in order] == pytest.approx(np.minimum(stepped, 1))
    alone = compare(runs, ["dice"])["comparisons"]
    assert [one["p_holm"] for one in alone] <= [one["p_holm"] for one in found if one["metric"] == "dice"]
    assert all((one["verdict"] == "no difference shown") == (one["p_holm"] >= 0.05) for one in found)


def test_cases_are_paired_by_name_in_whatever_order(tmp_path: Path) -> None:
    a, b = (picture_run(tmp_path, cases=6, name=name) for name in "ab")
    change(b, cases=cases_of(b)[:0:-1])  # turned round, and one fewer
    (a / "masks" / "case_4.png").unlink()
    content = compare(load_runs([a, b]))
    assert content["cases"] == 4
    assert set(content["left_out"]) == {"case_0", "case_4"}
    assert all(one["difference"] == 0 for one in content["comparisons"])
    assert {row["case"] for row in content["rows"]} == {"case_1", "case_2", "case_3", "case_5"}
    assert any("2 cases not scored in every run are left out" in note for note in content["notes"])


def test_names_with_patient_ids_are_paired_too(tmp_path: Path) -> None:
    a, b = (picture_run(tmp_path, cases=4, name=name) for name in "ab")
    for run in (a, b):
        for k in range(4):
            change_case(run, k, case=f"SECRET-{k // 2}_{k}")
    change(b, cases=cases_of(b)[::-1])  # so that its P1 is the other's P2
    for run in (a, b):
        write_report(run)
    content = compare(load_runs([a, b]))
    assert content["cases"] == 4
    assert all(one["difference"] == 0 for one in content["comparisons"])
    assert [row["case"] for row in content["rows"]] == ["P1_0", "P1_1", "P2_2", "P2_3"]


def test_what_makes_a_comparison_unfair_is_said_and_other_units_are_not_compared(tmp_path: Path) -> None:
    a, b = (picture_run(tmp_path, cases=3, name=name) for name in "ab")
    change(b, stamp={"kind": "inductive"}, dataset="else", cases=[case | {"spacing": None} for case in cases_of(b)])
    runs = load_runs([a, b])
    content = compare(runs)
    notes = "\n".join(content["notes"])
    assert "not seen the same of the test cases: A patients shared, B inductive" in notes
    assert "data sets of different names: A on made, test, B on else, test" in notes
    assert "hausdorff95" not in content["metrics"]
    with pytest.raises(UserError, match="hausdorff95 cannot be compared, for the runs measure distances in different"):
        compare(runs, ["hausdorff95"])


def test_mistakes(tmp_path: Path) -> None:
    a, c = (picture_run(tmp_path / name, cases=2) for name in "ac")
    b = volume_run(tmp_path / "b")
    for call, said in (
        (lambda: load_runs([a]), "1 run given"),
        (lambda: load_runs([a, a.parent / "run"]), "given twice"),
        (lambda: compare(load_runs([a, b])), "no scored case in common"),
        (lambda: compare(load_runs([a, c]), ["dic"]), r"'dic' is no metric \(did you mean 'dice'"),
        (lambda: write_comparison([a, c], a), "is a run folder"),
    ):
        with pytest.raises(UserError, match=said):
            call()
    assert [run.name for run in load_runs([a, c])] == ["a/run", "c/run"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(picture_run(tmp_path, cases=3, name=name)) for name in ("x", "y")]
    assert main(["compare", *runs, "--metric", "dice", "--metric", "iou"]) == 0
    out = capsys.readouterr().out
    assert "| Dice | A \N{MINUS SIGN} B |" in out
    assert out.splitlines()[-1] == str(tmp_path / "compare_x_y" / "index.html")
    assert main(["compare", runs[0]]) == 1
    assert "at least two" in capsys.readouterr().err
