"""Planted faults: each is found alone, those of a bundle all at once, and what comes with medmdm has none."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medmdm.check.findings import Finding
from medmdm.cli.doctor import diagnose
from medmdm.errors import UserError, find_user_error
from medmdm.runs.config import normalise
from medmdm.runs.doctor import examine
from medmdm.runs.needs import disk_needed, forward_cost, free_disk, free_memory
from tests.bundle_runs import BUNDLES, OVERLAYS, REPOSITORY, TINY, UNET, write_backbone
from tests.written import picture, write_nifti

LABELS = {"background": 0, "blob": 1}


def data_list(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"labels": LABELS, **content}))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, labelled cases, lists and weights files, some of them broken."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    cases = []
    for number in range(6):
        label = np.zeros((40, 48), np.uint8)
        label[6:18, 8 + number : 24 + number] = 1
        noise = rng.integers(-30, 30, (40, 48, 3))
        picture(root / "data" / f"{number}.png", np.where(label[..., None] > 0, 190, 60) + noise)
        picture(root / "data" / f"{number}_mask.png", label)
        picture(root / "grey" / f"{number}.png", label * 90 + noise[..., 0] + 60)
        cases.append({"image": f"{number}.png", "label": f"{number}_mask.png", "patient_id": f"p{number}"})
    training, test = cases[:4], cases[4:]
    data = root / "data"
    data_list(data / "dataset.json", training=training, test=test)
    data_list(data / "lost.json", training=[*training, {"image": "lost.png", "label": "0_mask.png"}], test=test)
    data_list(data / "unlabelled.json", training=[{"image": "0.png"}, {"image": "1.png"}], test=test)
    data_list(data / "masks.json", training=[{"image": "0.png"}, {"image": "1_mask.png"}])
    data_list(data / "shared.json", training=training, test=[{**test[0], "patient_id": "p0"}])
    data_list(data / "copied.json", training=training, test=[{"image": "copy.png", "label": "0_mask.png"}])
    data_list(data / "values.json", training=[{**training[0], "label": "seven.png"}], test=test)
    data_list(data / "damaged.json", training=[*training, {"image": "cut.png", "label": "0_mask.png"}], test=test)
    data_list(data / "empty.json", training=[*training, {"image": "empty.png", "label": "0_mask.png"}], test=test)
    data_list(data / "untested.json", training=training, validation=test)
    (data / "broken.json").write_text('{"training": [')
    shutil.copy(data / "0.png", data / "copy.png")
    picture(data / "seven.png", np.full((40, 48), 7))
    (data / "cut.png").write_bytes((data / "1.png").read_bytes()[:900])
    (data / "empty.png").write_bytes(b"")
    volume = rng.integers(-1000, 1000, (24, 32, 20)).astype(np.int16)
    write_nifti(root / "ct" / "a.nii.gz", volume, np.eye(4))
    slide = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    (root / "slides").mkdir()
    with tifffile.TiffWriter(root / "slides" / "made.tif") as tiff:  # two levels, no resolution
        for step in (1, 2):
            tiff.write(slide[::step, ::step], tile=(32, 32), photometric="rgb", metadata=None, subfiletype=step - 1)
    (root / "file").write_text("no folder")
    write_backbone(root / "model.pt")
    write_backbone(root / "spaced.pt", spacing=[0.5, 0.5])
    (root / "cut.pt").write_bytes((root / "model.pt").read_bytes()[:5000])
    run = root / "other"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"bundle": "mdm_pretrain", "max_steps": 7}, "data": {}}))
    settings = {"dataset_dir": str(data), "run_dir": str(root / "segment"), "backbone": str(root / "model.pt")}
    config = str(BUNDLES / "mdm_segment.json")
    made = ConfigWorkflow(config, logging_file=False, **settings, head=UNET, report=False, device="cpu")
    made.initialize()
    made.run()
    return root


class Fault(NamedTuple):
    """A change of a clean config, and the finding that it must give."""

    bundle: str
    change: dict[str, Any]
    level: str
    sentence: str


CLEAN: dict[str, dict[str, Any]] = {
    "mdm_pretrain": {"dataset_dir": "{place}/data", "run_dir": "{place}/new", **TINY},
    "mdm_segment": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new", "backbone": "{place}/model.pt", "head": UNET,
    },
    "mdm_evaluate": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new", "segmenter": "{place}/segment/segmenter.pt",
    },
    "mdm_infer": {
        "dataset_dir": "{place}/data", "output_dir": "{place}/new", "segmenter": "{place}/segment/segmenter.pt",
    },
    "mdm_study": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new",
        "backbones": {
            "MDM": {"path": "{place}/model.pt"}, "random": {"path": "{place}/model.pt", "initialise": "random"},
            "raw pixels": {"path": "{place}/model.pt", "initialise": "raw"},
        },
    },
}  # fmt: skip
NETWORK = {**TINY["network_def"]}
PRETRAIN = [
    ({"max_step": 9}, "error", r"Unknown key 'max_step'.*did you mean 'max_steps'"),
    ({"optimizer#lrr": 1}, "error", "'optimizer#lrr'"),
    ({"train#inferer": {"_target_": "monai.inferers.Simple"}}, "error", "'monai.inferers.Simple' cannot be found"),
    ({"max_grad_norm": "big"}, "error", "max_grad_norm must be a number of 0 or more, or null, got 'big'"),
    ({"ema_decay": 1.5}, "error", "ema_decay must be a number from 0 to below 1, got 1.5"),
    ({"log_every": "$2.5 * 1"}, "error", "log_every must be a whole number of 1 or more, got 2.5"),
    ({"keep_checkpoints": "@nothing"}, "error", "keep_checkpoints refers to @nothing, which the config does not have"),
    ({"train#sampler#rank": "@ranks"}, "error", "train#sampler#rank refers to @ranks.*did you mean 'rank'"),
    ({"checkpoint_every": "$2 +"}, "error", r"checkpoint_every is no Python expression, '\$2 \+': invalid syntax"),
    ({"preview_crops": "$undefined + 1"}, "error", "preview_crops: name 'undefined' is not defined"),
    ({"preview_every": "5"}, "error", "preview_every must be a whole number of 1 or more, got '5'"),
    ({"optimizer": {"lr": 1e-4}}, "error", "optimizer must be a part .* 'optimizer#lr' as a key changes one argument"),
    ({"objective": None}, "error", "objective must be a part .*, got null"),
    ({"network_def": {"_target_": "monai.transforms.Compose"}}, "error", "network_def is a Compose: give a network"),
    ({"loss_function": {"_target_": "monai.losses.SSIMLoss", "spatial_dims": 2}}, "warning", "data_range 1.0, but"),
    ({"terms": {"_target_": "medmdm.objectives.SelfDistillation"}}, "error", "terms must be a list of parts"),
    (
        {"terms": [{"_target_": "medmdm.objectives.SelfDistillation", "blocks": [99], "channels": [4]}]},
        "error", "there is no block 99",
    ),
    ({"probe_data_list": "{place}/data/lost.json"}, "error", "lost.png"),
    ({"device": "cuda:77"}, "error", "device 'cuda:77' cannot be used here"),
    ({"threads": 4096}, "warning", "threads is 4096"),
    ({"num_workers": 4096}, "warning", "num_workers is 4096"),
    ({"accumulation_steps": 3}, "error", "batch_size 4 cannot be cut into 3 micro-batches"),
    ({"preview_timesteps": [10, 1000]}, "error", "preview_timesteps holds 1000"),
    ({"warmup_steps": 6}, "warning", "warmup_steps 6 is not below max_steps 6"),
    ({"learning_rate": 0}, "warning", "learning_rate is 0"),
    ({"patch_size": 7}, "error", r"An image of \(16, 16\) pixels cannot be cut into patches of \(7, 7\)"),
    ({"crop_size": [17, 17], "patch_size": 17}, "error", "cannot read crops|17"),
    ({"network_def": {**NETWORK, "num_groups": 5}}, "error", "32 with channel_mult"),
    ({"network_def": {**NETWORK, "num_head_channels": 15}}, "error", "num_head_channels 15 does not divide"),
    ({"network_def": {**NETWORK, "in_channels": 1}}, "error", r"expected \[batch, 1, height, width\]"),
    ({"target": "noise"}, "error", "target 'noise' needs a corruption that adds noise"),
    ({"loss_function": {"_target_": "medmdm.objectives.SSIMLoss", "data_range": 1.0}}, "warning", "data_range 1.0"),
    ({"loss_function": {"_target_": "torch.nn.BCELoss"}}, "error", "between 0 and 1"),
    ({"intensity_range": [9, 3]}, "error", r"intensity_range is \[9, 3\]"),
    ({"intensity_range": [0, 1]}, "error", "lie outside the values that become -1 and 1"),
    ({"percentiles": [99, 1]}, "error", "0 <= lower < upper <= 100"),
    ({"spacing": 0.5}, "error", "pixel spacing of .* is not known"),
    ({"channels": 1, "network_def": {**NETWORK}}, "error", "3 channels, but channels is 1"),
    ({"dataset_dir": "{place}/nowhere"}, "error", "nowhere"),
    ({"data_list": "{place}/data/broken.json"}, "error", "broken.json"),
    ({"data_list": "{place}/data/lost.json"}, "error", "lost.png"),
    ({"data_list": "{place}/data/damaged.json"}, "error", "cut.png"),
    ({"data_list": "{place}/data/empty.json"}, "error", "empty.png is empty"),
    ({"data_list": "{place}/data/masks.json"}, "warning", "1 training image is named as masks are"),
    ({"data_list": "{place}/data/copied.json"}, "error", "copy.png"),
    ({"data_list": "{place}/data/shared.json"}, "warning", "patients who are also in training"),
    ({"batch_size": 400}, "warning", "batch_size 400 is more than 4 images of about 6 crops"),
    ({"crop_size": [64, 64]}, "warning", "smaller than crop_size"),
    ({"batch_size": 400_000_000}, "error", "memory: about .* choose a smaller batch_size"),
    ({"keep_checkpoints": 10**12}, "error", "disk: about .* free some"),
    ({"max_steps": 10**15, "batch_size": 4}, "warning", "time: roughly .* years"),
    ({"run_dir": "{place}/file/run"}, "error", "run_dir .* cannot be made"),
    ({"run_dir": "{place}/other"}, "error", "holds a run of another configuration"),
]  # fmt: skip
TOO_SHORT = {"_target_": "medmdm.heads.Training", "steps": 0}
OTHERS = [
    ("mdm_segment", {"head#trainin": 1}, "error", "'head#trainin'"),
    ("mdm_segment", {"backbone": "{place}/nowhere.pt"}, "error", "nowhere.pt: there is no such file"),
    ("mdm_segment", {"backbone": "{place}/cut.pt"}, "error", "cut.pt"),
    ("mdm_segment", {"backbone": "{place}/segment/segmenter.pt"}, "error", "this is a segmenter, not a backbone"),
    ("mdm_segment", {"backbone": "{place}/spaced.pt", "preprocessing#spacing": [1.0, 1.0]}, "warning", "#spacing"),
    ("mdm_segment", {"backbone": "{place}/spaced.pt"}, "error", "pixel spacing of .* is not known"),
    ("mdm_segment", {"shots": 9}, "error", "9"),
    ("mdm_segment", {"section": "validation"}, "error", "There is no validation case to evaluate"),
    ("mdm_segment", {"dataset_dir": "{place}/grey", "data_list": "{place}/data/dataset.json"}, "error", "are not in"),
    ("mdm_segment", {"data_list": "{place}/data/unlabelled.json"}, "error", "training"),
    ("mdm_segment", {"data_list": "{place}/data/values.json"}, "error", "seven.png holds 7"),
    ("mdm_segment", {"data_list": "{place}/data/shared.json"}, "warning", "patients who are also in training"),
    ("mdm_segment", {"blocks": [99]}, "error", "99"),
    ("mdm_segment", {"timesteps": [5000]}, "error", "5000"),
    ("mdm_segment", {"head": {**UNET, "network": {**UNET["network"], "out_channels": 5}}}, "error", r"\[5, 16, 16\]"),
    ("mdm_segment", {"head": {**UNET, "network": {**UNET["network"], "strides": []}}}, "error", "strides"),
    ("mdm_segment", {"head": {**UNET, "training": TOO_SHORT}}, "error", "steps"),
    ("mdm_segment", {"study": "{place}/study.csv"}, "error", "study.csv"),
    ("mdm_segment", {"write_formats": {"_target_": "medmdm.segment.COCO"}}, "error", "write_formats must be a list"),
    ("mdm_evaluate", {"segmenter": "{place}/model.pt"}, "error", "the weights of a backbone"),
    ("mdm_evaluate", {"section": "validation"}, "error", "validation"),
    ("mdm_evaluate", {"write_uncertainty": "maybe"}, "error", "write_uncertainty must be true or false"),
    ("mdm_evaluate", {"report": 3}, "error", "report must be true or false, got 3"),
    ("mdm_infer", {"write_boxs": True}, "error", "did you mean 'write_boxes'"),
    ("mdm_study", {"draws": 0}, "error", "draws must be a whole number of 1 or more, got 0"),
    ("mdm_infer", {"segmenter": "{place}/nowhere.pt"}, "error", "nowhere.pt: there is no such file"),
    ("mdm_infer", {"image_spacing": -1}, "error", "image_spacing must be"),
    ("mdm_infer", {"dataset_dir": "{place}/grey"}, "error", "channel"),
    ("mdm_infer", {"dataset_dir": "{place}/ct"}, "error", "a.nii.gz is a volume, but the backbone was"),
    ("mdm_infer", {"write_formats": [{"_target_": "medmdm.segment.DicomSeg"}]}, "error", "0.png is no DICOM series"),
    ("mdm_infer", {"dataset_dir": "{place}/slides"}, "error", "made.tif does not say how large its pixels are"),
    ("mdm_infer", {"backbone": "{place}/model.pt"}, "error", "network trained from scratch"),
    ("mdm_study", {"shots": [2, 9]}, "error", "shots asks for 9"),
    ("mdm_study", {"reference": ["MDM", "clasifier"]}, "error", "did you mean 'classifier'"),
    ("mdm_study", {"only": {"rigde": ["MDM"]}}, "error", "only names 'rigde'"),
    ("mdm_study", {"backbones#random#initialise": "randm"}, "error", "initialise is 'randm'"),
    ("mdm_study", {"heads": {"ridge": {"method": "ridge"}}}, "error", "heads#ridge must be a part"),
    ("mdm_study", {"backbones": {"MDM": "{place}/model.pt"}}, "error", "backbones#MDM must be a backbone"),
    ("mdm_study", {"cache_gib": 10**9}, "warning", "cached features may take"),
]  # fmt: skip
FAULTS = [Fault("mdm_pretrain", *fault) for fault in PRETRAIN] + [Fault(*fault) for fault in OTHERS]
#: Where these are wrong, others cannot be looked at, or it is the machine that says it.
HIDING = {
    "dataset_dir", "data_list", "backbone", "segmenter", "section", "crop_size", "channels", "batch_size", "max_steps",
    "target", "percentiles", "intensity_range", "blocks", "timesteps", "head", "backbones#random#initialise",
    "objective", "optimizer", "terms", "backbones", "heads",
}  # fmt: skip
#: Settings of the clean configs that may be changed in company.
MAY_CHANGE = {"network_def", "log_every", "run_dir"}


def placed(value: Any, place: Path) -> Any:
    if isinstance(value, dict):
        return {key: placed(part, place) for key, part in value.items()}
    if isinstance(value, list):
        return [placed(part, place) for part in value]
    return value.replace("{place}", str(place)) if isinstance(value, str) else value


def config_of(bundle: str, place: Path, *overlays: Path, **changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / f"{bundle}.json"), *map(str, overlays)])
    for key, value in {"device": "cpu", **changes}.items():
        parser[key] = placed(value, place)
    normalise(parser)
    parser.parse(reset=True)
    return parser


def found(bundle: str, place: Path, changes: dict[str, Any]) -> tuple[Finding, ...]:
    return examine(config_of(bundle, place, **{**CLEAN[bundle], **changes}))


def matches(finding: Finding, level: str, sentence: str) -> bool:
    return finding.level == level and re.search(sentence, finding.message) is not None


@pytest.mark.parametrize("bundle", CLEAN)
def test_a_clean_config_has_no_error(bundle: str, place: Path) -> None:
    said = [f.message for f in found(bundle, place, {}) if f.level == "error"]
    assert said == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.bundle}-{'-'.join(map(str, f.change))}-{f.sentence[:20]}")
def test_a_planted_fault_is_found_alone(fault: Fault, place: Path) -> None:
    findings = found(fault.bundle, place, fault.change)
    assert any(matches(f, fault.level, fault.sentence) for f in findings), [(f.level, f.message) for f in findings]
    assert not (place / "new").exists()


def test_thirty_planted_faults_are_found_at_once(place: Path) -> None:
    """In one run a bundle; a fault that would hide another, such as a list that is not there, is left out."""
    number = 0
    for bundle, clean in CLEAN.items():
        changes: dict[str, Any] = {}
        planted: list[Fault] = []
        for fault in FAULTS:
            if fault.bundle != bundle or not fault.change.keys().isdisjoint(changes) or HIDING & fault.change.keys():
                continue
            if fault.change.keys() & clean.keys() - MAY_CHANGE:
                continue
            changes |= fault.change
            planted.append(fault)
        findings = found(bundle, place, changes)
        missed = [f for f in planted if not any(matches(one, f.level, f.sentence) for one in findings)]
        assert not missed, [(f.level, f.message) for f in findings]
        number += len(planted)
    assert number >= 30


@pytest.mark.parametrize("overlay", sorted(OVERLAYS.glob("*.json")), ids=lambda path: path.stem)
def test_what_comes_with_medmdm_has_no_error_of_its_own(overlay: Path, place: Path) -> None:
    """Whatever an overlay asks of images, weights and machines that are not here is left out."""
    kind = overlay.stem.rpartition("_")[2]
    bundle = f"mdm_{kind if kind in ('study', 'segment') else 'pretrain'}"
    own = {"dataset_dir": "{place}/data", "data_list": None, "run_dir": "{place}/new", "spacing": None}
    if bundle != "mdm_pretrain":
        own = {key: value for key, value in CLEAN[bundle].items() if key != "head"}
    if overlay.stem in ("ct_slices", "mr_slices"):
        own |= {"dataset_dir": "{place}/ct"}
    if overlay.stem in ("slice_order", "slice_position"):
        own |= {"dataset_dir": "{place}/ct", "percentiles": [1, 99]}
    if overlay.stem.endswith("_study"):
        pytest.skip("needs the weights of pre-trainings that take an hour")
    if overlay.stem == "shards":
        pytest.skip("needs shards, see tests/data/test_shards.py")
    parser = config_of(bundle, place, overlay, **own)
    said = [f.message for f in examine(parser) if f.level == "error" and f.check not in ("memory", "disk")]
    assert said == []


def test_volumes_need_a_window_or_percentiles(place: Path) -> None:
    findings = found("mdm_pretrain", place, {"dataset_dir": "{place}/ct", "channels": 1})
    assert any(matches(f, "error", "nothing says which of their intensities become -1 and 1") for f in findings)


def test_nothing_is_changed_and_nothing_allocated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = config_of(
        "mdm_pretrain", place, OVERLAYS / "paper.json", dataset_dir="{place}/data", run_dir="{place}/new"
    )
    before, made = json.dumps(parser.get(), default=str), []
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: made.append(1))
    torch.manual_seed(3)
    expected, _ = torch.rand(1), torch.manual_seed(3)
    findings = examine(parser)
    assert torch.equal(torch.rand(1), expected)
    assert json.dumps(parser.get(), default=str) == before
    assert not made
    assert any("ADMUNet, 311" in f.message for f in findings)  # 1.2 GB of weights, were they made


def test_cost_of_a_convolution_by_hand() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.ReLU())
        cost, shape = forward_cost(network, torch.empty(2, 3, 8, 10))
    assert shape == (2, 5, 8, 10)
    assert cost.parameters == 3 * 5 * 9 + 5
    assert cost.weights == 4 * cost.parameters
    assert cost.flops == 2 * 2 * 8 * 10 * 5 * 3 * 9
    assert cost.activations == 4 * 2 * 8 * 10 * (3 + 5)  # what the convolution got, and what ReLU gave
    assert disk_needed(100, 2) == 100 * (4 * 3 + 2)


def test_free_memory_and_disk_are_those_of_this_machine(tmp_path: Path) -> None:
    assert 0 < free_disk(tmp_path / "not" / "yet") <= shutil.disk_usage(tmp_path).total
    found_memory = free_memory(torch.device("cpu"))
    if found_memory is not None:
        assert 0 < found_memory[0] <= found_memory[1]
    assert free_memory(torch.device("meta")) is None


def test_the_command_prints_all_and_its_status_says_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, settings = ["bundles/mdm_segment.json"], ["--device", "cpu", "--dataset_dir", str(place / "data")]
    settings += ["--backbone", str(place / "model.pt"), "--run_dir", str(place / "new")]
    assert diagnose(config, settings) == 0
    assert "0 errors" in capsys.readouterr().out
    wrong = [*settings, "--shots", "null", "--overlap", "2", "--strct", "true"]
    assert diagnose(config, wrong) == 1
    out = capsys.readouterr().out
    assert "error:   overlap must be a number from 0 to below 1, got 2." in out
    assert "'strct'" in out
    assert "2 errors" in out
    assert diagnose(["overlays/frozen_segment.json"], wrong, as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {"level", "check", "message", "files"} == set(report["findings"][0])
    assert diagnose(["overlays/frozen_segment.json"], settings, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


#: Of one config; what each is answered with.
IN_ONE_CONFIG: dict[str, tuple[Any, str]] = {
    "max_stepps": (1, "did you mean 'max_steps'"),
    "handlerz": ([], "Unknown key 'handlerz'"),
    "extra_keys": ("none", "extra_keys must be a list of texts"),
    "seed": (1.5, "seed must be a whole number"),
    "stain_jitter": (-1, "stain_jitter must be a number of 0 or more"),
    "slice_axis": ("diagonal", "slice_axis must be .axial."),
    "learning_rate": (-1, "learning_rate must be a number of 0 or more, got -1"),
    "warmup_steps": (-2, "warmup_steps must be"),
    "max_grad_norm": ("big", "max_grad_norm must be"),
    "ema_decay": (1.5, "ema_decay must be"),
    "amp_dtype": ("float17", "did you mean 'float16'"),
    "compile": ("yes", "compile must be true or false"),
    "cache_gib": (-1, "cache_gib must be"),
    "terms": ({"_target_": "medmdm.objectives.SelfDistillation"}, "terms must be a list of parts"),
    "preview_every": ("5", "preview_every must be a whole number of 1 or more, got '5'"),
    "corruption#patchsize": (3, "did you mean 'patch_size'"),
    "loss_function#losses#1#_target_": ("medmdm.objectives.L3Loss", "'medmdm.objectives.L3Loss' cannot be found"),
    "network_def#modell_channels": (3, "did you mean 'model_channels'"),
    "optimizer#lrr": (1, "did you mean 'lr'"),
    "lr_scheduler#optimizr": (1, "did you mean 'optimizer'"),
    "train#inferer": ({"_target_": "monai.inferers.Simple"}, "'monai.inferers.Simple' cannot be found"),
    "checkpoint_every": ("$2 +", "checkpoint_every is no Python expression"),
    "keep_checkpoints": ("@nothing", "refers to @nothing"),
    "train#sampler#rank": ("@ranks", "refers to @ranks.*did you mean 'rank'"),
    "log_every": ("$2.5 * 1", "log_every must be a whole number of 1 or more, got 2.5"),
    "preview_crops": ("$undefined", "preview_crops: name 'undefined'"),
    "device": ("cuda:77", "device 'cuda:77' cannot be used here"),
    "threads": (4096, "threads is 4096"),
    "num_workers": (4096, "num_workers is 4096"),
    "accumulation_steps": (3, "cannot be cut into 3 micro-batches"),
    "preview_timesteps": ([10, 1000], "preview_timesteps holds 1000"),
    "intensity_range": ([9, 3], "low below high"),
    "patch_size": (7, "cannot be cut into patches of .7, 7."),
    "network_def#num_groups": (5, "with 5 groups needs multiples of 5"),
    "probe_data_list": ("{place}/nowhere.json", "nowhere.json does not exist"),
    "run_dir": ("{place}/file/run", "run_dir .* cannot be made"),
}


def test_more_than_thirty_faults_of_one_config_are_found_in_one_run(place: Path) -> None:
    assert len(IN_ONE_CONFIG) >= 30
    changes = {key: value for key, (value, _) in IN_ONE_CONFIG.items()}
    findings = examine(config_of("mdm_pretrain", place, dataset_dir="{place}/data", **changes))
    said = [finding.message for finding in findings if finding.level != "info"]
    missed = [key for key, (_, answer) in IN_ONE_CONFIG.items() if not any(re.search(answer, one) for one in said)]
    assert not missed, said


def test_one_fault_does_not_hide_another(place: Path) -> None:
    """What does not need the weights is looked at without them, and a part that is put right keeps its other values."""
    changes = {
        "backbone": "{place}/nowhere.pt", "write_formats": [{"_target_": "medmdm.segment.GeoJSON", "simplify": -1}],
        "postprocess#instances": "watersheds", "data_list": "{place}/data/lost.json",
    }  # fmt: skip
    said = "\n".join(f.message for f in found("mdm_segment", place, changes) if f.level == "error")
    for word in ("nowhere.pt: there is no such file", "simplify is -1", "did you mean 'watershed'", "lost.png"):
        assert said.count(word) == 1, said
    changes = {"backbone": None, "preprocessing#crop_size": [16, 16], "preprocessing#spacing": "small"}
    said = "\n".join(f.message for f in found("mdm_segment", place, changes) if f.level == "error")
    assert "preprocessing#spacing must be" in said
    assert "set preprocessing#crop_size" not in said


def config_file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_key_that_is_there_twice_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = config_file(tmp_path / "twice.json", '{"max_steps": 5, "max_steps": 3}')
    diagnose(["pretrain", name], ["--device", "cpu", "--run_dir", str(tmp_path / "new")])
    assert "twice.json has the key 'max_steps' twice in one place" in capsys.readouterr().out


def test_an_overlay_may_name_its_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = config_file(tmp_path / "named.json", '{"bundle": "mdm_pretrain", "max_steps": 3}')
    diagnose([name], ["--device", "cpu", "--run_dir", str(tmp_path / "new")])
    assert "max_steps 3" in capsys.readouterr().out  # is below warmup_steps


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "wrong.json cannot be used: it holds no keys"),
        ('{"max_steps": 3,}', "wrong.json cannot be read"),
        ('{"head#steps": 3}', "Unknown key 'head#steps': the config .*wrong.json has no part 'head'"),
        (
            '{"network_def#norm#groups": 3}',
            "has no part 'network_def#norm'",
        ),
        ('{"+crop_size": 3}', r"'\+crop_size' cannot be merged"),
        ('{"max_steps": "%batch_sizes"}', "batch_sizes"),
    ],
)
def test_a_config_that_cannot_be_merged_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        diagnose(["pretrain", config_file(tmp_path / "wrong.json", text)], [])


def test_a_config_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="does not exist"):
        diagnose(["nowhere.json"], [])
    assert diagnose(["nowhere.json"], [], as_json=True) == 1
    assert "does not exist" in json.loads(capsys.readouterr().out)["findings"][0]["message"]


@pytest.mark.slow
def test_dry_run_of_a_segmentation_is_the_same_engine(place: Path, tmp_path: Path) -> None:
    words = ["segment", "--dry_run", "--backbone", str(place / "nowhere.pt"), "--dataset_dir", str(place / "data")]
    command = [sys.executable, "-W", "ignore", "-m", "medmdm", *words, "--shots", "77"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "nowhere.pt: there is no such file" in done.stdout
    assert not (REPOSITORY / "runs" / "mdm_segment").exists()


def test_start_of_a_dry_run_names_all_faults(workflow: Any) -> None:
    made = workflow(dry_run=True, patch_size=7, keep_checkpoints=10**12, warmup_steps=6)
    with pytest.raises((UserError, RuntimeError)) as caught:
        made.initialize()
    said = str(find_user_error(caught.value))
    assert "cannot be cut into patches" in said
    assert "disk: about" in said
