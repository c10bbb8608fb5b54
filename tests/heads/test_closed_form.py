from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from medmdm.backbones.adapters import RawPixels
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import stack
from medmdm.data.reading import Example
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.pixel_classifier import PixelClassifierHead
from medmdm.heads.task import views
from medmdm.labels import IGNORE
from tests.made import WINDOW, dice, made_example, made_extractor, refused, task


class Blocks(nn.Module):
    """A backbone whose block 1 is the image and whose block 0 is 40 channels of noise that follow from the image."""

    reduction = 1
    feature_info = [  # noqa: RUF012
        {"block": 0, "channels": 40, "reduction": 1},
        {"block": 1, "channels": 3, "reduction": 1},
    ]

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def features(self, x: Tensor, timesteps: Tensor, blocks: list[int]) -> list[Tensor]:
        self.seen.append(x)
        generator = torch.Generator().manual_seed(int(x.abs().sum() * 1e4) + int(timesteps[0]))
        noise = torch.randn(1, 40, *x.shape[2:], generator=generator)
        image = x + 3 * float(timesteps[0]) * noise[:, :3]  # only t = 0 is clear
        return [{0: noise, 1: image}[block] for block in blocks]


def scribbled(seed: int, pixels: int = 10) -> Example:
    example = made_example(seed, WINDOW)
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(seed))
    example.label.view(-1)[order[pixels:]] = IGNORE
    return example


@pytest.mark.parametrize("method", ["ridge", "lda"])
@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole"])
def test_learns_to_segment(method: str, whole: bool) -> None:
    head = ClosedFormHead(method)
    fitted = head.fit(task([made_example(seed) for seed in range(3)], whole=whole), made_extractor())
    test = made_example(9, (41, 30))
    out = fitted.model(test.image[None])
    assert out.shape == (1, 2, 41, 30)
    assert dice(out, test.label) > 0.9


@pytest.mark.slow
def test_many_classes_one_channel_and_volumes() -> None:
    cases: list[tuple[int, dict[str, Any], dict[str, Any], tuple[int, ...], float]] = [
        (4, {"noise": 0.1}, {}, WINDOW, 0.75),
        (2, {"channels": 1}, {"in_channels": 1}, WINDOW, 0.9),
        (2, {"shape": (8, 16, 12)}, {"spatial_dims": 3}, (8, 8, 8), 0.9),
    ]
    for classes, made, network, window, least in cases:
        examples = [made_example(seed, classes=classes, **made) for seed in range(3)]
        extractor = made_extractor(network=network)
        fitted = ClosedFormHead().fit(task(examples, classes, window=window), extractor)
        test = made_example(9, classes=classes, **made)
        out = fitted.model(test.image[None])
        assert all(dice(out, test.label, number) > least for number in range(classes))


def test_equals_scikit_learn_on_the_pixels_of_all_windows() -> None:
    examples = [made_example(seed, (32, 48)) for seed in range(2)]  # two windows each
    examples[0].label[:, 20:30] = IGNORE
    extractor = made_extractor()
    fitted = ClosedFormHead("ridge", ridges=[1e-2], standardize=False).fit(task(examples), extractor)
    rows, classes = [], []
    for example in examples:
        for view in views(example, "windows", WINDOW, 0.2):
            known = view.label != IGNORE
            rows.append(stack(extractor(view.image[None]), WINDOW)[0][:, known].T.double().numpy())
            classes.append(view.label[known].numpy())
    x, y = np.concatenate(rows), np.eye(2)[np.concatenate(classes)]
    oracle = Ridge(alpha=1e-2 * len(x), solver="svd").fit(x, y)
    out = fitted.model(views(examples[1], "windows", WINDOW)[0].image[None])
    expected = oracle.predict(rows[-2])  # the first window of the second image
    assert np.abs(out[0].flatten(1).T.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole"])
def test_context_belongs_to_its_block(whole: bool) -> None:
    extractor = FeatureExtractor(Blocks(), [0, 1], [0], masking="none", normalize="rms", context=[3, 9])
    support = task([scribbled(seed, pixels=900) for seed in range(4)], whole=whole)
    fitted = ClosedFormHead("ridge", choices=[{"blocks": [0]}, {"blocks": [1]}]).fit(support, extractor)
    assert fitted.evidence["chosen"]["blocks"] == [1]
    weight = fitted.model.head.weight[0].split([40, 3] * 3)
    assert [bool(w.abs().max() > 0) for w in weight] == [False, True] * 3


@pytest.mark.parametrize("head", [ClosedFormHead(), PixelClassifierHead(members=2, max_epochs=30, min_epochs=10)])
@pytest.mark.slow
def test_what_only_the_surroundings_tell_is_learnt(head: Any) -> None:
    """Of noise of two amplitudes a pixel tells little, its surroundings tell it."""

    def textured(seed: int) -> Example:
        label = made_example(seed, WINDOW).label
        noise = torch.randn(3, *WINDOW, generator=torch.Generator().manual_seed(seed))
        return Example(noise * torch.where(label == 1, 0.3, 0.15), label, f"textured_{seed}")

    results = []
    for around in ({}, {"context": [7], "context_deviation": True}):
        extractor = FeatureExtractor(RawPixels(3), [0], [0], masking="none", normalize="rms", **around)  # type: ignore[arg-type]
        fitted = head.fit(task([textured(seed) for seed in range(4)]), CachedExtractor(extractor))
        test = textured(9)
        results.append(dice(fitted.model(test.image[None]), test.label))
    assert results[1] > 0.85 > results[0] + 0.05


def test_the_blocks_and_timestep_that_generalise_are_chosen() -> None:
    extractor = FeatureExtractor(Blocks(), [0, 1], [0, 1], masking="none", normalize="none")
    one: dict[str, list[int]] = {"blocks": [1]}
    choices = [{"blocks": [0]}, {**one, "timesteps": [1]}, {**one, "timesteps": [0]}, {}]
    head = ClosedFormHead("ridge", choices=choices)
    support = task([scribbled(seed) for seed in range(4)])
    fitted = head.fit(support, extractor)
    chosen = fitted.evidence["chosen"]
    assert (chosen["blocks"], chosen["timesteps"]) == ([1], [0])
    assert len(fitted.evidence["tried"]) == 4 * 5
    assert chosen["left_out_error"] == min(row["left_out_error"] for row in fitted.evidence["tried"])
    # On the labelled pixels themselves noise fits better: it has more channels.
    noise = ClosedFormHead("ridge", choices=[{"blocks": [0]}], ridges=[1e-4]).fit(support, extractor)
    errors = []
    for model in (noise.model, fitted.model):
        scores = [(model(e.image[None])[0, 1] - e.label)[e.label != IGNORE] for e in support.examples]
        errors.append(float(torch.cat(scores).square().mean()))
    assert errors[0] < 0.5 * errors[1]
    test = made_example(9, WINDOW)
    assert dice(fitted.model(test.image[None]), test.label) > 0.9
    weight = fitted.model.head.weight
    assert weight[:, :40].abs().max() == weight[:, 43:].abs().max() == 0  # order of features: t, then block
    assert weight[:, 40:43].abs().min() > 0


def test_only_the_support_is_read() -> None:
    backbone = Blocks()
    support = task([scribbled(seed) for seed in range(3)])
    ClosedFormHead(choices=[{"blocks": [0]}, {"blocks": [1]}]).fit(
        support, FeatureExtractor(backbone, [0, 1], [0], masking="none")
    )
    assert len(backbone.seen) == 3
    for seen, example in zip(backbone.seen, support.examples, strict=True):
        assert torch.equal(seen[0], example.image)


@pytest.mark.slow
def test_slices_of_a_volume_are_left_out_together() -> None:
    def fit(groups: list[str]) -> dict[str, Any]:
        made = [made_example(seed, WINDOW) for seed in range(6)]
        examples = [Example(e.image, e.label, e.case, group=group) for e, group in zip(made, groups, strict=True)]
        return ClosedFormHead(most_folds=4).fit(task(examples), made_extractor()).evidence

    assert fit(["a", "a", "b", "b", "b", "c"])["left_out_in_turn"] == 3
    assert fit([""] * 6)["left_out_in_turn"] == 4
    assert fit(list("abcdef"))["left_out_in_turn"] == 4
    assert fit(["a"] * 6)["left_out_in_turn"] == 1
    assert fit([""] * 6)["tried"] == fit(list("abcdef"))["tried"] != fit(["a", "a", "b", "b", "b", "c"])["tried"]


def test_a_single_image_leaves_nothing_out() -> None:
    head = ClosedFormHead(ridges=[1e-3, 1e-1, 1e-2], choices=[{"blocks": [1]}, {"blocks": [0, 1]}])
    evidence = head.fit(task([made_example()]), made_extractor()).evidence
    assert evidence["chosen"] == {"blocks": [1], "timesteps": [50], "ridge": 1e-1, "left_out_error": None}


def test_images_without_labels_change_nothing() -> None:
    examples = [made_example(seed, WINDOW) for seed in range(3)]
    nothing = Example(made_example(3, WINDOW).image, torch.full(WINDOW, IGNORE))
    extractor = made_extractor()
    expected = ClosedFormHead().fit(task(examples), extractor)
    fitted = ClosedFormHead().fit(task([nothing, *examples]), extractor)
    assert fitted.evidence == expected.evidence
    assert torch.equal(fitted.model.head.weight, expected.model.head.weight)
    refused("no labelled pixel", ClosedFormHead().fit, task([nothing]), extractor)


def test_a_second_fit_computes_neither_features_nor_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [made_example(seed) for seed in range(4)]
    cached = CachedExtractor(made_extractor(), tmp_path)
    first = ClosedFormHead().fit(task(examples), cached)
    assert cached.extracted == 8
    monkeypatch.setattr("medmdm.heads.closed_form.pixel_sums", None)  # would fail if it were called
    for extractor in (cached, CachedExtractor(made_extractor(), tmp_path)):
        again = ClosedFormHead().fit(task(examples), extractor)
        assert torch.equal(again.model.head.weight, first.model.head.weight)
        ClosedFormHead("ridge").fit(task(examples[1:3]), extractor)
    assert (cached.extracted, extractor.extracted) == (8, 0)


@pytest.mark.slow
def test_sums_of_other_labels_and_readings_are_others() -> None:
    cached = CachedExtractor(made_extractor())
    head = ClosedFormHead(ridges=[1e-2])
    a = made_example(0)
    half = a.label.clone()
    half[:16] = IGNORE
    variants = [
        task([a]), task([Example(a.image, half, a.case)]),  # the same case, other labels
        task([a], classes=3), task([a], whole=True), task([a], overlap=0.5), task([a], window=(16, 16)),
    ]  # fmt: skip
    weights = [head.fit(variant, cached).model.head.weight[:2] for variant in variants]
    fresh = [head.fit(variant, CachedExtractor(made_extractor())).model.head.weight[:2] for variant in variants]
    assert all(map(torch.equal, weights, fresh))
    assert not torch.equal(weights[0], weights[1])
    assert len(cached.memory) >= 6
    for kind in ("global_l2", "none"):
        other = CachedExtractor(made_extractor(normalize=kind))
        other.memory = cached.memory  # as a folder that both read
        assert not torch.equal(head.fit(variants[0], other).model.head.weight, weights[0])


@pytest.mark.parametrize(("choice", "words"), [
    ({"blocks": [7]}, r"blocks \[7\], but features are extracted at \[0, 1, 2\]"),
    ({"timesteps": [50, 60]}, r"timesteps \[50, 60\]"),
    ({"blocks": []}, r"blocks \[\]"),
    ({"block": [1]}, "'block'"),
])  # fmt: skip
def test_choices_that_cannot_be_made_are_refused(choice: dict[str, list[int]], words: str) -> None:
    refused(words, ClosedFormHead(choices=[choice]).fit, task([made_example()]), made_extractor())


def test_bad_arguments_get_a_sentence() -> None:
    refused("'svm'", ClosedFormHead, "svm")
    refused("at least 0", ClosedFormHead, ridges=[])
    refused("most_folds", ClosedFormHead, most_folds=1)
