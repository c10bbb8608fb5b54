"""Terms beside the reconstruction, by loops and by hand."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import ContrastiveLoss
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones import ADMUNet, BasicUNetBackbone, MONAIDiffusionBackbone
from medmdm.components import instantiate, to_config
from medmdm.corruption import AdaptiveMasking, MaskedNoise, PatchMasking, UniformTimesteps
from medmdm.objectives import (
    Adversarial,
    DenseContrast,
    ImageContrast,
    L1Loss,
    Objective,
    Perceptual,
    Restored,
    SelfDistillation,
    SliceOrder,
    SlicePosition,
    Spectral,
    Term,
)  # fmt: skip
from medmdm.objectives import term as term_module
from medmdm.objectives.term import keep_features, step_terms
from tests.made import refused


class Teacher(nn.Module):
    """Two blocks: at half the resolution with 4 channels, and at the whole with 2."""

    reduction = 2

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.low, self.high = nn.Conv2d(channels, 4, 2, stride=2), nn.Conv2d(channels, 2, 3, padding=1)

    def features(self, x: Tensor, t: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        assert (t == 0).all()
        return [(self.low, self.high)[block](x) for block in blocks]


def seen(batch: int = 3, channels: int = 3, progress: float = 0.5, **batch_values: Tensor) -> Restored:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(batch, channels, 8, 12, generator=g) * 2 - 1
    t = torch.full((batch,), 500)
    corrupted = PatchMasking(1000, 4)(images, t, g)
    features = {
        0: torch.randn(batch, 4, 4, 6, generator=g, requires_grad=True),
        1: torch.randn(batch, 2, 8, 12, generator=g, requires_grad=True),
    }
    pred = torch.randn(images.shape, generator=g, requires_grad=True)
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    teacher = Teacher(channels)
    return Restored(
        images,
        corrupted.x_t,
        t,
        corrupted.visible,
        pred,
        features,
        teacher,
        teacher,
        batch_values,
        generators,
        progress,
    )


def test_self_distillation_by_loops() -> None:
    term, what = SelfDistillation([4, 2], [0, 1], beta=0.5), seen()
    found = term(what)
    losses = []
    for block, predictor in zip((0, 1), term.predictors, strict=True):
        target = what.teacher.features(what.images, torch.zeros(3), [block])[0].detach().numpy()
        guess = predictor(what.features[block]).detach().numpy()
        step = 8 // target.shape[2]
        per_image = []
        for n in range(3):
            cells = []
            for r in range(target.shape[2]):
                for c in range(target.shape[3]):
                    window = what.visible[n, 0, r * step : (r + 1) * step, c * step : (c + 1) * step]
                    if (1 - window).mean() < 0.5:
                        continue
                    want = target[n, :, r, c]
                    want = (want - want.mean()) / np.sqrt(want.var() + 1e-5)
                    d = np.abs(guess[n, :, r, c] - want)
                    cells.append(np.where(d < 0.5, d**2, d - 0.25).mean())  # beta 0.5: d² / (2 beta), d - beta / 2
            per_image.append(np.mean(cells))
        losses.append(np.mean(per_image))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)
    found.backward()
    assert all(what.features[b].grad.abs().sum() > 0 for b in (0, 1))
    assert all(p.grad is None for p in what.teacher.parameters())


def test_self_distillation_counts_all_cells_where_nothing_is_hidden_and_none_without_hidden_cells() -> None:
    term, what = SelfDistillation([4], [0]), seen(2)
    what.visible[:] = 1
    assert float(term(what)) > 0
    what.visible[0, :, 0, 0] = 0  # hidden, but less than half of a cell
    alone = seen(2)
    alone.visible[:] = 1
    whole = float(term(what))
    assert 0 < whole < float(term(alone))


def test_dense_contrast_by_loops() -> None:
    term, what = DenseContrast(4, 0, cells=5, size=8, queue=16, temperature=0.3, window=0.5, momentum=0.9), seen()
    loss = term(what)
    # The same draws again: corner and mirror, then cells.
    vectors, queries = [], []
    for n in range(3):
        g = torch.Generator().manual_seed(n)
        u = torch.rand(3, generator=g).tolist()
        order = torch.rand(6, generator=g).argsort()[:5].tolist()
        row, column = min(int(u[0] * 3), 2), min(int(u[1] * 4), 3)  # 4 x 6 cells, the window has 2 x 3
        part = what.images[n, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 6]
        if u[2] < 0.5:
            part = part.flip(-1)
        cells = what.teacher.low(part[None])[0]
        for cell in order:
            r, c = divmod(cell, 3)
            # Cell (r, c) of the window unmirrored is at column 2 - c of the mirrored one.
            key = cells[:, r, 2 - c if u[2] < 0.5 else c]
            vectors.append(F.normalize(term.averaged(key), dim=0))
            queries.append(F.normalize(term.projector(what.features[0][n, :, row + r, column + c]), dim=0))
    logits = torch.stack(queries) @ torch.stack(vectors).T / 0.3
    expected = F.cross_entropy(logits, torch.arange(15))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    old = [p.clone() for p in term.averaged.parameters()]
    loss.backward()
    term.optimizer.step()
    term.after_step()
    for before, after, new in zip(old, term.averaged.parameters(), term.projector.parameters(), strict=True):
        assert torch.allclose(after, 0.9 * before + 0.1 * new, atol=1e-7)
    assert int(term.filled) == 15
    assert torch.allclose(term.queue[:15], torch.stack(vectors), atol=1e-6)
    later = term(seen())  # now there are negatives of earlier steps
    assert torch.isfinite(later)
    term.after_step()
    assert int(term.filled) == 16


def test_image_contrast_is_monais_on_pooled_features() -> None:
    term, what = ImageContrast(4, 0, temperature=0.7), seen()
    taught = what.teacher.low(what.images).mean((2, 3))
    expected = ContrastiveLoss(0.7)(term.projector(what.features[0].mean((2, 3))), term.projector(taught))
    assert float(term(what)) == pytest.approx(float(expected), rel=1e-5)


def test_slice_position_by_loops() -> None:
    places = torch.tensor([0.1, 0.15, 0.5, 0.9, 0.12])
    term, what = SlicePosition(4, 0, distance=0.045, temperature=0.2), seen(5, position=places)
    z = F.normalize(term.projector(what.features[0].mean((2, 3))), dim=1).detach().numpy()
    losses = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        total = sum(math.exp(z[i] @ z[j] / 0.2) for j in others)
        alike = [j for j in others if abs(places[i] - places[j]) < 0.045]
        losses.append(-np.mean([z[i] @ z[j] / 0.2 - math.log(total) for j in alike]) if alike else 0.0)
    assert losses[2] == losses[3] == 0
    assert float(term(what)) == pytest.approx(np.mean(losses), rel=1e-5)
    refused("needs slices of volumes", lambda: term(seen()))


def test_slice_order_asks_for_the_middle_one() -> None:
    term, what = SliceOrder(4, 0), seen(6)
    class_of = []
    mixed = what.images.clone()
    for n in range(6):
        order = torch.rand(3, generator=torch.Generator().manual_seed(n)).argsort().tolist()
        mixed[n] = what.images[n, order]
        class_of.append(order.index(1))
    assert len(set(class_of)) > 1
    logits = term.classifier(what.student.low(mixed).mean((2, 3)))
    assert float(term(what)) == pytest.approx(float(F.cross_entropy(logits, torch.tensor(class_of))), rel=1e-5)
    refused("context_slices", lambda: term(seen(channels=1)))


def test_the_discriminator_learns_apart_from_the_network() -> None:
    term, what = Adversarial(3, warmup=0.5, num_layers=1, discriminator_channels=4), seen()
    judged = term.discriminator(what.pred)[-1]
    value, own = term(what), term.own_loss(what)
    assert float(value) == pytest.approx(float((judged - 1).square().mean()), rel=1e-4)
    real, fake = term.discriminator(what.images)[-1], term.discriminator(what.pred)[-1]
    expected = ((real - 1).square().mean() + fake.square().mean()) / 2
    assert float(own) == pytest.approx(float(expected), rel=1e-4)
    value.backward()
    assert what.pred.grad.abs().sum() > 0
    assert all(p.grad is None for p in term.parameters())
    what.pred.grad = None
    own.backward()
    assert what.pred.grad is None
    assert all(p.grad is not None for p in term.parameters())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, nn.InstanceNorm2d)
                   for m in term.modules())  # fmt: skip


def test_perceptual_and_spectral_by_numpy() -> None:
    what = seen()
    norm = lambda f: (f - f.mean(1, keepdim=True)) / (f.var(1, keepdim=True, correction=0) + 1e-5).sqrt()  # noqa: E731
    found, wanted = norm(what.teacher.low(what.pred)), norm(what.teacher.low(what.images))
    loss = Perceptual([0])(what)
    assert float(loss) == pytest.approx(float((found - wanted).square().mean()), rel=1e-4)
    loss.backward()
    assert what.pred.grad.abs().sum() > 0
    magnitudes = [np.abs(np.fft.rfft2(x.detach().numpy(), norm="ortho")) for x in (what.pred, what.images)]
    assert float(Spectral()(what)) == pytest.approx(np.abs(magnitudes[0] - magnitudes[1]).mean(), rel=1e-5)


TERMS = [
    SelfDistillation([4], [0]), DenseContrast(4, 0), ImageContrast(4, 0), SlicePosition(4, 0), SliceOrder(4, 0),
    Adversarial(3, num_layers=1, discriminator_channels=4), Perceptual(), Spectral(),
]  # fmt: skip


@pytest.mark.parametrize("term", TERMS, ids=lambda term: type(term).__name__)
def test_what_every_term_does(term: Term) -> None:
    again = instantiate(to_config(term), trust=True)
    assert to_config(again) == to_config(term)
    what = lambda: seen(4, position=torch.tensor([0.1, 0.11, 0.8, 0.82]))  # noqa: E731
    what()  # whose networks draw their weights
    state = torch.get_rng_state()
    assert torch.equal(again(what()), term(what()))  # the layers' weights come from the term's own seed
    assert torch.equal(torch.get_rng_state(), state)
    if term.optimizer is not None:  # a state that has moved comes back
        objective = Objective(PatchMasking(), UniformTimesteps(), L1Loss(), terms=[term])
        for _ in range(2):
            value, own = objective.added(what())
            term.zero_grad()
            (value + own).backward()
            term.optimizer.step()
            term.after_step()
        again.load_state(copy.deepcopy(term.state()))  # as a file has it
        for one in (term, again):
            value, own = Objective(PatchMasking(), UniformTimesteps(), L1Loss(), terms=[one]).added(what())
            one.zero_grad()
            (value + own).backward()
            one.optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(term.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_before_its_warm_up_a_term_takes_no_step(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else scaled gradients stop the run, and two processes count a step that one does not take."""
    many = {"is_initialized": lambda: True, "get_world_size": lambda: processes, "all_reduce": lambda *_, **__: None}
    for name, said in many.items():
        monkeypatch.setattr(term_module.distributed, name, said)
    term = SelfDistillation([1], [8], warmup=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaler.scale(torch.zeros((), requires_grad=True)).backward()
    step_terms([term], scaler)
    assert not term.optimizer.state


def test_weights_rise_and_add_up() -> None:
    terms = [Spectral(weight=2.0, warmup=0.5), Spectral(weight=1.0)]
    objective = Objective(PatchMasking(), UniformTimesteps(), L1Loss(), terms=terms)
    alone = float(Spectral()(seen()))
    assert float(objective.added(seen(progress=0.0))[0]) == pytest.approx(alone)
    assert float(objective.added(seen(progress=0.25))[0]) == pytest.approx(2 * alone)
    assert float(objective.added(seen(progress=0.9))[0]) == pytest.approx(3 * alone)


@pytest.mark.parametrize("network", [
    ADMUNet(2, 3, 3, 32, (1, 1), 1, (2,), num_head_channels=16),
    BasicUNetBackbone(features=(8, 8, 16, 16, 32, 8)),
    MONAIDiffusionBackbone(num_res_blocks=1, channels=(32, 64), attention_levels=(False, True), num_head_channels=32),
], ids=lambda n: type(n).__name__)  # fmt: skip
def test_blocks_of_one_pass_are_the_features(network: Any) -> None:
    x, t = torch.randn(2, 3, 32, 16), torch.tensor([10, 700])
    blocks = [info["block"] for info in network.feature_info]
    assert len(network.block_modules()) == len(blocks)
    with torch.no_grad(), keep_features(network, blocks) as kept:
        network(x, t)
        for block, features in zip(blocks, network.features(x, t, blocks), strict=True):
            assert torch.equal(kept[block], features)
    network(x, t)
    assert len(kept) == len(blocks)  # the hooks are gone: nothing is written any more
    refused("no block", lambda: keep_features(network, [99]).__enter__())
    refused("does not have", lambda: keep_features(nn.Conv2d(1, 1, 1), [0]).__enter__())


def test_adaptive_masking_hides_what_is_hard() -> None:
    corrupt, t = AdaptiveMasking(1000, 2, max_share=0.5), torch.full((200,), 500)
    x0 = torch.ones(200, 1, 4, 8)
    error = torch.arange(8.0).reshape(1, 1, 2, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(200, 1, 4, 8)
    g = torch.Generator().manual_seed(0)
    plain = PatchMasking(1000, 2)(x0, t, torch.Generator().manual_seed(1)).visible
    assert torch.equal(corrupt(x0, t, torch.Generator().manual_seed(1)).visible, plain)
    for progress, hard in ((0.0, 0), (0.5, 1), (0.99, 1), (1.0, 2)):
        given = {"error": error, "progress": torch.full((200, 1, 1, 1), progress)}
        hidden = 1 - corrupt(x0, t, g, **given).visible[:, 0, ::2, ::2].flatten(1)
        assert hidden.sum(1).unique().tolist() == [4]
        shares = hidden.mean(0)
        assert (shares[8 - hard :] == 1).all()
        rest = (4 - hard) / (8 - hard)
        assert (shares[: 8 - hard] - rest).abs().max() < 4.5 * (0.25 / 200) ** 0.5
    refused("max_share", lambda: AdaptiveMasking(max_share=2))


def test_hardness_is_the_error_while_hidden() -> None:
    objective = Objective(AdaptiveMasking(1000, 2), UniformTimesteps(), L1Loss())
    images = torch.rand(2, 3, 4, 8)
    shown: list[Tensor] = []

    def restore(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.tolist() == [500, 500]
        shown.append(x_t)
        return torch.zeros_like(x_t)

    error = objective.hardness(images, restore, [torch.Generator().manual_seed(i) for i in range(2)])
    assert torch.allclose(error, images.mean(1, keepdim=True))  # each pixel was hidden once, and restored as 0
    assert torch.equal(sum(shown), images)
    assert ((shown[0] == 0).float().mean((1, 2, 3)) == 0.5).all()


def test_image_and_noise_by_hand() -> None:
    objective = Objective(MaskedNoise(1000, 4), UniformTimesteps(), L1Loss(), "image and noise", noise_weight=0.5)
    images = torch.rand(2, 1, 8, 8)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    x_t, t, target, visible = objective.pose(images, generators)
    assert target.shape == (2, 2, 8, 8)
    assert torch.equal(target[:, :1], images)
    pred = torch.randn(2, 2, 8, 8)
    noise = [
        float(((pred[i, 1] - target[i, 1]) ** 2)[visible[i, 0] == 1].mean()) if visible[i].any() else 0.0
        for i in range(2)
    ]
    expected = float((pred[:, :1] - images).abs().mean()) + 0.5 * np.mean(noise)
    assert float(objective.loss(pred, target, visible)) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(objective.restored(pred, x_t, t), pred[:, :1])
    refused("network_def#out_channels", lambda: objective.loss(pred[:, :1], target, visible))
    refused("adds noise", lambda: Objective(PatchMasking(), UniformTimesteps(), L1Loss(), "image and noise"))


def test_bad_settings_are_refused() -> None:
    refused("weight", lambda: Spectral(weight=-1))
    refused("warmup", lambda: Spectral(warmup=2))
    refused("for each block", lambda: SelfDistillation([4], [0, 1]))
    refused("beta", lambda: SelfDistillation([4], [0], beta=0))
    refused("temperature", lambda: DenseContrast(4, 0, temperature=0))
    refused("temperature", lambda: ImageContrast(4, 0, temperature=0))
    refused("distance", lambda: SlicePosition(4, 0, distance=0))
