from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import read_volume
from medmdm.metrics.instances import aji, object_dice
from medmdm.reports import Report, write_report
from medmdm.reports.case_files import read_case
from medmdm.reports.scoring import Ruler, choose_ruler, score_cases
from medmdm.runs.record import Evaluation
from tests.reports.runs import cases_of, change, change_case, picture, picture_run, plain_dice, volume_run


def test_pictures_get_pixel_and_object_scores(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    evaluation = Evaluation.load(run)
    found = score_cases(evaluation)
    assert [case.number for case in found.cases] == [0, 1, 2]
    assert found.excluded == found.notes == []
    for k, case in enumerate(found.cases):
        true = read_image(tmp_path / "data" / f"case_{k}_label.png")[0]
        pred = read_image(run / "instances" / f"case_{k}.png")[0]
        assert case.scores["dice"] == pytest.approx(plain_dice(pred > 0, true > 0))
        assert case.scores["tp_1"] == np.sum((pred > 0) & (true > 0))
        assert case.scores["aji"] == pytest.approx(aji(pred, true))
        assert case.scores["object_dice"] == pytest.approx(object_dice(pred, true))
        assert case.scores["objects_true"] == len(np.unique(true)) - 1
        assert case.scores["uncertainty"] == pytest.approx((3 - k) / 3)
        assert "dice_1" not in case.scores  # one class: it is the case's
    assert found.cases[2].scores["dice"] == 1
    assert [case.seen for case in found.cases] == [False, True, False]
    without = set(score_cases(evaluation, surface=False).cases[0].scores)
    assert not {"hausdorff95", "surface_dice", "boundary_f", "object_hausdorff"} & without
    assert {"dice", "aji"} <= without


def test_volumes_are_scored_whole_with_the_mean_over_classes(tmp_path: Path) -> None:
    run = volume_run(tmp_path)
    found = score_cases(Evaluation.load(run))
    for k, case in enumerate(found.cases):
        true = read_volume(tmp_path / "data" / f"vol_{k}_label.nii.gz").array[0]
        pred = read_volume(run / "masks" / f"vol_{k}.nii.gz").array[0]
        valid = true != 255
        dices = [plain_dice((pred == c) & valid, (true == c) & valid) for c in (1, 2)]
        assert [case.scores[f"dice_{c}"] for c in (1, 2)] == pytest.approx(dices)
        assert case.scores["dice"] == pytest.approx(np.mean(dices))
        assert sum(case.scores[f"{n}_1"] for n in ("tp", "fp", "fn", "tn")) == valid.sum()
        assert 0 < case.scores["surprise"] < 1
        assert "aji" not in case.scores
    # Moved by one voxel along an axis of 2 mm: no voxel of the outline is farther off.
    assert found.ruler.unit == "mm"
    assert found.cases[1].scores["hausdorff95"] == pytest.approx(2.0)


def test_a_class_in_neither_mask_does_not_enter_the_mean_of_a_case(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    change(run, num_classes=4, class_names=["background", "a", "b", "c"], data_list={})
    label = np.zeros((40, 56), np.uint8)
    label[:5], label[10:20] = 1, 3
    picture(tmp_path / "data" / "case_0_label.png", label)
    picture(run / "masks" / "case_0.png", np.where(label == 3, 0, label).astype(np.uint8))
    (case,) = score_cases(Evaluation.load(run)).cases
    found = [case.scores[key] for key in ("dice_1", "dice_2", "dice_3", "dice", "hausdorff95_3")]
    assert found == pytest.approx([1, math.nan, 0, 0.5, math.inf], nan_ok=True, abs=0)


def test_without_a_map_of_objects_connected_parts_count_and_a_note_says_so(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=2)
    change_case(run, 0, instances=None)
    found = score_cases(Evaluation.load(run))
    mask = read_image(run / "masks" / "case_0.png")[0] > 0
    assert found.cases[0].scores["objects_pred"] == ndimage.label(mask, np.ones((3, 3)))[1]  # corners touch
    assert found.notes[0].startswith("No map of objects was written for 1 of 2 cases")


@pytest.mark.slow
def test_arrays_in_memory_give_the_report_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (picture_run, volume_run):
        evaluation = Evaluation.load(make(tmp_path / make.__name__))
        write_report(evaluation.folder)
        expected = {name: (evaluation.folder / name).read_bytes() for name in ("summary.json", "index.html")}
        held = {case.name: read_case(case, evaluation) for case in evaluation.cases}
        with monkeypatch.context() as patch:
            patch.setattr("medmdm.reports.case_files.decode", None)  # nothing is decoded
            scores = Report().score(evaluation, lambda case, held=held: held[case.name])
            Report().write(evaluation, scores)
        assert {name: (evaluation.folder / name).read_bytes() for name in expected} == expected
        case_means = {key: json.loads(expected["summary.json"])["scores"][key]["case_mean"] for key in ("dice", "iou")}
        assert scores.means == case_means


def test_wrong_cases_are_set_aside_and_the_others_scored(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=4)
    (run / "masks" / "case_1.png").unlink()
    change_case(run, 2, spacing=[0.0005, 0.0005, 0.0005])  # three sizes for two axes
    found = score_cases(Evaluation.load(run))
    assert [case.name for case in found.cases] == ["case_0", "case_3"]
    assert [(one.name, one.number) for one in found.excluded] == [("case_1", 1), ("case_2", 2)]
    assert all(
        said in one.reason for said, one in zip(("case_1.png is missing", "spacing"), found.excluded, strict=True)
    )


def test_empty_prediction_and_empty_truth(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    blank = np.zeros((40, 56), np.uint8)
    for folder, file in product(("masks", "instances"), ("case_0.png", "case_1.png")):
        picture(run / folder / file, blank)
    picture(tmp_path / "data" / "case_1_label.png", blank)
    first, second, _ = score_cases(Evaluation.load(run)).cases
    assert (first.scores["dice"], first.scores["aji"], first.scores["hausdorff95"]) == (0, 0, math.inf)
    assert all(math.isnan(second.scores[key]) for key in ("dice", "iou", "aji", "object_dice", "hausdorff95"))


def test_the_unit_of_distances(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    assert choose_ruler(Evaluation.load(run)) == Ruler("µm", 1000, 1.0)  # two pixels of half a micrometre
    change(run, cases=[{**c, "spacing": [0.2, 0.3]} for c in cases_of(run)])
    assert choose_ruler(Evaluation.load(run)).unit == "mm"
    change_case(run, 1, spacing=None)  # one without: all in pixels, or the mean would mix units
    assert choose_ruler(Evaluation.load(run)) == Ruler("pixels", 0, 2)


def test_distances_are_in_that_unit(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=2)
    square = np.zeros((40, 56), np.uint8)
    square[10:20, 10:20] = 1
    picture(tmp_path / "data" / "case_0_label.png", square)
    for kind in ("masks", "instances"):
        picture(run / kind / "case_0.png", np.roll(square, 4, axis=1))
    (case, _) = score_cases(Evaluation.load(run)).cases
    assert case.scores["hausdorff95"] == pytest.approx(4 * 0.5)
    assert case.scores["object_hausdorff"] == pytest.approx(4)  # pixels, as the challenge has it
