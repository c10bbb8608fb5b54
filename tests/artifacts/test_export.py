import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from medmdm.artifacts import export
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.cli import main
from medmdm.corruption import Corruption, GaussianNoise, MaskedNoise, PatchMasking
from medmdm.errors import UserError
from medmdm.heads.classifier_network import LinearClassifier, PixelClassifier
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from tests.heads.test_classifier_network import varied
from tests.made import Make

SIZE = (13, 22)  # padded inside

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def segmenter_of(
    make: Make, corruption: Corruption, members: int = 2, ensemble: str = "mean", **arguments: Any
) -> Segmenter:
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    extractor = FeatureExtractor(network, (0, 2), **{"timesteps": (300,), "corruption": corruption, **arguments})
    head: nn.Module
    if members > 0:
        head = varied(PixelClassifier(extractor.num_features, 2, (16, 8), members))
        with torch.no_grad():
            head.weights[0].mul_(100)  # the paper's normalisation makes features small: the image would not matter
    else:
        weight = torch.randn(2, extractor.num_features, generator=torch.Generator().manual_seed(0))
        head = LinearClassifier(weight, torch.tensor([0.1, 0.2]))
    return Segmenter(extractor, head, ensemble)


CASES: dict[str, dict[str, Any]] = {
    "paper": {"corruption": PatchMasking(patch_size=4), "normalize": "global_l2"},
    "standardized": {"corruption": PatchMasking(patch_size=4), "normalize": "standardize"},
    "noise": {"corruption": GaussianNoise(), "normalize": "rms", "members": 1, "timesteps": (50, 300)},
    "mask and noise": {"corruption": MaskedNoise(patch_size=4), "normalize": "none", "ensemble": "vote", "members": 3},
    "partition": {"corruption": PatchMasking(patch_size=4), "masking": "partition"},
    "context": {
        "corruption": PatchMasking(patch_size=4), "normalize": "rms", "members": 0, "context": (4, 12),
        "context_deviation": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_torch_export_and_trace_agree_on_new_images(make: Make, case: dict[str, Any]) -> None:
    segmenter = segmenter_of(make, **case)
    segmenter.extractor.prepare(SIZE)
    example, new = images(1, 0), images(1, 1)
    expected = segmenter(new)
    assert (expected - segmenter(example)).abs().max() > 0.01  # the image matters
    assert (torch.jit.trace(segmenter, example, check_trace=False)(new) - expected).abs().max() < 1e-4
    assert (torch.export.export(segmenter, (example,)).module()(new) - expected).abs().max() < 1e-4


@pytest.fixture(scope="module")
def saved(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "segmenter.pt"
    segmenter = segmenter_of(make, **CASES["paper"], members=1)
    save_segmenter(path, segmenter, {"backbone": {"channels": 3}, "task": {"class_names": ["tissue", "gland"]}})
    return path


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def plan_in(path: Path) -> Any:
    if path.suffix == ".onnx":
        return json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == export.PLAN_KEY))
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(next(name for name in archive.namelist() if name.endswith(export.PLAN_KEY))))


READ: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    ".onnx": run_onnx,
    ".pt2": lambda path: torch.export.load(path).module(),
    ".ts": lambda path: torch.jit.load(str(path)),
}


@pytest.mark.parametrize("ending", export.FORMATS)
def test_exported_files_agree_for_any_batch_and_carry_the_plan(saved: Path, tmp_path: Path, ending: str) -> None:
    segmenter, plan = load_segmenter(saved)
    path = tmp_path / f"out{ending}"
    difference = export.export_segmenter(saved, path, SIZE)
    assert 0 <= difference < 1e-4
    run = READ[ending](path)
    for count in (1, 3):
        new = images(count, 7)
        assert (run(new) - segmenter(new)).abs().max() < 1e-4
    assert plan_in(path) == plan
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_onnx_of_the_other_corruptions_and_heads(make: Make, tmp_path: Path) -> None:
    around = {"context": (4, 12), "context_deviation": True}
    segmenter = segmenter_of(make, MaskedNoise(patch_size=4), members=0, normalize="rms", **around)
    save_segmenter(tmp_path / "s.pt", segmenter, {"backbone": {"channels": 3}})
    export.export_segmenter(tmp_path / "s.pt", tmp_path / "s.onnx", SIZE)
    new = images(2, 5)
    assert (run_onnx(tmp_path / "s.onnx")(new) - segmenter(new)).abs().max() < 1e-4


def test_command_line_on_a_network_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"in_channels": 3, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    arguments["spatial_dims"] = 2
    network = PaddedNetwork(UNet(**arguments), 8, 2).eval()
    save_segmenter(tmp_path / "n.pt", network, {"network": {"_target_": "monai.networks.nets.UNet", **arguments}})
    source, size = str(tmp_path / "n.pt"), ["--size", *map(str, SIZE)]
    assert main(["export", source, str(tmp_path / "n.ts"), *size]) == 0
    assert "n.ts: on a new image its logits differ by at most" in capsys.readouterr().out
    new = images(1, 3)
    assert (torch.jit.load(str(tmp_path / "n.ts"))(new) - network(new)).abs().max() < 1e-4

    assert main(["export", source, str(tmp_path / "n.tflite"), *size]) == 1
    assert "chooses the format: .onnx (ONNX), .pt2 (torch.export), .ts" in capsys.readouterr().err
    save_segmenter(tmp_path / "w.pt", network, {
        "network": {"_target_": "monai.networks.nets.UNet", **arguments}, "task": {"window": [16, 16]},
    })  # fmt: skip
    assert main(["export", str(tmp_path / "w.pt"), str(tmp_path / "m.ts"), "--size", "16"]) == 1
    assert "w.pt reads images of 2 axes: give a number for each" in capsys.readouterr().err
    assert main(["export", source, str(tmp_path / "m.ts"), "--size", "0", "8"]) == 1
    assert "size is [0, 8]" in capsys.readouterr().err
    assert not (tmp_path / "m.ts").exists()


def test_an_export_that_differs_is_not_left(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = export._script

    def wrong(segmenter: nn.Module, image: Tensor, plan: Any) -> Any:
        content, read = script(segmenter, image, plan)
        return content, lambda data: lambda x: read(data)(x) + 2e-4

    monkeypatch.setattr(export, "_script", wrong)
    with pytest.raises(UserError, match=r"not written, because its logits differ by 2\.0e-04"):
        export.export_segmenter(saved, tmp_path / "out.ts", SIZE)
    assert not list(tmp_path.iterdir())


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[i, :1] * (i + 1) for i in range(len(image))])


def test_a_network_that_fixes_the_batch_is_exported_for_one_image(caplog: pytest.LogCaptureFixture) -> None:
    program = export._program(FixedBatch(), images(2, 0))
    assert "single images" in caplog.text
    assert program.module()(images(1, 1)).shape == (1, 1, *SIZE)


def test_onnx_without_its_packages_says_what_to_install(saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export, "optional_import", lambda name: (None, name != "onnxscript"))
    with pytest.raises(UserError, match="needs the package onnxscript: install it with pip install onnx"):
        export.export_segmenter(saved, tmp_path / "out.onnx", SIZE)
