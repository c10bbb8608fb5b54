"""Files that medmdm 0.1 wrote (``tests/golden/v0_1``) load and predict what they predicted."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medmdm.artifacts.backbone import make_extractor
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.components import instantiate
from medmdm.corruption import MaskedNoise, PatchMasking
from medmdm.heads import LinearClassifier, PixelClassifier
from medmdm.segment import PostProcess

NEAR = {"rtol": 1e-4, "atol": 3e-5}  # another processor may add in another order


@pytest.fixture(scope="module")
def written(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v0_1")
    for packed in (golden / "v0_1").glob("*.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def outputs(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "v0_1" / "outputs.npz") as found:
        return {key: torch.from_numpy(found[key]) for key in found.files}


def image(seed: int, *spatial: int) -> Tensor:
    return torch.rand(1, 3, *spatial, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_backbone(written: Path, outputs: dict[str, Tensor]) -> None:
    network, plan = load_pretrained(written / "model.pt")
    assert plan["network"]["_target_"] == "medmdm.networks.ADMUNet"
    torch.testing.assert_close(network(image(8, 16, 24), torch.tensor([700])), outputs["restored"], **NEAR)
    extractor, _, _ = make_extractor(written / "model.pt", blocks=[1, 2], timesteps=[300])
    assert extractor.corruption == PatchMasking(1000, 4)
    for number, f in enumerate(extractor(image(7, 13, 22))):
        torch.testing.assert_close(f[:, ::8], outputs[f"map_{number}"], **NEAR)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["segmenter", "head", "network"])
def test_segmenter(written: Path, outputs: dict[str, Tensor], kind: str) -> None:
    segmenter, plan = load_segmenter(written / f"{kind}.pt", written / "model.pt" if kind == "head" else None)
    torch.testing.assert_close(segmenter(image(7, 13, 22)), outputs[kind], **NEAR)
    if kind == "segmenter":
        assert isinstance(segmenter.head, PixelClassifier)
        post = instantiate(plan["task"]["postprocess"], kind=PostProcess)
        assert np.array_equal(post(outputs[kind][0].numpy())["instances"], outputs["instances"].numpy())
        assert outputs["instances"].max() > 0
    elif kind == "head":
        assert isinstance(segmenter.head, LinearClassifier)
        assert segmenter.extractor.corruption == MaskedNoise(1000, 4, "cosine", 0.5)
