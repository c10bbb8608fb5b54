"""Image labels from pooled features, against plain NumPy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from medmdm.backbones import FeatureExtractor
from medmdm.backbones.adapters import RawPixels
from medmdm.data.reading import Example, LoadedCase
from medmdm.heads.image_classifier import linear_scores, neighbour_scores, pooled_features
from medmdm.heads.task import Reading


def made(n: int, features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    centres = rng.normal(0, 1, (classes, features))
    return centres[labels] + rng.normal(0, 1, (n, features)), labels, rng.normal(0, 1, (9, features))


def plain_ridge(x: np.ndarray, y: np.ndarray, tested: np.ndarray, ridge: float) -> np.ndarray:
    """Ridge regression with an intercept that is not penalised, by the normal equations."""
    design = np.c_[x, np.ones(len(x))]
    penalty = ridge * np.eye(design.shape[1])
    penalty[-1, -1] = 0
    return np.c_[tested, np.ones(len(tested))] @ np.linalg.solve(design.T @ design + penalty, design.T @ y)


@pytest.mark.parametrize(("n", "features", "classes"), [(12, 5, 2), (8, 30, 3)])
@pytest.mark.parametrize("by_patient", [False, True])
def test_linear_as_plain_ridge_chosen_by_leaving_out(n: int, features: int, classes: int, by_patient: bool) -> None:
    x, labels, tested = made(n, features, classes)
    x[:, 1] = 3.0  # says nothing
    groups: Sequence[object] = [f"p{i // 3}" for i in range(n)] if by_patient else list(range(n))
    found = linear_scores(x, labels, groups, tested, classes + 1)
    spread = x.std(0)
    spread[1] = math.inf
    z, others, y = (x - x.mean(0)) / spread, (tested - x.mean(0)) / spread, np.eye(classes)[labels]
    scale = (z**2).sum() / n
    best = []
    for ridge in 10.0 ** np.arange(-4, 3):
        error = 0.0
        for group in set(groups):
            out = np.array([one == group for one in groups])
            error += ((plain_ridge(z[~out], y[~out], z[out], ridge * scale) - y[out]) ** 2).sum()
        best.append((error, ridge))
    expected = plain_ridge(z, y, others, min(best)[1] * scale)
    np.testing.assert_allclose(found[:, :classes], expected, rtol=1e-5, atol=1e-7)
    assert (found[:, classes] == -math.inf).all()  # no image had that class


def test_linear_of_one_image_or_one_class() -> None:
    found = linear_scores([[1.0, 2.0]], [1], ["a"], [[3.0, 4.0], [0.0, 0.0]], 2)
    assert found.argmax(1).tolist() == [1, 1]
    same = linear_scores([[1.0, 2.0], [1.5, -2.0]], [0, 0], ["a", "b"], [[3.0, 4.0]], 2)
    assert same.argmax(1).tolist() == [0]


def test_neighbours_by_brute_force() -> None:
    x, labels, tested = made(11, 6, 3, seed=1)
    for neighbours in (1, 4, 50):
        found = neighbour_scores(x, labels, tested, 4, neighbours)
        for row, image in zip(found, tested, strict=True):
            near = [(float(image @ one / np.linalg.norm(image) / np.linalg.norm(one)), -i) for i, one in enumerate(x)]
            votes = [0.0] * 4
            for cosine, place in sorted(near, reverse=True)[:neighbours]:
                votes[labels[-place]] += math.exp(cosine / 0.07)
            np.testing.assert_allclose(row, np.array(votes) / sum(votes), rtol=1e-9)


def test_pooled_features_are_means_of_the_image_alone() -> None:
    image = torch.linspace(-1, 1, 2 * 20 * 13).reshape(2, 20, 13) ** 3
    example = Example(image, torch.zeros(20, 13, dtype=torch.long), "a")
    case = LoadedCase({"case": "a"}, [example], (), None, None, (20, 13), ("0", "0"))
    extractor = FeatureExtractor(RawPixels(2), [0], [0], masking="none", normalize="none")
    expected = image.double().mean((1, 2)).numpy()
    # Whole, in windows without overlap, and padded by reflection, which does not count.
    for reading in (Reading((8, 8), whole=True), Reading((10, 13), overlap=0.0), Reading((32, 24))):
        np.testing.assert_allclose(pooled_features(case, extractor, reading, "cpu"), expected, atol=1e-6)
