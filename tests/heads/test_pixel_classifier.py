from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.feature_maps import stack
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.heads import pixel_classifier, views
from medmdm.heads.classifier_network import PixelClassifier
from medmdm.heads.pixel_classifier import CrossEntropyDiceLoss, PixelClassifierHead, StoppingRule
from medmdm.labels import IGNORE
from tests.heads.test_classifier_network import published
from tests.made import WINDOW, dice, made_example, made_extractor, refused, task


def head(**arguments: Any) -> PixelClassifierHead:
    return PixelClassifierHead(**{"hidden": (16, 8), "members": 2, "max_epochs": 8, **arguments})


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "arguments", [{}, {"pixels": 200}, {"batch_size": 4}, {"views": 3, "dice_weight": 1.0}, {"views": "fresh"}], ids=str
)
@pytest.mark.slow
def test_learns_to_segment(arguments: dict[str, Any]) -> None:
    support = [made_example(seed, (32, 48)) for seed in range(3)]
    fitted = head(max_epochs=12, learning_rate=5e-3, **arguments).fit(task(support), CachedExtractor(made_extractor()))
    test = made_example(9, (41, 30))
    out = fitted.model(test.image[None])
    assert out.shape == (1, 2, 41, 30)
    assert dice(out, test.label) > 0.9
    assert fitted.evidence["views"] == {3: 9, "fresh": 3}.get(arguments.get("views"), 6)


@pytest.mark.slow
def test_many_classes_one_channel_and_volumes() -> None:
    # (classes, image, network, window, head, least Dice of a class: masked patches look like the classes in the middle)
    cases: list[tuple[int, dict[str, Any], dict[str, Any], tuple[int, ...], dict[str, Any], float]] = [
        (5, {"noise": 0.05}, {}, WINDOW, {"max_epochs": 20}, 0.5),
        (2, {"channels": 1}, {"in_channels": 1}, WINDOW, {}, 0.9),
        (2, {"shape": (8, 16, 11)}, {"spatial_dims": 3}, (8, 8, 7), {"pixels": 300}, 0.9),
        (2, {"shape": (8, 16, 11)}, {"spatial_dims": 3}, (8, 8, 7), {}, 0.9),
    ]
    for classes, made, network, window, arguments, least in cases:
        examples = [made_example(seed, classes=classes, **made) for seed in range(3)]
        extractor = CachedExtractor(made_extractor(network=network))
        fitted = head(learning_rate=5e-3, **arguments).fit(task(examples, classes, window=window), extractor)
        test = made_example(9, classes=classes, **made)
        out = fitted.model(test.image[None])
        assert out.shape == (1, classes, *test.label.shape)
        assert all(dice(out, test.label, number) > least for number in range(classes))


def by_hand(examples: list[Example], extractor: Any, epochs: int, loss: Any) -> nn.Sequential:
    """Up-sample, concatenate, and train a plain MLP on the rows of all pixels of all images at once."""
    rows = torch.cat([stack(extractor(e.image[None]), WINDOW).flatten(2)[0].T for e in examples])
    labels = torch.cat([e.label.flatten() for e in examples])
    mlp = published(PixelClassifier(rows.shape[1], 2, (16, 8), members=1, seed=0), 0).train()
    optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-3)
    for _ in range(epochs):
        optimizer.zero_grad()
        known = labels != IGNORE
        loss(mlp(rows)[known], labels[known]).backward()  # every pixel enters the batch statistics
        optimizer.step()
    return mlp.eval()


def weighted_with_dice(logits: Tensor, label: Tensor) -> Tensor:
    p, y = logits.softmax(1)[:, 1], (label == 1).float()
    soft = 1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5)
    return F.cross_entropy(logits, label, torch.tensor([0.2, 1.7])) + 0.5 * soft


@pytest.mark.parametrize(
    ("arguments", "loss"),
    [({}, F.cross_entropy), ({"class_weights": [0.2, 1.7], "dice_weight": 0.5}, weighted_with_dice)],
    ids=["paper", "weighted"],
)
def test_equals_a_plain_training_with_ignored_pixels(arguments: dict[str, Any], loss: Any) -> None:
    examples = [made_example(seed, WINDOW) for seed in range(2)]
    examples[0].label[5:25] = IGNORE
    examples[1].label.view(-1)[::3] = IGNORE
    extractor = made_extractor()
    fitted = head(members=1, max_epochs=6, batch_size=2, **arguments).fit(task(examples), extractor)
    mlp = by_hand(examples, extractor, 6, loss)
    maps = extractor(made_example(9, WINDOW).image[None])
    expected = mlp(stack(maps, WINDOW).flatten(2)[0].T)
    mine = fitted.model.head(maps, WINDOW)[0, 0].flatten(1).T
    assert_close(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.detach().std()))


@pytest.mark.parametrize("arguments", [{}, {"pixels": 100}], ids=["all", "sampled"])
@pytest.mark.slow
def test_members_at_once_are_members_one_by_one(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    support = task([made_example(seed, WINDOW) for seed in range(2)], seed=5)
    extractor = CachedExtractor(made_extractor())
    settings_: dict[str, Any] = {"max_epochs": 25, "min_epochs": 2, "patience": 1, "learning_rate": 2e-2, **arguments}
    together = head(members=4, **settings_).fit(support, extractor)
    epochs = []
    image = made_example(9, WINDOW).image[None]
    for m in range(4):
        # The member's weights, but the order of images and the pixels of the whole ensemble.
        def one(channels, classes, hidden, members, seed, m=m) -> PixelClassifier:
            return PixelClassifier(channels, classes, hidden, members, seed + m)

        monkeypatch.setattr(pixel_classifier, "PixelClassifier", one)
        alone = head(members=1, **settings_).fit(support, extractor)
        expected = alone.model.member_logits(image)[0]
        difference = (together.model.member_logits(image)[m] - expected).abs().max()
        assert float(difference.detach()) < 1e-5 * float(expected.detach().abs().max())
        assert together.evidence["final_losses"][m] == pytest.approx(alone.evidence["final_losses"][0], rel=1e-4)
        epochs += alone.evidence["epochs"]
    assert together.evidence["epochs"] == epochs
    assert len(set(epochs)) > 1  # else it would not matter that each keeps the state at which it stopped


@pytest.mark.parametrize("pixels", [None, 100])
@pytest.mark.slow
def test_members_take_turns_until_each_stops(monkeypatch: pytest.MonkeyPatch, pixels: int | None) -> None:
    support = task([made_example(seed, WINDOW) for seed in range(2)], seed=5)
    turns: list[int] = []
    name = "forward" if pixels is None else "forward_pixels"
    original = getattr(PixelClassifier, name)

    def counted(self: PixelClassifier, *arguments: Any) -> Tensor:
        assert self.members == 1
        turns.append(id(self))
        return original(self, *arguments)

    monkeypatch.setattr(PixelClassifier, name, counted)
    settings_: dict[str, Any] = {"max_epochs": 25, "min_epochs": 2, "patience": 1, "learning_rate": 2e-2}
    extractor = CachedExtractor(made_extractor())
    epochs = head(members=5, pixels=pixels, **settings_).fit(support, extractor).evidence["epochs"]
    assert len(set(epochs)) > 1
    assert sorted(Counter(turns).values()) == sorted(2 * n for n in epochs)  # two images an epoch


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=20),
    st.integers(0, 6),
    st.integers(1, 4),
)
def test_each_member_stops_when_its_loss_has_not_improved(losses: list, min_epochs: int, patience: int) -> None:
    expected = []
    for own in zip(*losses, strict=True):
        stop = len(own)
        for epoch in range(len(own), min_epochs, -1):
            counted = own[min_epochs:epoch]
            # the lowest loss so far came this many epochs ago, at its first time
            if len(counted) - 1 - counted.index(min(counted)) >= patience:
                stop = epoch
        expected.append(stop)
    rule = StoppingRule(3, min_epochs, patience)
    stopped: dict[int, int] = {}
    for epoch, now in enumerate(losses, start=1):
        for member in rule.update(epoch, now):
            assert member not in stopped
            stopped[member] = epoch
    assert rule.epochs == expected
    assert all(stopped.get(m, len(losses)) == expected[m] for m in range(3))
    assert rule.last == [losses[epoch - 1][m] for m, epoch in enumerate(expected)]


def test_the_papers_rule_runs_at_least_61_epochs() -> None:
    rule = StoppingRule(1, 40, 20)
    assert [epoch for epoch in range(1, 100) if rule.update(epoch, [1.0])] == [61]


def test_sampled_pixels_are_labelled_ones_with_their_features() -> None:
    example = made_example(0, (30, 27))
    scribbles = torch.full_like(example.label, IGNORE)
    scribbles[3, :] = example.label[3]
    scribbles[20:28, 26] = example.label[20:28, 26]
    example = Example(example.image, scribbles)
    extractor = made_extractor()
    x, y = pixel_classifier._sample(example, 500, task([example]), extractor, np.random.default_rng(0))
    everything = stack(extractor(example.image[None]), extractor.padded_size((30, 27)))[0, :, :30, :27]
    known = scribbles != IGNORE
    rows, classes = everything[:, known].T, scribbles[known]
    nearest = torch.cdist(x.double(), rows.double()).min(dim=1)
    assert nearest.values.max() < 1e-4
    assert torch.equal(classes[nearest.indices], y)
    assert len(set(nearest.indices.tolist())) == len(rows) == 35  # all of them are drawn


@pytest.mark.slow
def test_scribbles_are_enough() -> None:
    support = [made_example(seed, (32, 48)) for seed in range(3)]
    for seed, example in enumerate(support):
        hidden = torch.rand((32, 48), generator=torch.Generator().manual_seed(seed)) < 0.95
        example.label[hidden] = IGNORE
    support.append(Example(made_example(3).image, torch.full((32, 48), IGNORE)))  # one without any
    test = made_example(9)
    for arguments in ({"pixels": 100}, {}, {"views": "fresh"}):
        own = head(max_epochs=20, learning_rate=5e-3, **arguments)
        fitted = own.fit(task(support), CachedExtractor(made_extractor()))
        assert dice(fitted.model(test.image[None]), test.label) > 0.9
        assert fitted.evidence["views"] == (3 if "views" in arguments else 6)


class Recorder(CachedExtractor):
    asked: list[Tensor]

    def forward(self, x: Tensor) -> list[Tensor]:
        self.asked.extend(x)
        return super().forward(x)


def test_cached_views_are_the_same_in_every_epoch() -> None:
    extractor = Recorder(made_extractor())
    extractor.asked = []
    support = [made_example(seed, (32, 48)) for seed in range(3)]
    head(max_epochs=4, views=2).fit(task(support, seed=3), extractor)
    assert extractor.extracted == 6
    assert len(extractor.asked) == 24
    wanted = {v.image.numpy().tobytes() for e in support for v in views(e, "crops", WINDOW, per_image=2, seed=3)}
    for epoch in range(4):
        assert {x.numpy().tobytes() for x in extractor.asked[6 * epoch : 6 * epoch + 6]} == wanted


@pytest.mark.slow
def test_fresh_crops_and_masks_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    seeds: list[int] = []
    shapes = set()
    with_new_mask = pixel_classifier._with_new_mask

    def recorded(extractor: Any, seed: int) -> Any:
        seeds.append(seed)
        again = with_new_mask(extractor, seed)
        forward = again.forward

        def remember(x: Tensor) -> list[Tensor]:
            asked.extend(image.numpy().tobytes() for image in x)
            shapes.update(tuple(image.shape) for image in x)
            return forward(x)

        monkeypatch.setattr(again, "forward", remember)
        return again

    monkeypatch.setattr(pixel_classifier, "_with_new_mask", recorded)
    cached = CachedExtractor(made_extractor())
    support = task([made_example(seed, (64, 80)) for seed in range(3)])
    fitted = head(max_epochs=5, views="fresh").fit(support, cached)
    assert (len(asked), len(set(asked))) == (15, 15)
    assert len(set(seeds)) == 15
    assert shapes == {(3, *WINDOW)}
    assert cached.extracted == 0
    again = head(max_epochs=5, views="fresh").fit(support, cached)
    assert same_weights(fitted.model.head, again.model.head)


def test_the_same_seed_gives_the_same_bits() -> None:
    support = [made_example(seed, (32, 48)) for seed in range(2)]
    for arguments in ({}, {"pixels": 50}):
        own = head(max_epochs=3, views="crops", **arguments)
        tasks = [task(support, seed=seed) for seed in (1, 1, 2)]
        a, again, other = (own.fit(part, CachedExtractor(made_extractor())).model.head for part in tasks)
        assert same_weights(a, again)
        assert not same_weights(a, other)


@pytest.mark.parametrize("count", [1, 85])
@pytest.mark.slow
def test_one_image_and_many(count: int) -> None:
    support = task([made_example(seed, (16, 16)) for seed in range(count)], window=(16, 16))
    fitted = head(members=1, max_epochs=2, batch_size=16, pixels=20).fit(support, CachedExtractor(made_extractor()))
    assert fitted.evidence["views"] == count
    assert fitted.evidence["epochs"] == [2]


def test_whole_images_of_different_sizes() -> None:
    support = task([made_example(0, (32, 48)), made_example(1, (30, 27))], whole=True)
    extractor = CachedExtractor(made_extractor())
    head(max_epochs=1).fit(support, extractor)
    head(max_epochs=1, batch_size=2, pixels=20).fit(support, extractor)
    refused("different sizes", head(max_epochs=1, batch_size=2).fit, support, extractor)


def test_the_papers_norm_is_for_whole_images_of_the_windows_size_only() -> None:
    extractor = made_extractor(normalize="global_l2")
    same = [made_example(seed, WINDOW) for seed in range(2)]
    head(max_epochs=1, views="whole").fit(task(same), extractor)
    refused("global_l2", head(max_epochs=1, views="whole").fit, task([*same, made_example(2, (32, 48))]), extractor)


def test_old_names_are_taken_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    assert head(views="crops", per_image=3) == head(views=3)
    assert "set views to the number of crops" in caplog.text
    assert head(views="windows", fresh=True) == head(views="fresh")
    assert "set views to 'fresh'" in caplog.text
    assert head(views="windows", fresh=False, per_image=2) == head(views="windows")


def test_mistakes_get_a_sentence() -> None:
    refused("views must be one of whole, windows, crops, fresh or a number", PixelClassifierHead, views="tiles")
    support = task([made_example()])
    refused("at least 1", PixelClassifierHead, members=0)
    refused("pixels must be at least 2", PixelClassifierHead, pixels=1)
    refused("3 numbers for 2 classes", head(class_weights=[1, 1, 1]).fit, support, made_extractor())
    refused(r"became \[nan.* lower its learning_rate", head(learning_rate=1e30).fit, support, made_extractor())
    with pytest.raises(UserError, match="no labelled pixel"):
        head().fit(task([Example(made_example().image, torch.full((32, 48), IGNORE))]), made_extractor())


def logits_and_label(*shape: int, classes: int = 3, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    label = torch.randint(classes, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < ignored] = IGNORE
    return logits, label


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 30), (2, 3, 4, 5)], ids=str)
def test_cross_entropy_and_dice_by_hand(shape: tuple, weights: list | None, include_background: bool) -> None:
    logits, label = logits_and_label(*shape)
    # Rows of labelled pixels, in NumPy.
    known = (label != IGNORE).flatten().numpy()
    rows = logits.movedim(1, -1).flatten(0, -2).double().numpy()[known]
    y = label.flatten().numpy()[known]
    p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    w = np.ones(3) if weights is None else np.array(weights)
    entropy = -(w[y] * np.log(p[np.arange(len(y)), y])).sum() / w[y].sum()
    one_hot = np.eye(3)[y]
    dice = 2 * (p * one_hot).sum(0) / (p.sum(0) + one_hot.sum(0))
    first = 0 if include_background else 1
    loss = CrossEntropyDiceLoss(0.7, weights, include_background)(logits, label)
    assert float(loss) == pytest.approx(entropy + 0.7 * (1 - dice[first:]).mean(), rel=1e-5)
    assert float(CrossEntropyDiceLoss(0.0, weights)(logits, label)) == pytest.approx(entropy, rel=1e-5)


def test_ignored_pixels_have_neither_value_nor_gradient() -> None:
    logits, label = logits_and_label(2, 6, 6)
    other = torch.where((label == IGNORE)[:, None], torch.full_like(logits, 50.0), logits).requires_grad_()
    loss = CrossEntropyDiceLoss()
    assert torch.equal(loss(other, label), loss(logits, label))
    loss(other, label).backward()
    assert other.grad.movedim(1, -1)[label == IGNORE].abs().max() == 0
    assert other.grad.movedim(1, -1)[label != IGNORE].abs().min() > 0
    renamed = torch.where(label == IGNORE, 7, label)
    assert torch.equal(CrossEntropyDiceLoss(ignore=7)(logits, renamed), loss(logits, label))


def test_nothing_labelled_gives_no_gradient() -> None:
    logits, label = logits_and_label(1, 4, 4, ignored=1.1)
    logits.requires_grad_()
    loss = CrossEntropyDiceLoss()(logits, label)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad.abs().max() == 0


def test_perfect_logits_cost_nothing_and_a_class_may_be_absent() -> None:
    label = torch.tensor([[[0, 1], [1, IGNORE]]])
    perfect = 50.0 * torch.nn.functional.one_hot(label.clamp_max(1), 3).movedim(-1, 1).float()
    assert float(CrossEntropyDiceLoss()(perfect, label)) == pytest.approx(0, abs=1e-4)


def test_class_weights_are_checked() -> None:
    logits, label = logits_and_label(1, 4, 4)
    refused("2 numbers for 3 classes", CrossEntropyDiceLoss(class_weights=[1, 2]), logits, label)
    refused("class_weights must be positive", CrossEntropyDiceLoss, class_weights=[1, 0, 2])
