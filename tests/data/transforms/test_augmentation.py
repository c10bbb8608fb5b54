import pytest
import torch
from torch import Tensor

from medmdm.data.transforms.augmentation import PRESETS, Rescaled, modality_of, preset
from tests.made import refused


def asymmetric(channels: int = 3) -> tuple[Tensor, Tensor]:
    """A bright L in the label's place, on a dark ground: no rotation or mirror image of it is itself."""
    label = torch.zeros(1, 48, 64)
    label[0, 8:40, 10:18] = 1
    label[0, 32:40, 10:50] = 1
    return (label * 1.2 - 0.6).expand(channels, -1, -1).clone(), label


@pytest.mark.parametrize("name", PRESETS)
def test_image_and_label_stay_aligned(name: str) -> None:
    image, label = asymmetric()
    spatial = preset(name).spatial
    assert spatial is not None
    moved = 0
    for seed in range(12):
        out = spatial.set_random_state(seed=seed)({"image": image, "label": label})  # type: ignore[attr-defined]
        seen, said = torch.as_tensor(out["image"])[0] > 0, torch.as_tensor(out["label"])[0]
        assert set(said.unique().tolist()) <= {0, 1}
        assert float((seen == (said > 0)).float().mean()) > 0.97  # bilinear and nearest differ at the edge
        moved += not torch.equal(said, label[0])
    assert 4 <= moved < 12  # two in three


@pytest.mark.parametrize(("name", "channels"), [("histology", 3), ("radiology", 3), ("radiology", 1)])
def test_colours_change_within_their_range(name: str, channels: int) -> None:
    image, _ = asymmetric(channels)
    intensity = preset(name).intensity
    assert intensity is not None
    seen = []
    for seed in range(12):
        out = torch.as_tensor(intensity.set_random_state(seed=seed)({"image": image.clone()})["image"])  # type: ignore[attr-defined]
        again = torch.as_tensor(intensity.set_random_state(seed=seed)({"image": image.clone()})["image"])  # type: ignore[attr-defined]
        assert torch.equal(out, again)
        assert out.shape == image.shape
        assert float(out.abs().max()) <= 1 + 1e-5
        seen.append(out)
    assert len({out.numpy().tobytes() for out in seen}) >= 8


def test_a_transform_for_zero_to_one_sees_zero_to_one() -> None:
    class Check:
        def set_random_state(self, seed: int | None = None, state: object = None) -> None: ...

        def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
            assert data["image"].tolist() == [0.0, 0.5, 1.0]
            return {"image": data["image"] * 2}

    out = Rescaled("image", Check())({"image": torch.tensor([-1.0, 0.0, 1.0])})  # type: ignore[arg-type]
    assert out["image"].tolist() == [-1.0, 1.0, 1.0]


def test_the_modality_is_read_or_guessed() -> None:
    for told in ('{"0": "MRI"}', '"CT"', '"T2 FLAIR"', '"X-ray"', '"ultrasound"'):
        assert modality_of(told, is_volume=False, channels=3) == "radiology"
    for told in ('"H&E"', '"histopathology"', '"IHC"'):
        assert modality_of(told, is_volume=False, channels=1) == "histology"
    assert modality_of('""', is_volume=False, channels=3) == "histology"
    assert modality_of("", is_volume=False, channels=1) == "radiology"
    assert modality_of("", is_volume=True, channels=3) == "radiology"
    both = '"MRI of pathological knees"'
    assert (
        modality_of(both, is_volume=False, channels=1) == modality_of(both, is_volume=True, channels=3) == "radiology"
    )
    assert modality_of('"H&E, scanned at 40x, CT-guided biopsy"', is_volume=False, channels=3) == "histology"


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_than_three_channels_have_no_stain(channels: int) -> None:
    intensity = preset("histology", channels).intensity
    assert intensity is not None
    for seed in range(8):
        intensity.set_random_state(seed=seed)
        assert intensity({"image": torch.rand(channels, 12, 16) * 2 - 1})["image"].shape == (channels, 12, 16)


def test_what_there_is_not_is_refused() -> None:
    refused("no augmentation 'histolgy' .did you mean 'histology'", preset, "histolgy")
