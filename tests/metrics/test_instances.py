from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.panoptic_quality import compute_panoptic_quality
from skimage.metrics import contingency_table, hausdorff_distance

from medmdm import metrics
from medmdm.metrics import hausdorff
from tests.metrics import label_maps as slow
from tests.metrics.label_maps import Labels, pairs_of_maps

NAN, INF = math.nan, math.inf
SYMMETRIC = ("dice", "iou", "object_dice", "object_hausdorff", "panoptic_quality")
ALL = (*SYMMETRIC, "aji", "aji_plus", "object_f1")
quick = settings(max_examples=80, deadline=None)


def same(value: float, expected: float) -> bool:
    return value == pytest.approx(expected, abs=1e-12, nan_ok=True)


@quick
@given(pairs_of_maps())
def test_definitions(maps: tuple[Labels, Labels]) -> None:
    scores = metrics.instance_scores(*maps)
    assert same(scores["aji"], slow.aji(*maps))
    assert any(same(scores["aji_plus"], value) for value in slow.aji_plus_values(*maps))
    assert same(scores["object_dice"], slow.object_dice(*maps))
    assert same(scores["object_f1"], slow.object_f1(*maps))
    for name, value in slow.panoptic(*maps).items():
        assert same(scores[name], value)
    for name in ("aji", "aji_plus", "object_dice", "object_f1", "object_hausdorff"):
        assert same(getattr(metrics, name)(*maps), scores[name])
    assert same(metrics.panoptic_quality(*maps), scores["pq"])


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("small_box", [0, 30, hausdorff.SMALL_BOX])
@pytest.mark.slow
def test_hausdorff_is_that_of_the_whole_image(axes: int, small_box: int) -> None:
    # Whatever the size from which boxes count as large: all ways to compute it agree.
    @settings(max_examples=40, deadline=None)
    @given(pairs_of_maps(axes=axes, largest=9 if axes < 3 else 4))
    def check(maps: tuple[Labels, Labels]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hausdorff, "SMALL_BOX", small_box)
            assert same(metrics.object_hausdorff(*maps), slow.object_hausdorff(*maps))

    check()


@pytest.mark.parametrize("small_box", [0, hausdorff.SMALL_BOX])
def test_hausdorff_of_rings_and_far_objects(monkeypatch: pytest.MonkeyPatch, small_box: int) -> None:
    # A ring around its partner, a false alarm far off, and a speckled mask: the furthest pixel is inside, or far.
    monkeypatch.setattr(hausdorff, "SMALL_BOX", small_box)
    y, x = np.ogrid[:90, :130]
    radius = np.hypot(y - 45, x - 50)
    rng = np.random.default_rng(0)
    true = np.where(radius < 40, 4, 0) * (rng.random((90, 130)) < 0.7)
    pred = np.where((radius > 30) & (radius < 38), 9, 0)
    pred[3:6, 125:128] = 2
    true[80:85, 120:129] = 1
    assert same(metrics.object_hausdorff(pred, true), slow.object_hausdorff(pred, true))
    assert same(metrics.object_hausdorff(pred == 9, true == 4), hausdorff_distance(pred == 9, true == 4))


@quick
@given(pairs_of_maps(), st.randoms())
def test_labels_do_not_matter(maps: tuple[Labels, Labels], random) -> None:
    def relabel(labels: Labels) -> Labels:
        names = np.array([0, *random.sample(range(1, 2**40), len(slow.LABELS) - 1)])
        return names[np.searchsorted(slow.LABELS, labels)]

    before, after = metrics.instance_scores(*maps), metrics.instance_scores(*map(relabel, maps))
    assert before.keys() == after.keys()
    assert all(same(after[name], before[name]) for name in before)


@quick
@given(pairs_of_maps())
def test_symmetry_and_perfection(maps: tuple[Labels, Labels]) -> None:
    for name in ALL:
        metric, perfect = getattr(metrics, name), 0.0 if name == "object_hausdorff" else 1.0
        assert name not in SYMMETRIC or same(metric(*maps), metric(*maps[::-1]))
        assert same(metric(maps[0], maps[0]), perfect if maps[0].any() else NAN)


@quick
@given(pairs_of_maps())
def test_table_is_scikit_images(maps: tuple[Labels, Labels]) -> None:
    pred, true = maps
    table = metrics.overlaps(pred, true)
    expected = contingency_table(true, pred).tocoo()
    entries = zip(expected.row, expected.col, expected.data, strict=True)
    common = {(row, column): count for row, column, count in entries if row and column and count}
    names = zip(table.true_labels[table.true_index], table.pred_labels[table.pred_index], strict=True)
    assert dict(zip(names, table.pixels, strict=True)) == common
    assert {*table.true_labels} == {*np.unique(true)} - {0}
    assert (table.true_areas == [(true == label).sum() for label in table.true_labels]).all()
    assert (table.pred_areas == [(pred == label).sum() for label in table.pred_labels]).all()


def test_panoptic_quality_is_monais(rng: np.random.Generator) -> None:
    true = np.kron(rng.permutation(36).reshape(6, 6) + 1, np.ones((7, 5), int))
    pred = np.roll(true, (1, 1), (0, 1)) * (true % 5 > 0)
    scores = metrics.instance_scores(pred, true)
    tensors = torch.from_numpy(pred), torch.from_numpy(true)
    for name, theirs in (("pq", "pq"), ("dq", "rq"), ("sq", "sq")):
        expected = compute_panoptic_quality(*tensors, metric_name=theirs, smooth_numerator=0.0).item()
        assert scores[name] == pytest.approx(expected, abs=1e-6)
    assert 0 < scores["pq_tp"] < 36


def test_by_hand() -> None:
    true = np.zeros((4, 6), np.uint8)
    pred = np.zeros((4, 6), np.int64)
    true[:, :2], true[0, 5] = 10, 250  # 8 pixels, and 1 that nobody finds
    pred[1:, :2], pred[3, 3:5] = 3, 77  # 6 of the 8, and 2 pixels of nothing
    scores = metrics.instance_scores(pred, true)
    assert scores["aji"] == scores["aji_plus"] == 6 / (8 + 1 + 2)
    assert scores["object_dice"] == pytest.approx((6 / 8 * 12 / 14 + 8 / 9 * 12 / 14) / 2)
    assert (scores["object_f1"], scores["object_precision"], scores["object_recall"]) == (0.5, 0.5, 0.5)
    assert (scores["dq"], scores["sq"], scores["pq"]) == (0.5, 0.75, 0.375)
    assert (scores["pq_tp"], scores["pq_iou"], scores["object_tp"]) == (1, 0.75, 1)
    assert (scores["aji_intersection"], scores["aji_union"]) == (6, 11)
    # Object 3 is 1 row from 10. Object 77 (columns 3 and 4, row 3) has its nearest partner in 250, sqrt(13) off, not in
    # 10, sqrt(18) off; 250 has it in 77 then.
    there, back = (6 * 1 + 2 * math.sqrt(13)) / 8, (8 * 1 + 1 * math.sqrt(13)) / 9
    assert scores["object_hausdorff"] == pytest.approx((there + back) / 2)
    assert metrics.dice(pred, true) == pytest.approx(12 / 17)
    assert metrics.iou(pred, true) == pytest.approx(6 / 11)


def test_aji_lets_a_prediction_serve_twice_and_aji_plus_takes_the_best_sum_of_pairs() -> None:
    true, pred = np.array([[1, 1, 2, 2], [5, 5, 5, 5]])[:, None]
    assert (metrics.aji(pred, true), metrics.aji_plus(pred, true)) == (4 / 8, 2 / 6)
    # The best pair, IoU 60/140, leaves nothing for the others; two pairs of 40/100 are better together.
    true, pred = (np.repeat([1, 2], sizes)[None] for sizes in ([100, 40], [40, 100]))
    assert metrics.aji_plus(pred, true) == pytest.approx(80 / 200)


def test_exactly_half_is_no_match() -> None:
    true, pred = np.array([[1, 1, 0]]), np.array([[1, 0, 0]])
    scores = metrics.instance_scores(pred, true)
    assert (scores["object_f1"], scores["pq"]) == (0, 0)
    assert math.isnan(scores["sq"])
    assert metrics.object_f1(np.array([[1, 1, 1]]), true) == 1


NOTHING = dict.fromkeys((*ALL, "object_precision", "object_recall", "dq", "sq"), NAN)
WRONG = dict.fromkeys((*ALL, "dq"), 0.0) | {"object_hausdorff": INF, "sq": NAN}


@pytest.mark.parametrize(
    ("pred", "true", "expected"),
    [
        (np.zeros((0, 5), int), np.zeros((0, 5), int), NOTHING),
        ([[0, 0]], [[0, 0]], NOTHING),
        ([[0, 0]], [[0, 4]], WRONG | {"object_precision": NAN, "object_recall": 0.0}),
        ([[4, 0]], [[0, 0]], WRONG | {"object_precision": 0.0, "object_recall": NAN}),
    ],
    ids=["no pixels", "both", "pred", "true"],
)
def test_empty_maps(pred: list, true: list, expected: dict[str, float]) -> None:
    pair = np.array(pred), np.array(true)
    scores = metrics.instance_scores(*pair)
    for name, value in expected.items():
        if name in scores:
            assert same(scores[name], value), name
        if hasattr(metrics, name):
            assert same(getattr(metrics, name)(*pair), value), name
    assert (scores["n_pred"], scores["n_true"]) == (pair[0].any(), pair[1].any())


def test_memory_layout_types_and_leaving_hausdorff_out_do_not_matter(rng: np.random.Generator) -> None:
    pred, true = rng.integers(0, 6, (2, 20, 31))
    expected = metrics.instance_scores(pred, true)
    views = np.asfortranarray(pred).astype(np.uint16), np.repeat(true, 2, 1)[:, ::2].astype(">i4")
    assert metrics.instance_scores(*views) == expected
    assert metrics.instance_scores(torch.from_numpy(pred), torch.from_numpy(true)) == expected
    short = metrics.instance_scores(pred, true, hausdorff=False)
    assert short | {"object_hausdorff": metrics.object_hausdorff(pred, true)} == expected


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (np.zeros((3, 2), int), r"one shape, got \(3, 2\) and \(2, 3\)"),
        (np.zeros((2, 3)), "pred must be a map of integers, got float64"),
        (np.full((2, 3), -1), "pred must not hold negative labels, got -1"),
    ],
)
def test_unusable_maps(pred: np.ndarray, message: str) -> None:
    for name in ALL:
        with pytest.raises(ValueError, match=message):
            getattr(metrics, name)(pred, np.ones((2, 3), int))
