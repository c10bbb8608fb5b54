from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from medmdm.backbones.feature_maps import gather, normalize, stack
from medmdm.errors import UserError
from medmdm.heads.classifier_network import LinearClassifier, PixelClassifier, _RectifyAndStandardize
from tests.backbones.test_feature_maps import CASES, IDS, draw
from tests.made import refused


def published(classifier: PixelClassifier, member: int) -> nn.Sequential:
    """The paper's MLP over rows of pixels, with one member's weights."""
    state = classifier.member(member)
    sizes = [classifier.config["in_channels"], *classifier.config["hidden"], classifier.num_classes]
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out)
        linear.load_state_dict({"weight": state[f"weights.{i}"][0], "bias": state[f"biases.{i}"][0]})
        layers.append(linear)
        if i < len(sizes) - 2:
            norm = nn.BatchNorm1d(fan_out)
            parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            norm.load_state_dict({part: state[f"norms.{i}.{part}"] for part in parts})
            layers += [nn.ReLU(), norm]
    return nn.Sequential(*layers)


def varied(classifier: PixelClassifier) -> PixelClassifier:
    """Give every parameter and statistic a value of its own: initial ones hide mistakes."""
    generator = torch.Generator().manual_seed(9)
    for name, value in classifier.state_dict().items():
        if value.is_floating_point():
            value += 0.3 * torch.rand(value.shape, generator=generator) * (1 if "var" in name else value.abs() + 1)
    return classifier


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("kind", ["global_l2", "rms", "standardize", "none"])
@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_equals_upsampling_concatenating_and_classifying(size: tuple, shapes: list, kind: str, training: bool) -> None:
    maps = normalize(draw(shapes, batch=2), size, kind)
    if kind == "global_l2":
        maps = [f * 100 for f in maps]  # else the weights' sizes hide the features
    classifier = varied(PixelClassifier(sum(c for c, _ in shapes), 3, (16, 8), members=3)).train(training)
    rows = stack(maps, size).flatten(2).transpose(1, 2).flatten(0, 1)  # [B * P, C]
    expected = [published(classifier, m).train(training)(rows) for m in range(3)]
    out = classifier(maps, size)
    assert out.shape == (3, 2, 3, *size)
    for m in range(3):
        mine = out[m].flatten(2).transpose(1, 2).flatten(0, 1)
        assert relative(mine, expected[m]) < 1e-5


@pytest.mark.parametrize(("size", "shapes"), CASES[:4], ids=IDS[:4])
def test_gradients_and_statistics_are_those_of_the_plain_classifier(size: tuple, shapes: list) -> None:
    maps = [f.double().requires_grad_() for f in draw(shapes, batch=2)]
    classifier = varied(PixelClassifier(sum(c for c, _ in shapes), 3, (16, 8), members=2)).train()
    plain = [published(classifier, m).double().train() for m in range(2)]
    classifier.double()
    label = torch.randint(3, (2, *size), generator=torch.Generator().manual_seed(3))
    logits = classifier(maps, size)
    sum(nn.functional.cross_entropy(member, label) for member in logits).backward()
    mine = [f.grad.clone() for f in maps]
    for f in maps:
        f.grad = None
    rows = stack(maps, size).movedim(1, -1).flatten(0, -2)
    sum(nn.functional.cross_entropy(mlp(rows), label.flatten()) for mlp in plain).backward()
    for f, gradient in zip(maps, mine, strict=True):
        assert relative(gradient, f.grad) < 1e-9
    gradients = {name: value.grad for name, value in classifier.named_parameters()}
    for m, mlp in enumerate(plain):
        linears, norms = ([layer for layer in mlp if isinstance(layer, kind)] for kind in (nn.Linear, nn.BatchNorm1d))
        for i, linear in enumerate(linears):
            assert relative(gradients[f"weights.{i}"][m], linear.weight.grad) < 1e-9
            # Before a batch normalisation a bias matters through the rectification alone.
            assert_close(gradients[f"biases.{i}"][m], linear.bias.grad, rtol=1e-6, atol=1e-12)
        for i, norm in enumerate(norms):
            part = slice(m * norm.num_features, (m + 1) * norm.num_features)
            assert relative(gradients[f"norms.{i}.weight"][part], norm.weight.grad) < 1e-9
            assert relative(gradients[f"norms.{i}.bias"][part], norm.bias.grad) < 1e-9
            assert_close(classifier.norms[i].running_mean[part], norm.running_mean, rtol=1e-9, atol=1e-12)
            assert_close(classifier.norms[i].running_var[part], norm.running_var, rtol=1e-9, atol=1e-12)


def test_rectified_standardisation_has_the_gradient_of_its_equation() -> None:
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _RectifyAndStandardize.apply(x * 1, 1e-5)[0], (x,))


def test_statistics_of_many_pixels_are_accurate() -> None:
    x = torch.randn(1 << 18, 4, generator=torch.Generator().manual_seed(0)) + 1
    rectified = x.double().relu()
    exact = (rectified - rectified.mean(0)) / (rectified.var(0, unbiased=False) + 1e-5).sqrt()
    found, mean, variance = _RectifyAndStandardize.apply(x.clone(), 1e-5)
    assert_close(found.double(), exact, rtol=0, atol=5e-6)
    assert_close(mean.double(), rectified.mean(0), rtol=1e-6, atol=0)
    assert_close(variance.double(), rectified.var(0, unbiased=False), rtol=1e-6, atol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_features_are_left_as_they_were(grad: bool) -> None:
    maps = draw([(6, (5, 7)), (4, (10, 14))])
    before = [f.clone() for f in maps]
    with torch.set_grad_enabled(grad):
        for training in (False, True):
            classifier = PixelClassifier(10, 2, (4,), members=2).train(training)
            classifier(maps, (10, 14))
            x = torch.ones(9, 10)
            classifier.forward_pixels(x)
            assert torch.equal(x, torch.ones(9, 10))
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_gathered_pixels_give_the_same_logits() -> None:
    size, shapes = CASES[2]
    maps = draw(shapes)
    classifier = varied(PixelClassifier(10, 4, (16, 8), members=2)).eval()
    pixels = torch.arange(0, 37 * 51, 7)
    some = classifier.forward_pixels(gather(maps, pixels, size))
    everything = classifier(maps, size)[:, 0].flatten(2).transpose(1, 2)
    assert_close(some, everything[:, pixels], rtol=1e-5, atol=1e-5)


def test_a_part_of_the_members() -> None:
    size, shapes = CASES[1]
    classifier = varied(PixelClassifier(12, 2, (16, 8), members=5)).eval()
    everything = classifier(draw(shapes), size)
    assert torch.equal(classifier(draw(shapes), size, slice(2, 4)), everything[2:4])


def test_members_train_at_once_as_one_by_one() -> None:
    size, shapes = CASES[0]
    label = torch.randint(3, (1, *size), generator=torch.Generator().manual_seed(3))

    def train(members: int, seed: int) -> PixelClassifier:
        classifier = PixelClassifier(14, 3, (16, 8), members=members, seed=seed).train()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
        for step in range(10):
            optimizer.zero_grad()
            logits = classifier(draw(shapes, seed=step), size)
            sum(nn.functional.cross_entropy(member, label) for member in logits).backward()
            optimizer.step()
        return classifier.eval()

    together = train(4, seed=5)
    test = draw(shapes, seed=99)
    for m in range(4):
        alone = train(1, seed=5 + m)
        assert relative(together(test, size)[m], alone(test, size)[0]) < 1e-5


def test_initialisation_is_the_papers() -> None:
    classifier = PixelClassifier()
    assert [tuple(w.shape) for w in classifier.weights] == [(10, 128, 1728), (10, 32, 128), (10, 2, 32)]
    assert classifier.weights[0].std().item() == pytest.approx(0.02, rel=0.01)
    assert all(bias.abs().max() == 0 for bias in classifier.biases)
    assert not torch.equal(classifier.weights[0][0], classifier.weights[0][1])
    assert [w.shape[1] for w in PixelClassifier(8, 34, members=1).weights] == [256, 128, 34]


def test_members_are_taken_out_and_put_back() -> None:
    classifier = varied(PixelClassifier(6, 2, (4,), members=3))
    alone = PixelClassifier(6, 2, (4,), members=1)
    alone.load_state_dict(classifier.member(1))
    other = PixelClassifier(6, 2, (4,), members=3)
    other.set_member(2, classifier.member(1))
    maps = draw([(6, (3, 5))])
    expected = classifier.eval()(maps, (6, 10))[1]
    assert relative(alone.eval()(maps, (6, 10))[0], expected) < 1e-6
    assert relative(other.eval()(maps, (6, 10))[2], expected) < 1e-6


def test_a_shared_member_is_trained_in_the_memory_of_all() -> None:
    size, shapes = CASES[1]
    label = torch.randint(2, (1, *size), generator=torch.Generator().manual_seed(3))
    whole, shared = (varied(PixelClassifier(12, 2, (16, 8), members=3)).train() for _ in range(2))
    parts = [shared.shared_member(m) for m in range(3)]
    optimizers = [torch.optim.SGD(classifier.parameters(), lr=0.1) for classifier in (whole, shared)]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=False)
        maps = draw(shapes, seed=step)
        for member in (0, 2):
            nn.functional.cross_entropy(whole(maps, size, slice(member, member + 1))[0], label).backward()
            nn.functional.cross_entropy(parts[member](maps, size)[0], label).backward()
        for optimizer in optimizers:
            optimizer.step()
    for (name, a), b in zip(whole.state_dict().items(), shared.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(shared.weights[0][1], varied(PixelClassifier(12, 2, (16, 8), members=3)).weights[0][1])
    for m in range(3):
        for (name, a), b in zip(parts[m].state_dict().items(), shared.member(m).values(), strict=True):
            assert torch.equal(a, b), name


def test_config_rebuilds_it() -> None:
    classifier = varied(PixelClassifier(6, 2, (4,), members=3, seed=4))
    again = PixelClassifier(**classifier.config)
    again.load_state_dict(classifier.state_dict())
    maps = draw([(6, (3, 5))])
    assert torch.equal(again.eval()(maps, (6, 10)), classifier.eval()(maps, (6, 10)))


@pytest.mark.parametrize("make", [lambda: PixelClassifier(members=0), lambda: PixelClassifier(8, 2, (0,))])
def test_sizes_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(UserError, match="at least 1"):
        make()  # type: ignore[operator]


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="5 channels of features were given, but the head expects 6"):
        PixelClassifier(6, 2, (4,), members=1)(draw([(5, (3, 5))]), (6, 10))
    refused("5 channels", LinearClassifier(in_channels=6), draw([(5, (3, 5))]), (6, 10))


@pytest.mark.parametrize(("size", "shapes"), CASES, ids=IDS)
def test_linear_classifier_equals_a_linear_layer_on_the_stack(size: tuple, shapes: list) -> None:
    maps = draw(shapes, batch=2)
    channels = sum(c for c, _ in shapes)
    linear = nn.Linear(channels, 3)
    classifier = LinearClassifier(linear.weight.detach(), linear.bias.detach())
    expected = linear(stack(maps, size).movedim(1, -1)).movedim(-1, 1)
    assert relative(classifier(maps, size)[0], expected) < 1e-5
