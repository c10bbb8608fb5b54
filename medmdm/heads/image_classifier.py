"""Labels of whole images from pooled features of a frozen backbone: a linear classifier and nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from medmdm.backbones.extractor import Extractor
from medmdm.data.reading import LoadedCase
from medmdm.heads.task import Reading, views

METHODS = ("linear", "knn")
_RIDGES = tuple(10.0**power for power in range(-4, 3))  # as shares of the mean squared length of an image's features
_TEMPERATURE = 0.07  # of the votes of neighbours, Wu et al. 2018


@torch.no_grad()
def pooled_features(
    case: LoadedCase, extractor: Extractor, reading: Reading, device: torch.device | str
) -> NDArray[np.float64]:
    """Return the mean of each feature over a case ``[features]``; of a volume over all its slices.

    Images are read in the windows that predictions are made in; what pads a small one does not count.
    """
    sums, pixels = torch.zeros(extractor.num_features, dtype=torch.float64), 0.0
    for example in case.examples:
        for view in views(example, reading.kind, reading.window, reading.overlap):
            maps = extractor(view.image[None].to(device))
            known = view.known.double()[None, None]
            missing = [n - old for n, old in zip(extractor.padded_size(known.shape[2:]), known.shape[2:], strict=True)]
            padded = F.pad(known, [side for n in reversed(missing) for side in (0, n)])
            means = []
            for one in maps:
                weights = F.interpolate(padded, one.shape[2:], mode="area")
                means.append((one[0].double().cpu() * weights[0]).flatten(1).sum(1) / weights.sum())
            count = float(known.sum())
            sums, pixels = sums + torch.cat(means) * count, pixels + count
    return (sums / pixels).numpy()


def linear_scores(
    features: ArrayLike, labels: ArrayLike, groups: Sequence[object], tested: ArrayLike, classes: int
) -> NDArray[np.float64]:
    """Fit ridge regression onto the classes, and return what it says of other images ``[tested, classes]``.

    Features are brought to mean 0 and variance 1 over the labelled images. The ridge is the one of 1e-4, 1e-3, ...,
    100 (as a share of the mean squared length of an image's features) whose squared error is smallest on labelled
    images left out in turn, in closed form; with one group the largest is taken.

    Args:
        features: of the labelled images ``[n, features]``.
        labels: numbers of their classes ``[n]``.
        groups: what is left out together, such as the patient of each image.
        tested: features of the others ``[tested, features]``.
        classes: how many there are; those of no labelled image are never said.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    middle, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-12 * np.abs(middle).max(initial=1e-300), spread, np.inf)  # constant: no feature
    x, others = (x - middle) / spread, (np.asarray(tested, np.float64) - middle) / spread
    targets = np.eye(classes)[y]
    means = targets.mean(0)
    products, scale = x @ x.T, max(float((x**2).sum() / len(x)), 1e-300)
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    parts = [np.flatnonzero([names[group] == number for group in groups]) for number in names.values()]
    errors = [_left_out(products, targets - means, ridge * scale, parts) for ridge in _RIDGES]
    chosen = _RIDGES[int(np.argmin(errors))] if len(parts) > 1 else _RIDGES[-1]
    weights = np.linalg.solve(products + chosen * scale * np.eye(len(x)), targets - means)
    found = means + others @ (x.T @ weights)
    found[:, targets.sum(0) == 0] = -np.inf
    return found


def _left_out(
    products: NDArray[np.float64], targets: NDArray[np.float64], ridge: float, parts: Sequence[NDArray[np.int64]]
) -> float:
    """Return the squared error on each part by the fit to the others, all of one scaling of the features."""
    n = len(products)
    hat = np.linalg.solve(products + ridge * np.eye(n), products).T + 1 / n
    rest = targets - hat @ targets
    error = 0.0
    for part in parts:
        own = np.eye(len(part)) - hat[np.ix_(part, part)]
        error += float((np.linalg.lstsq(own, rest[part], rcond=None)[0] ** 2).sum())
    return error


def neighbour_scores(
    features: ArrayLike, labels: ArrayLike, tested: ArrayLike, classes: int, neighbours: int = 5
) -> NDArray[np.float64]:
    """Let the nearest labelled images vote, and return each class's share ``[tested, classes]``.

    Near is what has a large cosine s of the features; votes weigh exp(s / 0.07) (Wu et al. 2018). Of equally near
    images the first counts.

    Args:
        features: of the labelled images ``[n, features]``.
        labels: numbers of their classes ``[n]``.
        tested: features of the others ``[tested, features]``.
        classes: how many there are.
        neighbours: that vote; with fewer labelled images all do.
    """
    near = _unit(tested) @ _unit(features).T
    nearest = np.argsort(-near, axis=1, kind="stable")[:, :neighbours]
    cosines = np.take_along_axis(near, nearest, axis=1)
    votes = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / _TEMPERATURE)
    shares = (votes[:, :, None] * np.eye(classes)[np.asarray(labels)[nearest]]).sum(1)
    result: NDArray[np.float64] = shares / votes.sum(1, keepdims=True)
    return result


def _unit(values: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(values, np.float64)
    unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return unit
