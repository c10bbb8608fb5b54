"""One image through MONAI's transforms gives what the predictor gives: pictures, small ones, volumes, at a spacing."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from medmdm.corruption import Corruption, Downsample, FrequencyMasking, PatchMasking
from medmdm.data import CaseReader, Corruptd, ReadImaged
from medmdm.data.selection import Selection
from medmdm.heads import Predictor, Reading, SliceBySlice
from medmdm.segment import MaskFromLogitsd, PostProcess
from tests.made import refused
from tests.written import picture, write_nifti

PLAN: dict[str, Any] = {"channels": 1, "intensity_range": [0, 255], "slice_axis": "axial"}


class Bright(nn.Module):
    """Logits of dark and bright; of the neighbourhood, so that windows and their edges matter."""

    def forward(self, image: Tensor) -> Tensor:
        near = nn.functional.avg_pool2d(image[:, :1], 3, 1, 1)
        return torch.cat([-near, near], dim=1)


def through_transforms(path: Path, plan: dict[str, Any], store: Path, reading: Reading, **entry: Any) -> dict[str, Any]:
    window = None if reading.whole else reading.window
    read = ReadImaged("image", plan, window, store=store)
    inner = None if reading.whole else SlidingWindowInferer(reading.window, 4, reading.overlap, "gaussian")
    data = read({"image": str(path), **entry})
    data["pred"] = SliceBySlice(inner)(data["image"][None].as_tensor(), Bright())[0]
    done: dict[str, Any] = MaskFromLogitsd("pred", PostProcess())(data)
    return done


def by_predictor(path: Path, plan: dict[str, Any], store: Path, reading: Reading, **entry: Any) -> np.ndarray:
    reader = CaseReader(Selection(path.parent, None, (), (), (), (), ()), plan, store)
    case = reader.read({"image": str(path), "case": "case", **entry})
    mask = PostProcess()(Predictor(Bright(), reading).case(case).probabilities, case.spacing)["mask"]
    assert mask is not None
    return mask


@pytest.mark.parametrize("shape", [(40, 27), (9, 50), (5, 6)], ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_pictures(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int], whole: bool) -> None:
    path = picture(tmp_path / "a.png", rng.integers(0, 256, shape))
    reading = Reading((16, 16), whole, 0.25)
    done = through_transforms(path, PLAN, tmp_path, reading)
    assert tuple(done["pred"].shape) == (1, *shape)
    assert done["pred"].dtype == torch.uint8
    assert done["image"].meta["spatial_shape"] == shape
    np.testing.assert_array_equal(done["pred"][0].numpy(), by_predictor(path, PLAN, tmp_path, reading))
    assert 0 < int(done["pred"].sum()) < shape[0] * shape[1]


def test_pictures_at_a_spacing(tmp_path: Path, rng: np.random.Generator) -> None:
    path = picture(tmp_path / "a.png", rng.integers(0, 256, (40, 28)))
    plan, reading = {**PLAN, "spacing": [2.0, 4.0]}, Reading((8, 8))
    done = through_transforms(path, plan, tmp_path, reading, spacing=[1.0, 2.0])
    assert done["image"].shape == (1, 20, 14)
    assert done["pred"].shape == (1, 40, 28)
    expected = by_predictor(path, plan, tmp_path, reading, spacing=[1.0, 2.0])
    np.testing.assert_array_equal(done["pred"][0].numpy(), expected)
    refused("pixel spacing of .*a.png is not known", through_transforms, path, plan, tmp_path, reading)
    assert ReadImaged("image", plan, image_spacing=[1.0, 2.0])({"image": str(path)})["image"].shape == (1, 20, 14)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("context", [0, 1])
def test_volumes(tmp_path: Path, rng: np.random.Generator, axis: str, context: int) -> None:
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = 5, -7, 11
    path = write_nifti(tmp_path / "v.nii.gz", rng.integers(0, 256, (18, 22, 7)).astype(np.int16), affine)
    plan = {**PLAN, "slice_axis": axis, "context_slices": context, "channels": 1 + 2 * context}
    reading = Reading((16, 16), overlap=0.25)
    done = through_transforms(path, plan, tmp_path / "store", reading)
    assert len(done["image"]) == 1 + 2 * context
    assert tuple(done["pred"].shape) == (1, 18, 22, 7)
    np.testing.assert_allclose(done["pred"].affine.numpy(), nib.load(path).affine)
    np.testing.assert_array_equal(done["pred"][0].numpy(), by_predictor(path, plan, tmp_path / "store", reading))


def test_what_was_not_read_so_is_refused() -> None:
    refused(
        "'image' was not read by medmdm.data.ReadImaged",
        MaskFromLogitsd("pred", PostProcess()),
        {"pred": torch.zeros(2, 4, 4)},
    )
    refused("'image' is a Tensor, expected the path", ReadImaged("image", PLAN), {"image": torch.zeros(1, 4, 4)})


@pytest.mark.parametrize("corruption", [FrequencyMasking(), Downsample(levels=3)])
def test_any_corruption_damages_an_image_of_any_size(corruption: Corruption) -> None:
    image = torch.rand(1, 21, 13)
    damaged = Corruptd("image", corruption, 900)({"image": image})["image"]
    assert damaged.shape == image.shape
    assert not torch.equal(damaged, image)


@pytest.mark.parametrize("shape", [(1, 20, 13), (1, 3, 20, 13)], ids=["picture", "slices"])
def test_damage_is_that_of_training_and_always_the_same(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape) + 0.5
    corruption = PatchMasking(1000, 4)
    damaged = Corruptd("image", corruption, 500)({"image": image})["image"]
    torch.testing.assert_close(damaged, Corruptd("image", corruption, 500)({"image": image})["image"], rtol=0, atol=0)
    assert damaged.shape == image.shape
    assert not torch.equal(damaged, Corruptd("image", corruption, 500, seed=1)({"image": image})["image"])
    kept = damaged == image
    assert 0.2 < kept.float().mean() < 0.8  # t = 500 of 1000 hides half of the patches
    first = kept[..., :4, :4].flatten(-2)  # a patch is hidden whole or not at all
    assert bool((first.all(-1) | ~first.any(-1)).all())
