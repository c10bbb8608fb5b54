"""Packed bundles pass MONAI's own checks, say nothing of this computer, and give the run's own results."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from medmdm.artifacts import load_network, load_segmenter
from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import read_volume
from medmdm.zoo import About, pack
from medmdm.zoo.finished_run import FinishedRun
from medmdm.zoo.packing import metadata_schema
from tests.bundle_runs import HEAD, UNET, Run, Workflow, run_python, saved_by
from tests.cases.test_one_writer import holder
from tests.made import refused
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI warns of every config, PyTorch of every trace

ABOUT = About(
    name="Blobs", version="1.2.3", changes="seen anew", authors="A. Author", copyright="Her", licence="Apache-2.0",
    data_licence="CC0", data_source="made here", modality="histology", references=("None. 2026.",),
)  # fmt: skip
FILES = {
    "LICENSE", "large_files.yml", "docs/README.md", "docs/data_license.txt", "configs/metadata.json",
    "configs/logging.conf", "configs/train.json", "configs/inference.json", "models/model.pt", "models/model.ts",
}  # fmt: skip


@pytest.mark.parametrize(("ledger", "said"), [
    ({"labelled": {"a": "a", "b": "whole"}}, "with the labels of 2 images"), ({}, "without labels"),
    (None, "without labels"),
])  # fmt: skip
def test_cards_say_whether_labels_were_seen(ledger: Any, said: str) -> None:
    for bundle, plan in (("mdm_pretrain", {"ledger": ledger}), ("mdm_segment", {"backbone": {"ledger": ledger}})):
        assert FinishedRun(Path(), bundle, {}, plan).labels_seen == said


def files_of(bundle: Path) -> set[str]:
    return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}


def checked_by_monai(bundle: Path, tmp_path: Path, images: Path) -> None:
    """Call MONAI's functions as its command line does."""
    meta, config = str(bundle / "configs" / "metadata.json"), str(bundle / "configs" / "inference.json")
    where: dict[str, Any] = {"meta_file": meta, "config_file": config, "bundle_root": str(bundle)}
    verify_metadata(meta_file=meta, filepath=metadata_schema())
    verify_net_in_out(net_id="network_def", **where)
    network = parser_of(bundle).get_parsed_content("network_def").cpu().eval()
    spec = json.loads(Path(meta).read_text())["network_data_format"]["inputs"]["image"]
    image = torch.rand(2, spec["num_channels"], *spec["spatial_shape"]) * 2 - 1
    with torch.no_grad():
        expected = network(image)
        for trace in (True, False):
            path = tmp_path / f"{trace}.ts"
            ckpt_export(net_id="network_def", filepath=str(path), use_trace=trace, device="cpu", **where)
            torch.testing.assert_close(torch.jit.load(path)(image), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.jit.load(bundle / "models" / "model.ts")(image), expected, rtol=0, atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    weights = str(bundle / "models" / "model.pt")
    onnx_export(net_id="network_def", filepath=str(path), ckpt_file=weights, device="cpu", **where)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image[:1].numpy()})
    rounding = max(1e-4, 1e-6 * float(expected.abs().max()))  # of a linear head's logits, which may be hundreds
    np.testing.assert_allclose(found, expected[:1].numpy(), rtol=0, atol=rounding)
    workflow = ConfigWorkflow(
        config_file=config, meta_file=meta, logging_file=False, workflow_type="inference", bundle_root=str(bundle),
        dataset_dir=str(images), output_dir=str(tmp_path / "properties"),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


def parser_of(bundle: Path) -> ConfigParser:
    """Read the inference config as MONAI Label's loader of bundles does."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle)})  # type: ignore[union-attr]
    return parser


def labelled_by_monai_label(bundle: Path, image: Path) -> Any:
    """Do what MONAI Label does with a bundle, from its sources: load strictly, transform, infer, transform."""
    parser = parser_of(bundle)
    network = parser.get_parsed_content("network_def", instantiate=True)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network.load_state_dict(weights.get("model", weights), strict=True)
    formats = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    image_key, pred_key = (next(iter(formats[key])) for key in ("inputs", "outputs"))
    data: dict[str, Any] = {image_key: str(image), "device": "cpu", "model": "any", "image_path": str(image)}
    for transform in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        data = transform(data)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data[pred_key] = inferer(data[image_key][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing", instantiate=True).transforms:
        data = transform(data)
    assert tuple(data[image_key].meta["spatial_shape"]) == tuple(data[pred_key].shape[1:])  # nothing is resized
    assert data[image_key].meta["original_affine"].shape == (4, 4)
    return data[pred_key]


def tells_nothing_of_this_computer(bundle: Path, *words: str) -> None:
    for name in files_of(bundle) - {"models/model.pt", "models/backbone.pt"}:
        content = (bundle / name).read_bytes()
        for word in (*words, str(Path.home()), "patient "):
            assert word.encode() not in content, (name, word)


@pytest.mark.parametrize("kind", ["segmenter", "network"])
def test_a_segmenting_run(run: Run, pictures: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    scores = run("mdm_segment", head=HEAD if kind == "segmenter" else UNET)
    bundle = pack(tmp_path / "run", tmp_path / "zoo" / "blob_segmentation", ABOUT)
    assert files_of(bundle) == FILES | {"configs/evaluate.json", "models/backbone.pt"}
    assert (bundle / "models" / "model.pt").read_bytes() == (tmp_path / "run" / "segmenter.pt").read_bytes()
    assert (bundle / "models" / "backbone.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()
    tells_nothing_of_this_computer(bundle, str(tmp_path))
    checked_by_monai(bundle, tmp_path, pictures)

    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["mean_dice"] == pytest.approx(scores["dice"])
    assert metadata["changelog"] == {"1.2.3": "seen anew"}
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "blob"}
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "red", "1": "green", "2": "blue"}
    card = (bundle / "docs" / "README.md").read_text()
    assert "Not a medical device" in card
    assert f"| Dice | {scores['dice']:.4f} |" in card
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["hash"] in card
    assert (bundle / "LICENSE").read_text() == "Apache-2.0\n"
    assert (bundle / "docs" / "data_license.txt").read_text() == "CC0\n"

    for case in "45":  # the test images, which are not square
        mask = labelled_by_monai_label(bundle, pictures / f"{case}.png")
        expected = read_image(tmp_path / "run" / "predictions" / f"{case}.png")
        np.testing.assert_array_equal(mask.numpy(), expected)
    masks = used(bundle, "inference", dataset_dir=str(pictures), output_dir=str(tmp_path / "masks"))
    assert len(masks) == 6
    for case in "45":
        found, expected = (
            (tmp_path / f / "predictions" / f"{case}.png").read_bytes() for f in ("run", "masks")
        )  # fmt: skip
        assert found == expected
    again = used(bundle, "evaluate", dataset_dir=str(pictures), run_dir=str(tmp_path / "e"), report=False)
    assert again["dice"] == pytest.approx(scores["dice"])


def used(bundle: Path, config: str, **settings: Any) -> Any:
    """Run a config of a bundle as ``monai.bundle run`` does; return what its workflow gives."""
    file = str(bundle / "configs" / f"{config}.json")
    workflow = ConfigWorkflow(config_file=file, logging_file=False, bundle_root=str(bundle), **settings)
    workflow.initialize()
    return workflow.run()[0]


def test_a_packed_run_can_be_repeated(run: Run, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    scores = run("mdm_segment", report=False)
    bundle = pack(tmp_path / "run", tmp_path / "bundle")
    again = used(bundle, "train", dataset_dir=str(pictures), run_dir=str(tmp_path / "again"), report=False)
    assert again == pytest.approx(scores)
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"] == {}  # nothing was reported
    assert "not evaluated, or the evaluation was not reported" in (bundle / "docs" / "README.md").read_text()
    for file in ("LICENSE", "docs/data_license.txt"):
        assert "stated" in (bundle / file).read_text()


def test_a_pre_training_run(workflow: Workflow, image_folder: Path, tmp_path: Path) -> None:
    saved_by(workflow())
    bundle = pack(tmp_path / "run", tmp_path / "pretrained", ABOUT)
    assert files_of(bundle) == FILES
    tells_nothing_of_this_computer(bundle, str(tmp_path))
    checked_by_monai(bundle, tmp_path, image_folder)
    train = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"), logging_file=False, workflow_type="train",
        bundle_root=str(bundle), dataset_dir=str(image_folder), run_dir=str(tmp_path / "again"),
    )  # fmt: skip
    again = saved_by(train)["model"]
    assert train.check_properties() == []
    for name, value in load_network(bundle / "models" / "model.pt").state_dict().items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)

    used(bundle, "inference", dataset_dir=str(image_folder), output_dir=str(tmp_path / "restored"))
    names = {path.name for path in (tmp_path / "restored").iterdir()}
    assert names == {f"{name}_restored.nii.gz" for name in ("a", "b", "c_x")}
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert metadata["eval_metrics"]["ssim_t250"] == float(last[6])
    assert read_volume(tmp_path / "restored" / "a_restored.nii.gz").array.shape[:2] != (0, 0)


def test_a_head_alone_is_packed_with_its_backbone(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False, include_backbone=False)
    alone = tmp_path / "run" / "segmenter.pt"
    backbone = shutil.move(tmp_path / "model.pt", tmp_path / "moved.pt")
    refused("saved without its backbone", pack, tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    bundle = pack(tmp_path / "run", tmp_path / "bundle", backbone=backbone)
    image = torch.rand(1, 3, 16, 16)
    expected = load_segmenter(alone, backbone)[0](image)
    torch.testing.assert_close(load_segmenter(bundle / "models" / "model.pt")[0](image), expected, rtol=0, atol=0)


def test_what_cannot_be_packed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    refused("has no run.json", pack, tmp_path, tmp_path / "bundle")
    run("mdm_segment", report=False)
    folder = tmp_path / "run"
    (tmp_path / "there").mkdir()
    (tmp_path / ".there.packing").mkdir()  # of a program that was killed at its end
    refused("exists already", pack, folder, tmp_path / "there")
    assert not (tmp_path / ".there.packing").exists()
    other = tmp_path / "other.pt"
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["model"] = {key: value + 1 for key, value in content["model"].items()}
    torch.save(content, other)
    refused("is not the backbone", pack, folder, tmp_path / "bundle", backbone=other)
    refused("version is '1.0'", About, version="1.0")
    for name in ("LICENCE.txt", "./terms", "COPYING"):
        refused("given as a licence, does not exist", pack, folder, tmp_path / "bundle", About(licence=name))
    refused("has a # in it", pack, folder, tmp_path / "bundle #2")
    (tmp_path / ".bundle.packing" / "bundle" / "configs").mkdir(parents=True)  # of a killed program
    process = holder(tmp_path / ".bundle.packing")
    refused("another process is writing to", pack, folder, tmp_path / "bundle")
    process.kill()
    process.wait()
    refused("is not the backbone", pack, folder, tmp_path / "bundle", backbone=other)
    assert not (tmp_path / ".bundle.packing").exists()
    with open(folder / "segmenter.pt", "ab") as file:
        file.write(b"x")
    refused("is not the file that run.json tells of", pack, folder, tmp_path / "bundle")
    (folder / "segmenter.pt").unlink()
    refused("has no segmenter.pt", pack, folder, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.glob(".bundle*")) == []


@pytest.mark.parametrize("missing", ["schema", "monai_version", "authors", "network_data_format", "intended_use"])
def test_the_schema_finds_what_is_missing(missing: str) -> None:
    schema = json.loads(metadata_schema().read_text())
    assert missing in schema["required"]
    with pytest.raises(jsonschema.ValidationError, match=missing):
        jsonschema.validate({key: "" for key in schema["required"] if key != missing}, schema)


@pytest.mark.slow
def test_the_command(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    done = run_python("-m", "medmdm", "pack", "run", "bundle", "--authors", "Me", cwd=tmp_path)
    assert "packed" in done.stdout
    assert "not stated: copyright, licence, data_licence, data_source, modality" in done.stderr
    assert json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())["authors"] == "Me"
    done = run_python("-m", "medmdm", "pack", "run", "bundle", cwd=tmp_path, code=1)
    assert "exists already" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pre-training", "segmenting"])
def test_the_zoo_s_own_script(
    run: Run,  # noqa: F811
    workflow: Workflow,
    tmp_path: Path,
    kind: str,
) -> None:
    """``ci/verify_bundle.py`` of a checkout of Project-MONAI/model-zoo, as it is, in its fullest mode."""
    checkout = os.environ.get("MEDMDM_ZOO_CI")
    if not checkout:
        pytest.skip("THE ZOO'S SCRIPT IS NOT RUN: set MEDMDM_ZOO_CI to the ci/ folder of a checkout of its repository")
    start: dict[str, Callable[[], Any]] = {
        "segmenting": lambda: run("mdm_segment"), "pre-training": lambda: saved_by(workflow()),
    }  # fmt: skip
    start[kind]()
    bundle = pack(tmp_path / "run", tmp_path / "models" / "packed", ABOUT)
    (tmp_path / "models" / "model_info.json").write_text("{}")
    (bundle / "eval").mkdir()
    # The zoo downloads its schema to this place; there may be no network here.
    shutil.copyfile(metadata_schema(), bundle / "eval" / "schema.json")
    shutil.copytree(checkout, tmp_path / "ci")
    command = [sys.executable, "-W", "ignore", "ci/verify_bundle.py", "--b", "packed", "--p", "models", "--m", "full"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("directory", "version and changelog", "metadata format", "properties", "data shape"):
        assert f"{step} " in done.stdout
    assert "export weights into TorchScript module successfully" in done.stdout
    assert "Provided TorchScript module is verified correctly" in done.stdout
