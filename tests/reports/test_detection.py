"""Average precision in the report: of all cases together, from what an evaluation left behind."""

import json
from pathlib import Path

import numpy as np
import pytest

from medmdm.metrics import average_precision, match_boxes, object_boxes
from medmdm.reports import Report, write_report
from medmdm.reports.case_files import read_case
from medmdm.reports.scoring import score_cases
from medmdm.reports.summary import read_per_case
from medmdm.runs.record import EVALUATION_FILE, Evaluation
from medmdm.stats import jackknife_interval, t_interval
from tests.reports.runs import picture_run


def scored_run(root: Path, cases: int = 9) -> Path:
    """A run whose objects have scores: the first object of each case is the least sure one."""
    run = picture_run(root, cases=cases)
    evaluation = Evaluation.load(run)
    content = json.loads((run / EVALUATION_FILE).read_text())
    for number, (case, entry) in enumerate(zip(evaluation.cases, content["cases"], strict=True)):
        objects = read_case(case, evaluation).predicted_instances
        assert objects is not None
        found = len(np.unique(objects[objects > 0]))
        entry["object_scores"] = [round(0.3 + 0.01 * number + 0.2 * place, 7) for place in range(found)]
    (run / EVALUATION_FILE).write_text(json.dumps(content))
    return run


def test_pooled_over_cases_with_an_interval(tmp_path: Path) -> None:
    run = scored_run(tmp_path)
    write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    evaluation = Evaluation.load(run)
    matches = []
    for case in evaluation.cases:
        arrays = read_case(case, evaluation)
        assert arrays.truth_instances is not None
        boxes = object_boxes(arrays.predicted_instances), object_boxes(arrays.truth_instances)
        matches.append(match_boxes(boxes[0], case.object_scores, boxes[1]))
    pooled = average_precision(matches)
    for key, value in pooled.items():
        entry = summary["scores"][key]
        assert entry["pooled"] == pytest.approx(value)
        alone = [average_precision([one])[key] for one in matches]
        assert entry["case_mean"] == pytest.approx(np.mean(alone))
        without = [average_precision(matches[:n] + matches[n + 1 :])[key] for n in range(len(matches))]
        # Five patients are too few: images are left out.
        pseudo = len(matches) * value - (len(matches) - 1) * np.array(without)
        half = (np.subtract(*t_interval(pseudo)[::-1])) / 2
        np.testing.assert_allclose(entry["pooled_interval"], [value - half, value + half])
    assert 0 < pooled["ap"] < pooled["ap50"] < 1
    assert any(f"AP {pooled['ap']:.4f} (95 % interval" in note for note in summary["notes"])
    assert "COCO" in (run / "summary.md").read_text()
    assert "COCO" in (run / "index.html").read_text()


def test_in_memory_as_from_files_and_gone_with_the_masks(tmp_path: Path) -> None:
    run = scored_run(tmp_path, cases=4)
    evaluation = Evaluation.load(run)
    write_report(run)
    first = (run / "summary.json").read_bytes()
    held = {case.name: read_case(case, evaluation) for case in evaluation.cases}
    Report().write(evaluation, Report().score(evaluation, lambda case: held[case.name]))
    assert (run / "summary.json").read_bytes() == first
    evaluation.save()
    assert Evaluation.load(run).cases == evaluation.cases
    table = read_per_case(run / "per_case.csv", evaluation)
    assert [case.scores["ap50"] for case in table.cases] == [
        case.scores["ap50"] for case in score_cases(evaluation, surface=False).cases
    ]
    assert all(case.matches is None for case in table.cases)


def test_scores_of_other_objects_are_not_taken(tmp_path: Path) -> None:
    run = scored_run(tmp_path, cases=3)
    content = json.loads((run / EVALUATION_FILE).read_text())
    content["cases"][1]["object_scores"].append(0.5)
    (run / EVALUATION_FILE).write_text(json.dumps(content))
    found = score_cases(Evaluation.load(run), surface=False)
    assert ["ap" in case.scores for case in found.cases] == [True, False, True]
    write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scores"]["ap"]["pooled"] is None
    assert summary["scores"]["ap"]["undefined"] == 1


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 14)
    without = [np.delete(values, n).mean() for n in range(len(values))]
    np.testing.assert_allclose(jackknife_interval(values.mean(), without), t_interval(values))
    assert np.isnan(jackknife_interval(0.5, [0.5])).all()
    assert np.isnan(jackknife_interval(0.5, [0.5, np.nan])).all()
