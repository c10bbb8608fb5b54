import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from medmdm.artifacts.export import export_segmenter
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.backbones.adapters import RawPixels
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import stack
from medmdm.backbones.filter_bank import FilterBank
from medmdm.heads import random_forest
from medmdm.heads.predictor import Predictor
from medmdm.heads.random_forest import RandomForest, RandomForestHead
from medmdm.heads.task import Reading
from medmdm.labels import IGNORE
from tests.made import WINDOW, dice, made_example, made_extractor, refused, task

SMALL: dict[str, Any] = {"trees": 12, "depth": 6, "pixels": 300}


def filters(channels: int = 3, dims: int = 2, **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(FilterBank(channels, dims, 1, 4), [0], masking="none", normalize="none", **settings)


@pytest.mark.parametrize(
    ("classes", "channels", "shape"), [(2, 3, (70, 93)), (2, 1, (31, 8)), (3, 3, (20, 33)), (3, 2, (6, 9, 11))]
)
@pytest.mark.parametrize("depth", [1, 5, None])
def test_trees_equal_scikit_learn(classes: int, channels: int, shape: tuple[int, ...], depth: int | None) -> None:
    rng = np.random.default_rng(0)
    # Few values, so that many pixels lie exactly on a threshold; the last class is never seen.
    x, y = rng.integers(-3, 4, (400, channels)) / 3, rng.integers(0, classes, 400)
    forest = RandomForestClassifier(9, max_depth=depth, random_state=0).fit(x, y)
    image = torch.from_numpy(rng.integers(-6, 7, (2, channels, *shape)) / 6).float()
    head = RandomForest.grown(forest, classes + 1)
    logits = head([image], shape)
    assert logits.shape == (1, 2, classes + 1, *shape)
    pixels = image.movedim(1, -1).reshape(-1, channels).numpy()
    found = logits[0].softmax(1).movedim(1, -1).reshape(-1, classes + 1).numpy()
    np.testing.assert_allclose(found[:, :-1], forest.predict_proba(pixels), atol=1e-6)
    assert found[:, -1].max() < 1e-6


def test_thresholds_between_two_numbers_of_single_precision() -> None:
    low = np.float32(8.1)  # whose neighbours are further apart than what scikit-learn takes for equal
    high = np.nextafter(low, np.float32(9))
    x = np.array([[low], [high]] * 20)
    forest = RandomForestClassifier(3, bootstrap=False, random_state=0).fit(x, [0, 1] * 20)
    image = torch.tensor([[[[low, high]]]])
    assert RandomForest.grown(forest, 2)([image], (1, 2))[0, 0].argmax(0).tolist() == [[0, 1]]


@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole"])
@pytest.mark.parametrize(
    ("classes", "made", "window"),
    [(2, {}, WINDOW), (3, {"noise": 0.1}, WINDOW), (2, {"channels": 1, "shape": (33, 70)}, WINDOW),
     (2, {"shape": (8, 16, 12), "noise": 0.2}, (8, 8, 8))],
    ids=["colours", "classes", "grey", "volume"],
)  # fmt: skip
@pytest.mark.slow
def test_learns_to_segment(classes: int, made: dict[str, Any], window: tuple[int, ...], whole: bool) -> None:
    examples = [made_example(seed, classes=classes, **made) for seed in range(4)]
    extractor = filters(examples[0].image.shape[0], len(window))
    fitted = RandomForestHead(**SMALL).fit(task(examples, classes, window=window, whole=whole), extractor)
    test = made_example(9, classes=classes, **made)
    out = Predictor(fitted.model, Reading(window, whole)).image(test.image)
    assert all(dice(out[None], test.label, number) > 0.75 for number in range(classes))
    assert fitted.evidence["pixels"] == 4 * 300
    assert fitted.evidence["depth"] <= 6


def test_fits_what_scikit_learn_fits() -> None:
    """All labelled pixels of whole images, on the maps of a network at several resolutions."""
    examples = [made_example(seed, (20, 28)) for seed in range(2)]
    extractor = made_extractor()
    head = RandomForestHead(trees=5, depth=4, pixels=10**6, leaf=3)
    fitted = head.fit(task(examples, seed=3, whole=True), extractor)
    x = np.concatenate([stack(extractor(e.image[None]), (20, 28))[0].flatten(1).T.numpy() for e in examples])
    y = np.concatenate([e.label.flatten().numpy() for e in examples])
    forest = RandomForestClassifier(5, max_depth=4, min_samples_leaf=3, random_state=3).fit(x, y)
    found = fitted.model(examples[0].image[None]).softmax(1)[0].flatten(1).T.numpy()
    near = np.isclose(found, forest.predict_proba(x[: 20 * 28]), atol=1e-6)
    assert near.mean() > 0.99  # features gathered and up-sampled round differently, thresholds lie between


def test_same_seed_same_bits() -> None:
    examples = [made_example(seed) for seed in range(2)]
    one, two, other = (
        RandomForestHead(**SMALL).fit(task(examples, seed=seed), filters()).model.head.state_dict()  # type: ignore[union-attr]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["threshold"].shape != other["threshold"].shape or not torch.equal(one["threshold"], other["threshold"])


def test_a_cache_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = FeatureExtractor(RawPixels(), [0], masking="none", normalize="none")
    model = RandomForestHead(**SMALL).fit(task([made_example(0)]), raw).model
    image = made_example(1, (41, 30)).image[None]
    expected = model(image)
    monkeypatch.setattr(random_forest, "_PIXELS_AT_ONCE", 7)
    assert torch.equal(model(image), expected)
    coarse = [replace(made_example(0), image=made_example(0).image.half().float())]
    models = [RandomForestHead(**SMALL).fit(task(coarse), extractor).model for extractor in (raw, CachedExtractor(raw))]
    assert torch.equal(models[0](image.half().float()), models[1](image.half().float()))


def test_ignored_pixels_are_never_used() -> None:
    example = made_example(0, (40, 64))
    example.label[:, 16:] = IGNORE  # the last of the windows are not labelled at all
    example.label[::3] = IGNORE
    raw = FeatureExtractor(RawPixels(), [0], masking="none", normalize="none")
    changed = example.image.clone()
    changed[:, ~example.known] = 0.777
    heads = [
        RandomForestHead(**SMALL).fit(task([replace(example, image=image)]), raw).model.head.state_dict()  # type: ignore[union-attr]
        for image in (example.image, changed)
    ]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    few = replace(example, label=torch.where(torch.rand(40, 64) < 2, IGNORE, 0))
    few.label[3, 5], few.label[30, 60] = 0, 1
    fitted = RandomForestHead(**SMALL).fit(task([few, example], whole=True), raw)
    assert fitted.evidence["pixels"] == 302
    few.label[:] = IGNORE
    refused("no labelled pixel to learn from", RandomForestHead(**SMALL).fit, task([few]), raw)


def test_a_class_that_is_not_labelled_is_never_predicted() -> None:
    example = made_example(0)
    example.label[example.label == 1] = 2
    fitted = RandomForestHead(**SMALL).fit(task([example], classes=4), filters())
    assert set(fitted.model(example.image[None]).argmax(1).unique().tolist()) == {0, 2}
    example.label[:] = 3
    fitted = RandomForestHead(**SMALL).fit(task([example], classes=4), filters())
    assert fitted.model(example.image[None]).argmax(1).unique().tolist() == [3]


def saved(folder: Path, extractor: FeatureExtractor) -> tuple[Path, torch.nn.Module]:
    model = RandomForestHead(**SMALL).fit(task([made_example(seed) for seed in range(2)]), extractor).model
    save_segmenter(folder / "s.pt", model, {"backbone": {"channels": 3}, "task": {"num_classes": 2}})
    return folder / "s.pt", model


def test_saved_and_loaded(tmp_path: Path) -> None:
    path, model = saved(tmp_path, filters())
    image = made_example(5, (21, 40)).image[None]
    loaded, plan = load_segmenter(path)
    assert plan["head"]["_target_"] == "medmdm.heads.RandomForest"
    assert torch.equal(loaded(image), model(image))
    assert torch.equal(loaded.with_uncertainty(image)[:, :2], model(image))  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("ending", ["onnx", "pt2", "ts"])
def test_exports(tmp_path: Path, ending: str) -> None:
    raw = FeatureExtractor(RawPixels(sigmas=[1.0]), [0], masking="none", normalize="none")
    path, _ = saved(tmp_path, raw)
    assert export_segmenter(path, tmp_path / f"s.{ending}", (13, 70)) < 1e-4
    path, _ = saved(tmp_path, filters())
    refused("which cannot be exported", export_segmenter, path, tmp_path / f"f.{ending}", (13, 70))
    assert not (tmp_path / f"f.{ending}").exists()


def test_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trees", "depth", "pixels", "leaf"):
        refused("must be at least 1", RandomForestHead, **{name: 0})
    refused("are no numbers of a forest", RandomForest, trees=3, nodes=2)
    given: list[Tensor] = [torch.zeros(1, 3, 4, 4)]
    refused("3 channels of features were given, but the head expects 2", RandomForest(2), given, (4, 4))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(r"needs scikit-learn: install it with pip install 'medmdm\[forest\]'", RandomForestHead)
