"""Real annotations and damaged copies, scored by the method's published program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread

from medmdm import metrics

CASES = json.loads((Path(__file__).parents[1] / "golden" / "metrics" / "expected.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_published_values(case: dict, golden: Path) -> None:
    pred, true = (imread(golden / "metrics" / f"{case['case']}_{side}.png") for side in ("pred", "true"))
    scores = metrics.instance_scores(pred, true)
    assert (scores["n_true"], scores["n_pred"]) == (case["n_true"], case["n_pred"])
    assert metrics.dice(pred, true) == pytest.approx(case["pixel_dice"], abs=1e-6)
    assert metrics.iou(pred, true) == pytest.approx(case["pixel_iou"], abs=1e-6)
    pixels = metrics.pixel_scores((pred > 0).astype(int), (true > 0).astype(int), 2, surface=False)[1]
    assert (pixels["dice"], pixels["iou"]) == (metrics.dice(pred, true), metrics.iou(pred, true))
    assert scores["aji"] == metrics.aji(pred, true) == pytest.approx(case["aji"], abs=1e-6)
    assert scores["object_dice"] == metrics.object_dice(pred, true) == pytest.approx(case["object_dice"], abs=1e-4)
    distance = case["object_hausdorff"]
    assert scores["object_hausdorff"] == metrics.object_hausdorff(pred, true) == pytest.approx(distance, abs=1e-4)


def test_paper_aji_is_the_iou_of_binary_maps(golden: Path) -> None:
    case = CASES[0]["case"]
    pred, true = (imread(golden / "metrics" / f"{case}_{side}.png") > 0 for side in ("pred", "true"))
    assert metrics.aji(pred, true) == pytest.approx(metrics.iou(pred, true), abs=1e-12)
    assert not np.isclose(metrics.aji(pred, true), CASES[0]["aji"])
