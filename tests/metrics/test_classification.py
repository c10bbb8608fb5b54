"""Measures of image labels against MONAI and counting."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from medmdm.metrics.classification import classification_scores
from medmdm.stats import bootstrap_interval


@pytest.mark.parametrize(("images", "classes"), [(23, 2), (40, 3), (7, 4)])
def test_as_monai_and_counting(images: int, classes: int) -> None:
    rng = np.random.default_rng(images)
    true = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    scores = rng.integers(0, 6, (3, images, classes)) / 5.0  # many ties
    found = classification_scores(scores, true)
    for draw in range(3):
        said = [max(range(classes), key=lambda c, row=row: row[c]) for row in scores[draw]]
        right = [s == t for s, t in zip(said, true, strict=True)]
        recalls = [np.mean([r for r, t in zip(right, true, strict=True) if t == c]) for c in range(classes)]
        assert found["accuracy"][draw] == pytest.approx(np.mean(right))
        assert found["balanced_accuracy"][draw] == pytest.approx(np.mean(recalls))
        one_hot = torch.eye(classes)[torch.from_numpy(true)]
        monai = compute_roc_auc(torch.from_numpy(scores[draw]), one_hot, average="macro")
        assert found["auc"][draw] == pytest.approx(monai, abs=1e-6)


def test_classes_that_are_not_there() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    found = classification_scores(scores, [0, 1])
    assert (found["accuracy"], found["balanced_accuracy"], found["auc"]) == (1, 1, 1)
    alone = classification_scores(scores, [0, 0])
    assert alone["balanced_accuracy"] == 0.5
    assert np.isnan(alone["auc"])
    assert np.isnan(classification_scores(np.zeros((2, 0, 3)), [])["accuracy"]).all()
    absent = classification_scores(np.array([[0.5, -np.inf], [0.5, -np.inf]]), [0, 1])
    assert absent["auc"] == 0.5
    with pytest.raises(ValueError, match="scores of 3 images"):
        classification_scores(scores, [0, 1, 0])


def test_bootstrap_by_groups() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    groups = [4, 4, 4, 0, 0, 0, 7, 7]

    def mean(places: np.ndarray) -> float:
        return float(values[places].mean())

    # Three groups: every resample is one of 27, of which one in 27 holds the first alone.
    low, high = bootstrap_interval(mean, groups, resamples=4000)
    assert (low, high) == (0, 1)
    narrow = bootstrap_interval(lambda places: float(len(places) * 0 + 2), groups)
    assert narrow == (2, 2)
    assert np.isnan(bootstrap_interval(mean, [0] * 8)).all()
    assert np.isnan(bootstrap_interval(lambda places: np.nan, groups)).all()
    normal = np.random.default_rng(0).normal(0, 1, 400)
    low, high = bootstrap_interval(lambda places: float(normal[places].mean()), np.arange(400))
    half = 1.96 * normal.std(ddof=1) / 20
    np.testing.assert_allclose([low, high], [normal.mean() - half, normal.mean() + half], atol=0.015)
