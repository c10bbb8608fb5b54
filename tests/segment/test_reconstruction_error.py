"""The reconstruction error against loops, scikit-image and networks that know too much, and its way to the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.components import to_config
from medmdm.corruption import FixedTimesteps, GaussianNoise, MaskedNoise, PatchMasking
from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import Slicing
from medmdm.data.reading import Example, LoadedCase
from medmdm.data.transforms.spatial import resample_to_shape
from medmdm.errors import UserError
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading
from medmdm.segment.reconstruction_error import ReconstructionError
from tests.bundle_runs import Run, write_backbone
from tests.made import SIZES, refused, with_random_weights

PLAN = {"corruption": to_config(PatchMasking(patch_size=4)), "target": "image"}


class Stub(nn.Module):
    """A network of one's own making; counts its calls."""

    reduction = 2
    feature_info = ({"block": 0, "channels": 3, "reduction": 1},)

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.given: list[Tensor] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.given.append(x)
        return self.function(x, len(self.given))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def network(channels: int = 3) -> ADMUNet:
    return with_random_weights(ADMUNet(in_channels=channels, out_channels=channels, **SIZES))  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "settings"),
    [((2, 3, 13, 22), {}), ((1, 1, 16, 24), {"timestep": 250}), ((1, 1, 5, 3), {}), ((1, 3, 1, 9), {"partitions": 3})],
    ids=str,
)
def test_every_patch_is_the_one_that_was_restored_while_hidden(shape: tuple[int, ...], settings: dict) -> None:
    net, x = network(shape[1]), noise(*shape)
    error = ReconstructionError((net, PLAN), **settings)
    rows, columns = (-(-n // 4) * 4 for n in shape[2:])
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, rows - shape[2]), (0, columns - shape[3])], "edge")
    t = settings.get("timestep", 333 if settings else 100)
    masks = [damage.visible.numpy() for damage in error.masks.corruptions(torch.from_numpy(padded), t)]
    assert len(masks) == min(round(1000 / t), rows * columns // 16)
    expected = np.full_like(padded, np.nan)
    for i in range(0, rows, 4):
        for j in range(0, columns, 4):
            (hiding,) = [mask for mask in masks if not mask[:, :, i : i + 4, j : j + 4].any()]
            answer = net(torch.from_numpy(padded * hiding), torch.full((shape[0],), t)).numpy()
            expected[:, :, i : i + 4, j : j + 4] = answer[:, :, i : i + 4, j : j + 4].clip(-1, 1)
    np.testing.assert_allclose(error.restored(x).numpy(), expected[:, :, : shape[2], : shape[3]], atol=2e-5)
    assert error(x).shape == (shape[0], 1, *shape[2:])


def test_nothing_is_copied_from_what_is_seen() -> None:
    x = noise(2, 3, 13, 22)
    seeing = ReconstructionError((Stub(lambda x_t, call: x_t), PLAN))  # gives back all that it sees
    assert not seeing.restored(x).any()
    counting = Stub(lambda x_t, call: torch.full_like(x_t, call / 16))
    restored = ReconstructionError((counting, PLAN)).restored(x)
    assert len(counting.given) == 10
    for call, given in enumerate(counting.given, start=1):
        hidden = given[..., :13, :22] == 0
        assert 0.02 < float(hidden.float().mean()) < 0.2
        assert torch.equal(restored == call / 16, hidden)


@pytest.mark.parametrize("shape", [(1, 3, 21, 30), (2, 1, 12, 40), (1, 2, 7, 6)], ids=str)
def test_the_map_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    x, answer = noise(*shape), noise(1, shape[1], 64, 64, seed=1)
    answering = Stub(lambda x_t, call: answer[..., : x_t.shape[2], : x_t.shape[3]].expand_as(x_t))
    error = ReconstructionError((answering, PLAN))
    found = error(x).numpy()
    for b in range(shape[0]):
        maps = []
        for c in range(shape[1]):
            # scikit-image mirrors with the border's own pixels twice: it gets an image mirrored as ours is.
            one, other = (np.pad(i.numpy(), 10, "reflect") for i in (x[b, c], answer[0, c, : shape[2], : shape[3]]))
            _, ssim = structural_similarity(
                one.astype(float) + 1, other.astype(float) + 1, data_range=2.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, full=True,
            )  # fmt: skip
            maps.append((1 - ssim[10:-10, 10:-10]) / 2)
        np.testing.assert_allclose(found[b, 0], np.mean(maps, axis=0), atol=1e-5)
    assert 0 <= found.min() < found.max() <= 1


def test_what_is_restored_exactly_has_no_error_and_what_was_put_in_has() -> None:
    clean = noise(1, 3, 32, 40)
    knowing = ReconstructionError((Stub(lambda x_t, call: clean), PLAN))
    assert float(knowing(clean).max()) < 1e-6
    odd = clean.clone()
    odd[..., 9:21, 14:30] = -odd[..., 9:21, 14:30]
    found = knowing(odd)[0, 0]
    assert float(found[14:16, 19:25].min()) > 0.6  # inverted: SSIM is negative
    outside = torch.ones(32, 40, dtype=torch.bool)
    outside[4:26, 9:35] = False  # the window reaches five pixels
    assert float(found[outside].max()) < 1e-6


def waves(count: int, seed: int) -> Tensor:
    """Upright stripes that begin anywhere."""
    phase = 2 * torch.pi * torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return 0.8 * torch.sin(torch.arange(32.0) * 0.6 + phase).expand(count, 1, 32, 32)


@pytest.mark.slow
def test_a_trained_network_errs_where_the_picture_was_changed() -> None:
    torch.manual_seed(0)
    masking = PatchMasking(patch_size=4)
    net = ADMUNet(in_channels=1, out_channels=1, **{**SIZES, "attention_resolutions": ()})
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(60):
        x, t = waves(4, step), torch.full((4,), 250)
        x_t, _ = masking(x, t, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x_t, t) - x).abs().mean().backward()
        optimizer.step()
    error = ReconstructionError((net.eval(), PLAN), timestep=250)
    pictures = waves(6, 1000)
    truth = np.zeros((32, 32), bool)
    truth[11:21, 8:18] = True  # on no grid of patches
    changed = torch.where(torch.from_numpy(truth), pictures.mT, pictures)
    assert np.mean([roc_auc_score(truth.ravel(), found.numpy().ravel()) for found in error(changed)]) > 0.9
    before, after = (float(error(x)[:, 0, truth].mean()) for x in (pictures, changed))
    assert after > 2 * before


def test_timestep_and_masks_go_together() -> None:
    def settings(plan: dict[str, Any], **arguments: Any) -> tuple[int, int]:
        error = ReconstructionError((network(), plan), **arguments)
        return error.timestep, len(error.masks.corruptions(noise(1, 3, 32, 32), error.timestep))

    assert settings(PLAN) == (100, 10)
    assert settings(PLAN, partitions=4) == (250, 4)
    assert settings(PLAN, timestep=50) == (50, 20)
    assert settings(PLAN, timestep=50, partitions=2) == (50, 2)
    assert settings({**PLAN, "corruption": to_config(PatchMasking(200, 8))}) == (20, 10)
    assert settings({**PLAN, "timesteps": to_config(FixedTimesteps(750))}) == (750, 2)  # each hides half, not 75 %
    assert settings({**PLAN, "timesteps": to_config(FixedTimesteps(750))}, partitions=3) == (750, 3)
    assert settings({}, corruption=PatchMasking(patch_size=8)) == (100, 10)  # a published file
    assert settings({}, corruption={"_target_": "medmdm.corruption.PatchMasking", "patch_size": 8}) == (100, 10)


def test_the_seed_fixes_the_masks() -> None:
    x = noise(1, 3, 16, 24)
    maps = [ReconstructionError((network(), PLAN), seed=seed)(x) for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


@pytest.mark.parametrize(("changes", "arguments", "sentence"), [
    ({"target": "noise"}, {}, "predicts the noise, not the image"),
    ({"corruption": to_config(GaussianNoise())}, {}, "with GaussianNoise"),
    ({"corruption": to_config(MaskedNoise())}, {}, "with MaskedNoise"),
    ({"corruption": None}, {}, "its plan does not say on what"),
    ({}, {"partitions": 1}, "surprise#partitions is 1"),
    ({}, {"timestep": 1000}, "from 0 to 999"),
])  # fmt: skip
def test_what_restores_no_hidden_patches_is_refused(changes: dict, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        ReconstructionError((network(), {**PLAN, **changes}), **arguments)
    assert "\n" not in str(caught.value)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    refused("cut off", ReconstructionError, (network().truncated(2), PLAN))
    refused("predicts 6 channels for images of 3", ReconstructionError, (ADMUNet(out_channels=6, **SIZES), PLAN))
    file = write_backbone(tmp_path / "noisy.pt", target="noise")
    refused(r"noisy\.pt predicts the noise", ReconstructionError, str(file))
    refused(r"set backbone to the model\.pt", ReconstructionError, None)


def loaded(examples: list[Tensor], shape: tuple[int, ...], slicing: Slicing | None = None) -> LoadedCase:
    made = [Example(x, torch.zeros(x.shape[1:], dtype=torch.long)) for x in examples]
    return LoadedCase({"case": "a"}, made, tuple(range(1, len(made) + 1)), slicing, None, shape, ("", ""))


@pytest.mark.slow
def test_pictures_in_windows_and_volumes_slice_by_slice_lie_on_their_files() -> None:
    error = ReconstructionError((network(1), PLAN))
    x = noise(1, 30, 21)
    whole = Predictor(error, Reading((16, 16), whole=True))
    assert torch.equal(torch.from_numpy(whole.values(loaded([x], (30, 21)))), error(x[None])[0])
    expected = resample_to_shape(error(x[None])[0], (61, 40)).numpy()
    np.testing.assert_allclose(whole.values(loaded([x], (61, 40))), expected, atol=1e-6)
    halves = torch.cat([error(x[None, :, :15]), error(x[None, :, 15:])], dim=2)[0]
    windows = Predictor(error, Reading((15, 21), overlap=0)).values(loaded([x], (30, 21)))
    np.testing.assert_allclose(windows, halves.numpy(), atol=1e-5)
    blended = Predictor(error, Reading((16, 16))).values(loaded([x], (30, 21)))
    assert blended.shape == (1, 30, 21)
    assert 0 <= blended.min() < blended.max() <= 1

    slicing = Slicing((12, 10, 4), np.diag([1.0, 1.0, 1.0, 1.0]), "axial")
    slices = [noise(1, 20, 24, seed=k) for k in range(2)]  # at twice the resolution; the first and last are missing
    volume = whole.values(loaded(slices, slicing.shape, slicing))
    assert volume.shape == (1, 12, 10, 4)
    found = slicing.to_slices(volume)
    assert not found[[0, 3]].any()
    for k, x in enumerate(slices, start=1):
        expected = resample_to_shape(error(x[None])[0], slicing.slice_shape).numpy()
        np.testing.assert_allclose(found[k], expected, atol=1e-6)


RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}


def test_from_the_bundles_to_the_report(run: Run, refused: Run, tmp_path: Path, pictures: Path) -> None:
    model = str(tmp_path / "model.pt")
    run("mdm_segment", head=RIDGE, whole_images=True, report=False)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [case["surprise"] for case in record["cases"]] == [None, None]
    # It says nothing of what was learnt: the same run goes on with it.
    run("mdm_segment", head=RIDGE, whole_images=True, write_surprise=True)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [case["surprise"] for case in record["cases"]] == [f"predictions/{n}_surprise.tif" for n in (4, 5)]
    rows = pd.read_csv(tmp_path / "run" / "per_case.csv").set_index("case")
    for n in (4, 5):
        image = torch.from_numpy(read_image(pictures / f"{n}.png")).float() / 127.5 - 1
        expected = ReconstructionError(model)(image[None])[0, 0].numpy()
        with Image.open(tmp_path / "run" / f"predictions/{n}_surprise.tif") as file:
            np.testing.assert_allclose(np.asarray(file), expected, atol=1e-6)
        assert rows.loc[n, "surprise"] == pytest.approx(expected.mean(), abs=1e-5)
    page = (tmp_path / "run" / "index.html").read_text()
    assert page.count("Reconstruction error: how badly the network restores the image") >= 2

    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "write_surprise": True}
    written = (tmp_path / "run" / "predictions" / "4_surprise.tif").read_bytes()
    run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), backbone=model, report=False, **settings)
    assert (tmp_path / "evaluated" / "predictions" / "4_surprise.tif").read_bytes() == written
    run("mdm_infer", output_dir=str(tmp_path / "inferred"), backbone=model, **settings)
    assert (tmp_path / "inferred" / "predictions" / "4_surprise.tif").read_bytes() == written
    for bundle, key in (("mdm_evaluate", "run_dir"), ("mdm_infer", "output_dir")):
        refused("write_surprise needs the whole network", bundle, **{key: str(tmp_path / "none")}, **settings)
        assert not (tmp_path / "none").exists()
