from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from medmdm import metrics
from medmdm.errors import UserError
from medmdm.metrics import pixels

NAN, INF = math.nan, math.inf


def one_hot(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return ``[1, classes, *spatial]``; values that are no class have 0 everywhere, as MONAI wants it."""
    return torch.from_numpy(np.stack([labels == number for number in range(num_classes)])[None].astype(np.float32))


def blobs(rng: np.random.Generator, shape: tuple[int, ...], num_classes: int) -> np.ndarray:
    """Draw a class map with regions of several pixels."""
    coarse = rng.integers(0, num_classes, [-(-size // 3) for size in shape])
    return np.kron(coarse, np.ones([3] * len(shape), int))[tuple(slice(size) for size in shape)]


@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((20, 31), None), ((20, 31), (0.5, 2.0)), ((9, 12, 7), 1.5), ((9, 12, 7), (3.0, 1.0, 0.7))]
)
def test_monai_agrees(rng: np.random.Generator, shape: tuple[int, ...], spacing, ignored: float) -> None:
    pred, true = blobs(rng, shape, 4), blobs(rng, shape, 4)
    true[rng.random(shape) < ignored] = 255
    scores = metrics.pixel_scores(pred, true, 4, spacing, tolerance=1.2)
    assert list(scores) == [1, 2, 3]
    valid = torch.from_numpy(true != 255)
    y_pred, y = one_hot(pred, 4) * valid, one_hot(true, 4)
    options = {"include_background": False}
    expected = {
        "dice": compute_dice(y_pred, y, **options),
        "iou": compute_iou(y_pred, y, **options),
        "hausdorff95": compute_hausdorff_distance(y_pred, y, percentile=95, spacing=spacing, **options),
        "surface_dice": compute_surface_dice(y_pred, y, [1.2] * 3, spacing=spacing, **options),
    }
    confusion = get_confusion_matrix(y_pred, y, ignore_index=255 if ignored else None, **options)
    expected |= {name: confusion[..., i] for i, name in enumerate(("tp", "fp", "tn", "fn"))}
    expected |= {name: compute_confusion_matrix_metric(name, confusion) for name in ("precision", "recall")}
    for number, row in scores.items():
        for name, values in expected.items():
            assert row[name] == pytest.approx(values[0, number - 1].item(), rel=1e-5), (number, name)
        assert row["n_true"] == (true == number).sum()
        assert row["n_pred"] == ((pred == number) & (true != 255)).sum()
        assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == (true != 255).sum()


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (2, 6, 7)))
def test_boundaries_by_all_distances(masks: np.ndarray) -> None:
    tolerance, spacing = 1.5, np.array([1.0, 1.3])
    row = metrics.surface_scores(masks[0], masks[1], spacing, tolerance)
    edges = [np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in masks]
    if not masks.any():
        expected = (NAN, NAN, NAN)
    elif not all(len(edge) for edge in edges):
        expected = (INF, 0.0, 0.0)
    else:
        distances = cdist(*edges)
        near_pred, near_true = (distances.min(axis) for axis in (1, 0))
        precision, recall = (near_pred <= tolerance).mean(), (near_true <= tolerance).mean()
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        joined = np.concatenate([near_pred, near_true]) <= tolerance
        expected = (max(np.percentile(near_pred, 95), np.percentile(near_true, 95)), joined.mean(), f)
    found = (row["hausdorff95"], row["surface_dice"], row["boundary_f"])
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_boundary_f_weighs_the_two_boundaries_alike() -> None:
    # A third of a long boundary is right, all of a short one is: surface Dice and boundary F differ.
    true, pred = np.zeros((2, 1, 12), bool)
    true[0, :9], pred[0, :3] = True, True
    row = metrics.surface_scores(pred, true, tolerance=0)
    assert row["boundary_f"] == pytest.approx(2 * (1 / 3) / (4 / 3))
    assert row["surface_dice"] == pytest.approx(6 / 12)


def test_tolerance_counts_what_is_as_far_as_it() -> None:
    true, pred = np.zeros((2, 5, 5), bool)
    true[2, 2], pred[2, 3] = True, True
    near = metrics.surface_scores(pred, true, spacing=0.3, tolerance=0.3)
    assert (near["surface_dice"], near["boundary_f"]) == (1, 1)
    assert near["hausdorff95"] == pytest.approx(0.3)
    assert metrics.surface_scores(pred, true, spacing=0.3, tolerance=0.29)["boundary_f"] == 0


def test_by_hand() -> None:
    true = np.array([[0, 1, 1, 2], [0, 1, 255, 2]])
    pred = np.array([[0, 1, 2, 2], [1, 1, 1, 0]])
    scores = metrics.pixel_scores(pred, true, 3, surface=False)
    counts = {"tp": 2, "fp": 1, "fn": 1, "tn": 3, "n_true": 3, "n_pred": 3}
    assert scores[1] == pytest.approx({"dice": 4 / 6, "iou": 2 / 4, "precision": 2 / 3, "recall": 2 / 3} | counts)
    counts = {"tp": 1, "fp": 1, "fn": 1, "tn": 4, "n_true": 2, "n_pred": 2}
    assert scores[2] == pytest.approx({"dice": 1 / 2, "iou": 1 / 3, "precision": 1 / 2, "recall": 1 / 2} | counts)
    assert all(isinstance(scores[2][name], int) for name in counts)


@pytest.mark.parametrize(
    ("pred", "true", "dice", "precision", "recall", "distance"),
    [(0, 0, NAN, NAN, NAN, NAN), (0, 1, 0.0, NAN, 0.0, INF), (1, 0, 0.0, 0.0, NAN, INF), (1, 1, 1.0, 1.0, 1.0, 0.0)],
    ids=["both empty", "no prediction", "no truth", "one pixel"],
)
def test_empty_classes(pred, true, dice, precision, recall, distance) -> None:
    row = metrics.pixel_scores(np.array([[pred]]), np.array([[true]]), 2)[1]
    assert (row["n_pred"], row["n_true"]) == (pred, true)
    expected = (dice, dice, precision, recall, distance, dice, dice)
    names = ("dice", "iou", "precision", "recall", "hausdorff95", "surface_dice", "boundary_f")
    assert tuple(row[name] for name in names) == pytest.approx(expected, nan_ok=True)
    maps = np.array([[pred * 7]]), np.array([[true * 300]])
    assert (metrics.dice(*maps), metrics.iou(*maps)) == pytest.approx((dice, dice), nan_ok=True)


def test_ignored_pixels() -> None:
    row = metrics.pixel_scores(np.ones((3, 4), int), np.full((3, 4), 255), 2)[1]
    assert np.isnan([row["dice"], row["hausdorff95"]]).all()
    assert row["tp"] == row["fp"] == row["fn"] == row["tn"] == 0
    # They may be predicted as anything.
    true = np.array([[1, 1, 255, 0]])
    rows = [metrics.pixel_scores(np.array([[1, 0, value, 0]]), true, 2) for value in (0, 1, 255)]
    assert rows[0] == rows[1] == rows[2]
    # 255 is no class of the prediction elsewhere.
    with pytest.raises(ValueError, match="pred holds 255: its classes are 0 to 1"):
        metrics.pixel_scores(np.array([[255, 0, 0, 0]]), true, 2)


def test_large_volumes_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    pred, true = rng.integers(0, 3, (2, 7, 8, 9))
    expected = metrics.pixel_scores(pred, true, 3, surface=False)
    monkeypatch.setattr(pixels, "CHUNK", 100)
    assert metrics.pixel_scores(pred, true, 3, surface=False) == expected


def test_counts_do_not_lose_digits() -> None:
    true = np.ones(2**25 + 1, np.uint8)  # single precision has no such number
    row = metrics.pixel_scores(np.append(np.uint8(0), true[1:]), true, 2, surface=False)[1]
    assert (row["tp"], row["fn"]) == (2**25, 1)
    assert row["recall"] == 2**25 / (2**25 + 1)


def test_pool_is_one_case_of_all_pixels(rng: np.random.Generator) -> None:
    pred, true = rng.integers(0, 3, (2, 12, 10))
    true[0, :5] = 255
    cases = [metrics.pixel_scores(pred[part], true[part], 3) for part in (slice(0, 2), slice(2, 12))]
    assert metrics.pool(cases) == metrics.pixel_scores(pred, true, 3, surface=False)
    assert metrics.pool([]) == {}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ignore": 1}, UserError, "ignore 1 is one of the 2 classes"),
        ({"tolerance": -1.0}, UserError, "tolerance must be a distance of at least 0, got -1"),
        ({"tolerance": NAN}, UserError, "tolerance must be"),
        ({"spacing": (1.0, 1.0, 1.0)}, UserError, "spacing must be a positive size for each of 2 axes"),
        ({"spacing": (1.0, 0.0)}, UserError, "spacing must be a positive size"),
        ({"true": np.full((3, 3), 7)}, ValueError, "true holds 7: its classes are 0 to 1"),
        ({"true": np.ones((3, 2), int)}, ValueError, "one shape"),
        ({"pred": np.zeros(3, int), "true": np.ones(3, int)}, UserError, "array of 1 axes"),
    ],
)
def test_unusable_arguments(changes: dict, error: type[Exception], message: str) -> None:
    maps = {"pred": np.zeros((3, 3), int), "true": np.ones((3, 3), int)}
    with pytest.raises(error, match=message):
        metrics.pixel_scores(**maps | changes, num_classes=2)
