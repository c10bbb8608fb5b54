from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.backbones.adapters import RawPixels
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.components import to_config
from medmdm.data.reading import Example
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.left_out import LeftOut, choose_bias, mean_dice, read_left_out
from medmdm.heads.self_training import SelfTraining
from medmdm.labels import IGNORE
from medmdm.metrics.pixels import mean_scores
from tests.made import WINDOW, dice, made_example, made_extractor, refused, task


def rare(seed: int, classes: int = 2, share: float = 0.06, noise: float = 0.55) -> Example:
    """A rare bright class in noise, which least squares with 0.5 as its threshold hardly ever marks."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(WINDOW, dtype=torch.long)
    for k in range(1, classes):
        label[torch.rand(WINDOW, generator=generator) < share] = k
    means = torch.linspace(-0.6, 0.6, classes)
    return Example(
        (means[label] + noise * torch.randn(3, *WINDOW, generator=generator)).clamp(-1, 1), label, f"r{seed}"
    )


def pixels() -> CachedExtractor:
    return CachedExtractor(FeatureExtractor(RawPixels(3), [0], [0], masking="none", normalize="none"))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_dice_is_that_of_the_metrics(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    left_out = [
        LeftOut(torch.randn(classes, 200, generator=generator), torch.randint(0, classes - 1, (200,)))  # one is absent
        for _ in range(3)
    ]
    bias = torch.linspace(0, 0.5, classes)
    each = [
        mean_scores((o.scores + bias[:, None]).argmax(0).numpy(), o.label.numpy(), classes, IGNORE)["dice"]
        for o in left_out
    ]
    assert mean_dice(left_out, bias) == pytest.approx(np.mean(each))


def test_the_bias_of_two_classes_is_the_best_of_all_tried_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(2, 400, generator=generator) < 0.15).long()
    margin = 0.3 * label + 0.2 * torch.randn(2, 400, generator=generator) - 0.6
    left_out = [LeftOut(torch.stack([torch.zeros(400), m]), y) for m, y in zip(margin, label, strict=True)]
    bias, record = choose_bias(left_out, 2)
    by_hand = max(mean_dice(left_out, torch.tensor([0.0, float(b)])) for b in np.linspace(-1, 2, 601))
    assert record["left_out_dice"][0] == mean_dice(left_out, torch.zeros(2)) < 0.15
    assert record["left_out_dice"][1] == mean_dice(left_out, bias) >= by_hand - 0.02
    assert record["probability"] == pytest.approx(1 / (1 + np.exp(float(bias[1]))))
    assert bias[0] == 0.0


@pytest.mark.parametrize("method", ["ridge", "lda"])
@pytest.mark.parametrize("classes", [2, 3])
def test_rare_classes_gain_on_new_images(method: str, classes: int) -> None:
    support = task([rare(seed, classes) for seed in range(4)], classes)
    scores = []
    for chosen in (False, True):
        fitted = ClosedFormHead(method, choose_threshold=chosen).fit(support, pixels())
        tests = [rare(seed, classes) for seed in range(10, 14)]
        scores.append(
            np.mean([dice(fitted.model(t.image[None]), t.label, k) for t in tests for k in range(1, classes)])
        )
    assert scores[1] >= scores[0]
    if method == "ridge":
        assert scores[1] > scores[0] + 0.1
        before, after = fitted.evidence["threshold"]["left_out_dice"]
        assert after > before + 0.05


def test_what_is_left_out_was_not_fitted_to() -> None:
    examples = [rare(seed) for seed in range(3)]
    head = ClosedFormHead("ridge", ridges=[1e-2], standardize=False)
    extractor = pixels()
    chosen = head.fit(task(examples), extractor).evidence["chosen"]
    parts = [[e] for e in examples]
    models = [
        head.solve(head.sums(a, task(examples), extractor) + head.sums(b, task(examples), extractor), chosen,
                   task(examples), extractor)
        for a, b in ((examples[1], examples[2]), (examples[0], examples[2]), (examples[0], examples[1]))
    ]  # fmt: skip
    found = read_left_out(models, parts, task(examples))
    x = np.concatenate([e.image.flatten(1).T.numpy() for e in examples[1:]])
    y = np.eye(2)[np.concatenate([e.label.flatten().numpy() for e in examples[1:]])]
    oracle = Ridge(alpha=1e-2 * len(x)).fit(x, y).predict(examples[0].image.flatten(1).T.numpy())
    assert np.abs(found[0].scores.T.numpy() - oracle).max() < 1e-3
    assert torch.equal(found[0].label, examples[0].label.flatten())


def test_slices_of_a_volume_are_one_image_and_unknown_pixels_none() -> None:
    a, b = rare(0), rare(1)
    b.label[:, :8] = IGNORE
    volume = [Example(e.image, e.label, e.case, "volume") for e in (a, b)]
    model = ClosedFormHead("ridge").fit(task([rare(3)]), pixels()).model
    (found,) = read_left_out([model], [volume], task([a]))
    assert found.label.shape == (2 * 1024 - 8 * 32,)
    assert found.scores.shape == (2, len(found.label))


def test_one_image_keeps_its_threshold_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    plain = ClosedFormHead("ridge").fit(task([rare(0)]), pixels())
    fitted = ClosedFormHead("ridge", choose_threshold=True).fit(task([rare(0)]), pixels())
    assert fitted.evidence["threshold"]["probability"] == 0.5
    assert "it stays 0.5" in caplog.text
    assert torch.equal(fitted.model.head.bias, plain.model.head.bias)
    volume = [Example(rare(s).image, rare(s).label, str(s), "v") for s in range(3)]  # one volume is one image
    assert "note" in ClosedFormHead(choose_threshold=True).fit(task(volume), pixels()).evidence["threshold"]


def test_the_file_predicts_with_the_threshold_and_others_stay_as_they_are(tmp_path: Path) -> None:
    support = task([rare(seed) for seed in range(3)])
    extractor = made_extractor()
    plain = ClosedFormHead("ridge").fit(support, extractor)
    fitted = ClosedFormHead("ridge", choose_threshold=True).fit(support, extractor)
    assert "threshold" not in plain.evidence
    assert torch.equal(fitted.model.head.weight, plain.model.head.weight)
    save_segmenter(tmp_path / "segmenter.pt", fitted.model, {"task": {}})
    loaded, _ = load_segmenter(tmp_path / "segmenter.pt")
    image = rare(9).image[None]
    assert torch.equal(loaded(image), fitted.model(image))
    probability = fitted.evidence["threshold"]["probability"]
    assert torch.equal(loaded(image).argmax(1), (plain.model(image).softmax(1)[:, 1] > probability).long())
    # Records of heads without it are those of before: cells of studies are found again.
    assert set(to_config(ClosedFormHead())) == {"_target_", "method", "ridges", "choices", "standardize", "most_folds"}
    assert to_config(ClosedFormHead(choose_threshold=True))["choose_threshold"] is True


def lot(seeds: range) -> list[torch.Tensor]:
    return [made_example(seed, WINDOW, noise=0.5).image for seed in seeds]


def self_trained(examples: list[Example], unlabelled: list[torch.Tensor], **settings: Any) -> Any:
    support = task(examples)
    with_others = type(support)(support.examples, 2, support.reading, unlabelled=unlabelled)
    method = settings.pop("method", "ridge")
    how = SelfTraining(**{"threshold": 0.6, **settings})
    return ClosedFormHead(method, unlabelled=how).fit(with_others, pixels())


def few(seed: int, count: int = 12) -> Example:
    """An image of which a few pixels are labelled."""
    example = made_example(seed, WINDOW, noise=0.5)
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(seed))
    example.label.view(-1)[order[count:]] = IGNORE
    return example


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_the_sums_are_those_of_the_pixels_it_is_sure_of(method: str) -> None:
    examples = [made_example(seed, WINDOW, noise=0.5) for seed in range(2)]
    support = task(examples)
    support = type(support)(support.examples, 2, support.reading, unlabelled=lot(range(5, 8)))
    head, extractor = ClosedFormHead(method), pixels()
    folds = [head.sums(e, support, extractor) for e in examples]
    fitted = head.fit(support, extractor)
    how = SelfTraining(threshold=0.7, weight=0.5)
    (total,) = how.sums([fitted.model], folds, support, extractor, method)
    x, y = [], []
    for image in support.unlabelled:
        scores = fitted.model(image[None])[0]
        sure, label = (scores if method == "ridge" else scores.softmax(0)).flatten(1).max(0)
        x.append(image.flatten(1).T[sure >= 0.7])
        y.append(label[sure >= 0.7])
    pseudo, classes = torch.cat(x).double(), torch.nn.functional.one_hot(torch.cat(y), 2).double()
    assert 0 < len(pseudo) < 3 * 1024
    weight = 0.5 * 2 * 1024 / len(pseudo)
    assert torch.allclose(total.gram, folds[0].gram + folds[1].gram + weight * pseudo.T @ pseudo, rtol=1e-3)
    assert torch.allclose(
        total.products, folds[0].products + folds[1].products + weight * pseudo.T @ classes, rtol=1e-3
    )
    assert float(total.counts.sum()) == pytest.approx(1.5 * 2048)


def test_images_that_help_are_kept_and_those_that_hurt_are_not(caplog: pytest.LogCaptureFixture) -> None:
    examples = [few(seed) for seed in range(4)]
    plain = ClosedFormHead("ridge").fit(task(examples), pixels())
    outcomes = []
    for unlabelled in (lot(range(20, 28)), [-image for image in lot(range(20, 28))], [torch.full((3, *WINDOW), 0.9)]):
        fitted = self_trained(examples, unlabelled, weight=3.0)
        record = fitted.evidence["unlabelled"]
        before, after = record["left_out_dice"]
        assert record["kept"] == (after - before > record["standard_error"])
        same = torch.equal(fitted.model.head.weight, plain.model.head.weight)
        assert same == (not record["kept"])
        outcomes.append(record["kept"])
    assert not all(outcomes)
    assert "did not help" in caplog.text


def test_what_cannot_be_judged_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    one = self_trained([made_example(0, WINDOW)], lot(range(3)))
    assert not one.evidence["unlabelled"]["kept"]
    assert "one labelled image" in caplog.text
    nothing = self_trained([few(0), few(1)], [])
    assert "no unlabelled images" in nothing.evidence["unlabelled"]["note"]
    never = self_trained([few(0), few(1)], lot(range(3)), threshold=0.999)
    assert not never.evidence["unlabelled"]["kept"]
    refused("weight above 0", SelfTraining, weight=0.0)
    refused("threshold must be in", SelfTraining, threshold=1.0)
    assert ClosedFormHead(unlabelled=SelfTraining()).uses_unlabelled
    assert not ClosedFormHead().uses_unlabelled
