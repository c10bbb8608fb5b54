from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medmdm import metrics, stats


def test_one_classifier() -> None:
    block = stats.paper_block([1.0, 0.5, math.nan])
    assert block["dice"]["mean"] == 0.75
    assert block["iou"]["mean"] == pytest.approx(0.75 / 1.25)  # of the mean, not the mean IoU
    assert block["aji"]["mean"] == pytest.approx((1 + 0.5 / 1.5) / 2)  # the mean IoU
    assert (block["classifiers"], block["images"], block["undefined"]) == (1, 2, 1)
    assert block["dice"]["sd"] is None
    assert all("paper" in block[name]["label"] for name in ("dice", "iou", "aji"))


def test_several_classifiers() -> None:
    dices = np.array([[0.9, 0.7], [0.5, 0.3], [0.8, math.nan]])
    block = stats.paper_block(dices)
    assert (block["classifiers"], block["images"], block["undefined"]) == (3, 1, 1)
    block = stats.paper_block(dices[:2])
    ious = [0.8 / 1.2, 0.4 / 1.6]
    assert (block["dice"]["mean"], block["dice"]["sd"]) == pytest.approx((0.6, np.std([0.8, 0.4], ddof=1)))
    assert (block["iou"]["mean"], block["iou"]["sd"]) == pytest.approx((np.mean(ious), np.std(ious, ddof=1)))


@pytest.mark.parametrize(("dice", "sd", "iou"), [(0.9195, 0.0125, 0.8513), (0.9160, 0.0069, 0.8451)])
def test_published_iou_follows_from_published_dice(dice: float, sd: float, iou: float) -> None:
    # The paper's table has GlaS 91.95 ± 1.25 with 85.13, and 91.60 ± 0.69 with 84.51, over ten classifiers.
    members = np.linspace(-1, 1, 10)
    members = dice + sd * members / members.std(ddof=1)
    assert stats.paper_block(members[:, None])["iou"]["mean"] == pytest.approx(iou, abs=1e-4)


def test_binary_aji_is_measured_by_aji(rng: np.random.Generator) -> None:
    maps = rng.random((2, 4, 9, 8)) < 0.5
    pairs = list(zip(*maps, strict=True))
    block = stats.paper_block([metrics.dice(*pair) for pair in pairs])
    assert block["aji"]["mean"] == pytest.approx(np.mean([metrics.aji(*pair) for pair in pairs]))


def test_nothing_to_report() -> None:
    block = stats.paper_block([math.nan])
    assert block["iou"]["mean"] is None
    assert json.dumps(block, allow_nan=False)
    with pytest.raises(ValueError, match="shape"):
        stats.paper_block([])
