"""Planted faults: each is found alone, those of a bundle all at once, and what comes with medmdm has none."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
from medmdm.runs.needs import disk_needed, forward_cost, free_disk, free_memory, speed
from tests.bundle_runs import BUNDLES, OVERLAYS, REPOSITORY, UNET, write_backbone
from tests.runs.planted_faults import CLEAN, FAULTS, HIDING, IN_ONE_CONFIG, MAY_CHANGE, Fault
from tests.written import picture, write_nifti

LABELS = {"background": 0, "blob": 1}


def test_what_else_computes_is_not_in_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        time.sleep(0.02)  # of other programs
        sum(range(1000))

    before = torch.get_num_threads()
    assert 1e8 < speed(torch.device("cpu")) < 1e13
    monkeypatch.setattr("medmdm.runs.needs.convolution", lambda device: (step, 10**6))
    assert speed(torch.device("cpu")) > 2 * 10**6 / 0.02
    assert torch.get_num_threads() == before


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
@pytest.mark.slow
def test_a_clean_config_has_no_error(bundle: str, place: Path) -> None:
    said = [f.message for f in found(bundle, place, {}) if f.level == "error"]
    assert said == []


def test_what_needs_no_backbone_may_be_the_reference(place: Path) -> None:
    changes = {"heads": {"U-Net": UNET}, "reference": ["none", "U-Net"]}
    assert [f.message for f in found("mdm_study", place, changes) if f.level == "error"] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.bundle}-{'-'.join(map(str, f.change))}-{f.sentence[:20]}")
@pytest.mark.slow
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
@pytest.mark.slow
def test_what_comes_with_medmdm_has_no_error_of_its_own(overlay: Path, place: Path) -> None:
    """Whatever an overlay asks of images, weights and machines that are not here is left out."""
    kind = overlay.stem.rpartition("_")[2]
    bundle = f"mdm_{kind if kind in ('study', 'segment') else 'pretrain'}"
    own = {"dataset_dir": "{place}/data", "data_list": None, "run_dir": "{place}/new", "spacing": None}
    if bundle != "mdm_pretrain":
        own = {key: value for key, value in CLEAN[bundle].items() if key != "head"}
    if overlay.stem in ("ct_slices", "mr_slices", "volumes"):
        own |= {"dataset_dir": "{place}/ct"}
    if overlay.stem in ("slice_order", "slice_position"):
        own |= {"dataset_dir": "{place}/ct", "percentiles": [1, 99]}
    if overlay.stem.endswith("_study"):
        pytest.skip("needs the weights of pre-trainings that take an hour")
    if overlay.stem == "three_axes_segment":
        pytest.skip("needs labelled volumes, see tests/segment/test_volumes.py")
    if overlay.stem == "shards":
        pytest.skip("needs shards, see tests/data/test_shards.py")
    parser = config_of(bundle, place, overlay, **own)
    said = [f.message for f in examine(parser) if f.level == "error" and f.check not in ("memory", "disk")]
    assert said == []


def test_volumes_need_a_window_or_percentiles(place: Path) -> None:
    findings = found("mdm_pretrain", place, {"dataset_dir": "{place}/ct", "channels": 1})
    assert any(matches(f, "error", "nothing says which of their intensities become -1 and 1") for f in findings)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"slice_axis": "none"}, r"crop_size is \[16, 16\], but by slice_axis 'none' whole volumes are read"),
    ({"crop_size": [8, 8, 8]}, "by slice_axis 'axial' slices are read, with two axes: give as many numbers"),
    ({"slice_axis": "none", "context_slices": 1}, "context_slices is not 0, but by slice_axis 'none'"),
    ({"slice_axis": "time"}, r"a.nii.gz has the shape \(.*\): slice_axis 'time' reads 4-D NIfTI files"),
])  # fmt: skip
def test_how_volumes_are_read_is_examined(changes: dict[str, Any], sentence: str, place: Path) -> None:
    findings = found("mdm_pretrain", place, {"dataset_dir": "{place}/ct", "channels": 1, "window": "lung", **changes})
    assert any(matches(f, "error", sentence) for f in findings), [f.message for f in findings]


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_unlabelled_images_are_looked_at_beside_the_others(place: Path) -> None:
    content = json.loads((place / "data" / "dataset.json").read_text())
    grey = {"data_list": {**content, "unlabeled": ["0_mask.png"]}}
    said = [f.message for f in found("mdm_segment", place, grey) if f.level == "error"]
    assert len(said) == 1
    assert "0_mask.png has 1 channel, but the backbone takes 3" in said[0]
