"""Masks that cost nothing, beside the scores of a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from medmdm.data.files.pictures import read_image
from medmdm.errors import UserError
from medmdm.reports import write_report
from medmdm.reports.scoring import score_cases
from medmdm.runs.record import Evaluation
from tests.reports.runs import SHAPE, VOLUME, columns, picture, picture_run, plain_dice, volume_run

NOT_BETTER = "The masks are not shown to be better than one that costs nothing: "


def report(run: Path) -> dict[str, Any]:
    write_report(run, surface=False)
    return dict(json.loads((run / "summary.json").read_text()))


def with_mean_mask(run: Path, mask: np.ndarray) -> Path:
    np.savez(run / "mean_mask.npz", mask=mask)
    return run


def test_both_stand_beside_the_scores_on_the_same_cases(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:30, 10:50] = 1
    run = with_mean_mask(picture_run(tmp_path, cases=5), mask)
    nothing = np.zeros(SHAPE, np.uint8)
    for path in (tmp_path / "data" / "case_4_label.png", run / "masks" / "case_4.png"):  # it has no score
        picture(path, nothing)
    summary = report(run)
    truths = [read_image(tmp_path / "data" / f"case_{k}_label.png")[0] > 0 for k in range(4)]
    expected = {
        "all_foreground": [plain_dice(np.ones(SHAPE, bool), truth) for truth in truths],
        "mean_mask": [plain_dice(mask > 0, truth) for truth in truths],
    }
    own = np.array([float(row["dice"]) for row in columns(run / "per_case.csv")[:4]])
    for name, values in expected.items():
        found, gain = summary["baselines"][name], own - values
        assert [float(row[f"{name}_dice"]) for row in columns(run / "per_case.csv")[:4]] == pytest.approx(values)
        assert (found["scores"]["dice"]["mean"], found["scores"]["dice"]["n"]) == pytest.approx((np.mean(values), 4))
        assert found["scores"]["iou"]["mean"] == pytest.approx(np.mean([d / (2 - d) for d in values]))
        assert found["class_scores"] == {}
        interval = stats.t.interval(0.95, 3, gain.mean(), stats.sem(gain))
        assert (found["difference"]["difference"], found["difference"]["n"]) == pytest.approx((gain.mean(), 4))
        assert found["difference"]["interval"] == pytest.approx(interval)
        for file in ("index.html", "summary.md"):
            assert f"{np.mean(values):.4f}" in (run / file).read_text()
    assert not any(note.startswith(NOT_BETTER) for note in summary["notes"])
    shutil.rmtree(run / "masks")  # per_case.csv knows them as well
    assert report(run)["baselines"] == summary["baselines"]


def test_what_is_not_better_is_said_in_one_sentence(tmp_path: Path) -> None:
    run = with_mean_mask(picture_run(tmp_path, cases=4), np.ones(SHAPE, np.uint8))
    for k in range(4):
        truth = (read_image(tmp_path / "data" / f"case_{k}_label.png")[0] > 0).astype(np.uint8)
        picture(run / "masks" / f"case_{k}.png", 1 - truth)
    summary = report(run)
    mean = summary["baselines"]["all_foreground"]["scores"]["dice"]["mean"]
    (note,) = [note for note in summary["notes"] if note.startswith(NOT_BETTER)]
    said = f"marking every known pixel has a mean Dice of {mean:.4f} on the same cases (difference "
    assert f"{said}\N{MINUS SIGN}{mean:.4f}, 95 % interval " in note
    assert note in (run / "summary.md").read_text()
    assert note in (run / "index.html").read_text()


def test_one_case_shows_nothing_to_be_better(tmp_path: Path) -> None:
    (note,) = [n for n in report(picture_run(tmp_path, cases=1))["notes"] if n.startswith(NOT_BETTER)]
    assert note.endswith("no interval).")


def test_each_of_several_classes_has_its_own_and_ignored_voxels_are_left_out(tmp_path: Path) -> None:
    mask = np.zeros(VOLUME, np.uint8)
    mask[0, 0] = 1  # where nothing is known
    mask[4:8, 3:12, 3:9] = 1
    mask[8:10, 3:12, 3:9] = 2
    run = with_mean_mask(volume_run(tmp_path), mask)
    summary = report(run)
    known, size = np.prod(VOLUME) - VOLUME[2], 4 * 9 * 6
    every = 2 * size / (known + size)
    found = summary["baselines"]["all_foreground"]
    assert [found["class_scores"][k]["dice"]["mean"] for k in "12"] == pytest.approx([every, every])
    assert found["scores"]["dice"]["mean"] == pytest.approx(every)
    found = summary["baselines"]["mean_mask"]
    assert [found["class_scores"][k]["dice"]["mean"] for k in "12"] == pytest.approx([1, 2 / 3])
    assert found["scores"]["dice"]["mean"] == pytest.approx(5 / 6)
    assert "| mean mask | 0.8333 | 0.7500 | 1.0000 | 0.6667 |" in (run / "summary.md").read_text()
    assert "Dice of body" in (run / "index.html").read_text()


def test_a_folder_without_a_mean_mask_and_one_of_another_size_do_not_show_it(tmp_path: Path) -> None:
    for run in (
        picture_run(tmp_path / "a", 2),
        with_mean_mask(picture_run(tmp_path / "b", 2), np.ones(SHAPE[::-1], int)),
    ):
        assert set(report(run)["baselines"]) == {"all_foreground"}
        assert "Mean mask" not in (run / "index.html").read_text()
    (run / "mean_mask.npz").unlink()
    assert set(report(run)["baselines"]) == {"all_foreground"}
    (run / "mean_mask.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"mean_mask\.npz cannot be read .*: segment again"):
        score_cases(Evaluation.load(run))


def test_a_table_of_an_earlier_version_shows_none(tmp_path: Path) -> None:
    run = picture_run(tmp_path, 2)
    write_report(run)
    rows = columns(run / "per_case.csv")
    kept = [name for name in rows[0] if "all_foreground" not in name]
    (run / "per_case.csv").write_text("\n".join(",".join(row) for row in [kept, *([r[k] for k in kept] for r in rows)]))
    shutil.rmtree(run / "masks")
    assert report(run)["baselines"] == {}
    assert "cost nothing" not in (run / "index.html").read_text()
