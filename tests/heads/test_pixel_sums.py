"""Closed-form heads from sums over pixels, against scikit-learn and NumPy on the pixels themselves."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch.testing import assert_close

from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.pixel_sums import PixelSums, fit_linear, left_out_errors, pixel_sums
from medmdm.labels import IGNORE
from tests.made import refused

CLASSES = 3
# (size to which the maps are up-sampled, size of the label, channels and size of each map)
SIZES: dict[str, Any] = {
    "square": ((16, 16), (16, 16), [(4, (4, 4)), (3, (8, 8))]),
    "padded": ((16, 24), (13, 21), [(4, (4, 6)), (3, (8, 12)), (2, (16, 24))]),
    "thin": ((16, 2), (15, 1), [(2, (4, 1)), (1, (8, 2))]),
    "volume": ((4, 8, 6), (3, 8, 5), [(3, (2, 4, 3)), (2, (4, 8, 6))]),
}


class Image:
    """Maps and a label, made, and the same as rows of pixels in float64 by torch's interpolation."""

    def __init__(self, case: str = "padded", seed: int = 0, ignored: float = 0.0, classes: int = CLASSES) -> None:
        self.size, shape, maps = SIZES[case]
        generator = torch.Generator().manual_seed(seed)
        self.label = torch.randint(classes, shape, generator=generator)
        # Features that follow the label, with means away from zero and very different scales.
        self.maps = []
        for number, (channels, spatial) in enumerate(maps):
            image = F.interpolate(self.label[None, None].float(), spatial)
            noise = torch.randn(1, channels, *spatial, generator=generator)
            self.maps.append(image * torch.arange(1, channels + 1).reshape(-1, *[1] * len(spatial)) + noise + 2)
            self.maps[-1] *= 10.0 ** (1 - 2 * number)
        if ignored:
            self.label[torch.rand(shape, generator=generator) < ignored] = IGNORE

    def sums(self) -> PixelSums:
        return pixel_sums(self.maps, self.label, CLASSES, self.size)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.size)]
        stack = torch.cat([F.interpolate(f.double(), self.size, mode=mode, align_corners=False) for f in self.maps], 1)
        index = (0, slice(None), *(slice(0, n) for n in self.label.shape))
        known = self.label != IGNORE
        return stack[index][:, known].T.numpy(), self.label[known].numpy()


def stacked(images: list[Image]) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*[image.pixels() for image in images], strict=True)
    return np.concatenate(x), np.concatenate(y)


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[y]


def scores(head: LinearClassifier, x: np.ndarray) -> np.ndarray:
    # In float64, of float32 weights.
    return x @ head.weight.double().numpy().T + head.bias.double().numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("ignored", [0.0, 0.2, 0.9], ids=["dense", "holes", "scribbles"])
@pytest.mark.parametrize("case", SIZES)
def test_sums_are_those_of_the_labelled_pixels(case: str, ignored: float) -> None:
    image = Image(case, ignored=ignored)
    x, y = image.pixels()
    sums = image.sums()
    assert relative(sums.gram.numpy(), x.T @ x) < 1e-12
    assert relative(sums.products.numpy(), x.T @ one_hot(y)) < 1e-12
    assert sums.counts.tolist() == np.bincount(y, minlength=CLASSES).tolist()


def test_labels_of_any_integer_type() -> None:
    image = Image(ignored=0.3)
    expected = image.sums()
    sums = pixel_sums(image.maps, image.label.to(torch.uint8), CLASSES, image.size)
    assert_close((sums.gram, sums.products, sums.counts), (expected.gram, expected.products, expected.counts))


def test_an_image_without_labels_adds_nothing() -> None:
    image = Image()
    image.label[:] = IGNORE
    sums = image.sums()
    assert sums.gram.abs().max() == sums.products.abs().max() == sums.counts.abs().max() == 0


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("subset", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_ridge_of_any_subset_is_scikit_learns_on_the_pixels(subset: list, ridge: float, standardize: bool) -> None:
    everything = [Image(seed=seed, ignored=0.1 * seed) for seed in range(4)]
    images = [everything[i] for i in subset]
    x, y = stacked(images)
    scaler = StandardScaler(with_mean=False, with_std=standardize).fit(x)
    oracle = Ridge(alpha=ridge * len(x), solver="svd", tol=1e-12).fit(scaler.transform(x), one_hot(y))
    head = fit_linear(PixelSums.total(image.sums() for image in images), ridge, "ridge", standardize)
    assert relative(scores(head, x), oracle.predict(scaler.transform(x))) < 1e-6


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_discriminants_are_scikit_learns(solver: str) -> None:
    images = [Image(seed=seed, ignored=0.2) for seed in range(3)]
    x, y = stacked(images)
    x = x[:, :-2]  # scikit-learn scales nothing: keep channels of about one size
    head = fit_linear(PixelSums.total(i.sums() for i in images).select(torch.arange(x.shape[1])), 1e-12, "lda")
    oracle = LinearDiscriminantAnalysis(solver=solver).fit(x, y)
    mine, theirs = scores(head, x), oracle.decision_function(x)
    # Up to a constant of each pixel that all classes share.
    assert relative(mine - mine[:, :1], theirs - theirs[:, :1]) < 1e-5
    posterior = torch.from_numpy(mine).softmax(1).numpy()
    assert np.abs(posterior - oracle.predict_proba(x)).max() < 1e-5


def test_a_ridge_on_discriminants_is_added_to_the_covariance() -> None:
    image = Image()
    x, y = image.pixels()
    ridge = 0.3
    means = np.stack([x[y == k].mean(0) for k in range(CLASSES)])
    priors = np.bincount(y) / len(y)
    within = sum(priors[k] * np.cov(x[y == k].T, bias=True) for k in range(CLASSES))
    scale = x.std(0)
    inverse = np.linalg.inv(within / np.outer(scale, scale) + ridge * np.eye(len(scale))) / np.outer(scale, scale)
    # log prior - 1/2 Mahalanobis distance, less what is quadratic in x
    expected = x @ inverse @ means.T - 0.5 * np.einsum("kc,cd,kd->k", means, inverse, means) + np.log(priors)
    mine = scores(fit_linear(image.sums(), ridge, "lda"), x)
    assert relative(mine - mine[:, :1], expected - expected[:, :1]) < 1e-5


def test_two_classes_have_one_direction_by_both_methods() -> None:
    image = Image(classes=2)
    sums = image.sums()
    sums = PixelSums(sums.gram, sums.products[:, :2], sums.counts[:2])
    directions = []
    for method in ("ridge", "lda"):
        weight = fit_linear(sums, 0.1, method).weight.double()
        directions.append(F.normalize(weight[1] - weight[0], dim=0))
    assert_close(directions[0], directions[1], rtol=0, atol=1e-6)


def test_images_are_added_and_taken_away() -> None:
    a, b, c = (Image(seed=seed).sums() for seed in range(3))
    for name in ("gram", "products", "counts"):
        total = getattr(PixelSums.total([a, b, c]), name)
        assert_close(total, getattr(a, name) + getattr(b, name) + getattr(c, name))
        assert_close(getattr(PixelSums.total([a, b, c]) - b, name), getattr(a + c, name))


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_selecting_channels_is_fitting_on_them(method: str) -> None:
    image = Image()
    x, y = image.pixels()
    channels = torch.tensor([5, 0, 2])
    few = x[:, channels.numpy()]
    sums = few.T @ few, few.T @ one_hot(y), np.bincount(y).astype(np.float64)
    alone = PixelSums(*map(torch.from_numpy, sums))
    expected = fit_linear(alone, 1e-3, method)
    head = fit_linear(image.sums().select(channels), 1e-3, method)
    assert_close(head.weight, expected.weight, rtol=1e-5, atol=1e-7)
    assert_close(head.bias, expected.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_a_class_that_is_absent_is_never_predicted(method: str) -> None:
    image = Image(classes=2)  # of three
    x, _ = image.pixels()
    out = scores(fit_linear(image.sums(), 1e-3, method), x)
    assert np.isfinite(out).all()
    assert set(out.argmax(1)) == {0, 1}
    # and the others are judged as if it did not exist
    sums = image.sums()
    two = fit_linear(PixelSums(sums.gram, sums.products[:, :2], sums.counts[:2]), 1e-3, method)
    assert relative(out[:, :2], scores(two, x)) < 1e-5


def test_an_absent_class_does_not_come_between_classes_far_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (16, 16), generator=generator)
    maps = [(torch.randn(16, 16, generator=generator) * 0.1 + 2.0 * label - 1)[None, None]]
    head = fit_linear(pixel_sums(maps, label, 3, (16, 16)), 1e-4, "lda")
    assert set(scores(head, np.linspace(-3, 3, 61)[:, None]).argmax(1)) == {0, 1}


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_more_features_than_pixels(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 40, 4, 4, generator=generator)]
    label = torch.randint(CLASSES, (4, 4), generator=generator)
    x, y = maps[0][0].flatten(1).T.double().numpy(), label.flatten().numpy()
    head = fit_linear(pixel_sums(maps, label, CLASSES, (4, 4)), ridge, "ridge", standardize=False)
    if ridge:
        expected = Ridge(alpha=ridge * len(x), solver="svd").fit(x, one_hot(y)).predict(x)
    else:  # the smallest of all solutions, which go through every pixel
        weight = np.linalg.pinv(x - x.mean(0)) @ (one_hot(y) - one_hot(y).mean(0))
        assert relative(head.weight.double().numpy().T, weight) < 1e-5
        expected = one_hot(y)
    assert relative(scores(head, x), expected) < 1e-5


def test_without_a_ridge_equal_channels_share_their_weight() -> None:
    for seed in range(8):  # rounding lets some of these pass for well-posed
        image = Image(seed=seed)
        expected = fit_linear(image.sums(), 0.0, "ridge").weight
        image.maps.insert(1, image.maps[0][:, :1])
        weight = fit_linear(image.sums(), 0.0, "ridge").weight
        assert_close(weight[:, 0], weight[:, 4], rtol=1e-4, atol=1e-5)
        assert_close(weight[:, 0] + weight[:, 4], expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ridge", "lda"])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_channels_that_do_not_vary_change_nothing(method: str, ridge: float, value: float) -> None:
    image = Image()
    expected = fit_linear(image.sums(), ridge, method)
    image.maps.insert(1, torch.full_like(image.maps[0][:, :2], value))
    head = fit_linear(image.sums(), ridge, method)
    kept = [0, 1, 2, 3, 6, 7, 8, 9, 10]
    assert head.weight[:, 4:6].abs().max() == 0
    assert_close(head.weight[:, kept], expected.weight, rtol=1e-5, atol=1e-7)
    assert_close(head.bias, expected.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_left_out_errors_are_those_of_refits_on_pixels(standardize: bool) -> None:
    images = [Image(seed=seed, ignored=0.2 * seed) for seed in range(4)]
    ridges = [1e-4, 1e-1, 10.0]
    expected = []
    for ridge in ridges:
        squares = []
        for i, image in enumerate(images):
            x, y = stacked([other for j, other in enumerate(images) if j != i])
            scaler = StandardScaler(with_mean=False, with_std=standardize).fit(x)
            oracle = Ridge(alpha=ridge * len(x), solver="svd").fit(scaler.transform(x), one_hot(y))
            left_out, truth = image.pixels()
            squares.append(((oracle.predict(scaler.transform(left_out)) - one_hot(truth)) ** 2).sum(1))
        expected.append(np.concatenate(squares).mean())
    errors = left_out_errors([image.sums() for image in images], ridges, standardize)
    assert errors.numpy() == pytest.approx(np.array(expected), rel=1e-6)
    assert len(set(errors.tolist())) == 3


def test_images_without_labels_are_passed_over_when_leaving_out() -> None:
    images = [Image(seed=seed) for seed in range(3)]
    nothing = Image(seed=3)
    nothing.label[:] = IGNORE
    errors = left_out_errors([image.sums() for image in images], [1e-2])
    more = [images[0].sums(), nothing.sums(), *[i.sums() for i in images[1:]]]
    assert torch.equal(left_out_errors(more, [1e-2]), errors)
    refused("two or more labelled images", left_out_errors, [images[0].sums(), nothing.sums()], [1e-2])


def test_bad_arguments_get_a_sentence() -> None:
    sums = Image().sums()
    refused("'svm'", fit_linear, sums, method="svm")
    refused("at least 0", fit_linear, sums, ridge=-1)
    refused("at least 0", left_out_errors, [sums, sums], [])
    refused("no labelled pixel", fit_linear, sums - sums)
