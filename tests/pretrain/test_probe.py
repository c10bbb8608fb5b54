"""The probe while pre-training: held out for sure, changes nothing, and is what the segmentation workflow would say."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medmdm.artifacts.backbone import make_extractor
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading, Task, views
from medmdm.metrics.pixels import mean_scores
from medmdm.pretrain.optimization import Optimization
from medmdm.pretrain.probe import Probe, _folds
from tests.bundle_runs import BUNDLE, TINY, saved_by
from tests.made import refused, refused_in_config
from tests.written import picture

PLAN = {"crop_size": [16, 16], "channels": 3, "intensity_range": [0, 255]}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Five pictures (dark objects on light ground) of three patients, and a test picture that does not exist."""
    folder = tmp_path / "labelled"
    rng = np.random.default_rng(1)
    for n in range(5):
        mask = np.kron(rng.random((3, 4)) > 0.5, np.ones((8, 8))).astype(np.uint8)
        picture(folder / f"{n}.png", np.where(mask[..., None] > 0, 60, 190) + rng.integers(-20, 20, (24, 32, 3)))
        picture(folder / f"{n}_label.png", mask)
    return folder


def write_list(folder: Path, training: str, validation: str = "", patients: str = "") -> Path:
    def entry(n: str) -> dict[str, Any]:
        more = {"patient_id": patients[int(n)]} if patients else {}
        return {"image": f"{n}.png", "label": f"{n}_label.png", **more}

    path = folder / "list.json"
    content = {
        "name": "tiny", "labels": {"background": 0, "object": 1}, "training": [entry(n) for n in training],
        "validation": [entry(n) for n in validation],
        "test": [{"image": "kept_elsewhere.png", "label": "kept_elsewhere_label.png"}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def pretrain(run: Path, folder: Path, **overrides: Any) -> list[dict[str, str]]:
    settings = {**TINY, "dataset_dir": str(folder), "data_list": "none", "run_dir": str(run), **overrides}
    saved_by(ConfigWorkflow(config_file=[str(BUNDLE)], logging_file=False, **settings))
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_probe_changes_no_bit_and_is_in_log_and_tensorboard(labelled: Path, tmp_path: Path) -> None:
    data_list = write_list(labelled, "012", "34")
    without = pretrain(tmp_path / "without", labelled)
    rows = pretrain(tmp_path / "with", labelled, probe_data_list=str(data_list), probe_every=4)
    assert "probe_dice" not in without[0]
    assert (tmp_path / "with" / "model.pt").read_bytes() == (tmp_path / "without" / "model.pt").read_bytes()
    probed = {row["step"]: float(row["probe_dice"]) for row in rows if row["probe_dice"]}
    assert list(probed) == ["0", "4", "6"]
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    for name in ("probe_dice", "probe_iou"):
        assert [event.step for event in events.Scalars(name)] == [0, 4, 6]

    # What fitting to the file that came out gives: averaged weights, no others.
    averaged = load_pretrained(tmp_path / "with" / "model.pt")
    assert probed["6"] == pytest.approx(held_out_dice(labelled, data_list, averaged), abs=1e-5)
    last = torch.load(tmp_path / "with" / "checkpoints" / "step_00000006.pt", weights_only=False)
    averaged[0].load_state_dict(last["network"])
    assert probed["6"] != pytest.approx(held_out_dice(labelled, data_list, averaged), abs=1e-4)


def held_out_dice(folder: Path, data_list: Path, backbone: Any) -> float:
    """Fit to the training section and score the validation section, in the plain way."""
    extractor, plan, _ = make_extractor(backbone)
    cases = select_cases(folder, data_list, ("training", "validation"))
    reader = CaseReader(cases, plan)
    support = [example for case in reader.read_all(cases.training) for example in case.examples]
    reading = Reading((16, 16))
    predictor = Predictor(ClosedFormHead("ridge").fit(Task(support, 2, reading), extractor).model, reading)
    masks = [(predictor.case(case).probabilities.argmax(0), case) for case in reader.read_all(cases.validation)]
    return float(np.mean([mean_scores(mask, case.truth, 2, 255)["dice"] for mask, case in masks]))


@pytest.mark.slow
def test_without_validation_patients_are_left_out_together(labelled: Path, tmp_path: Path) -> None:
    data_list = write_list(labelled, "01234", patients="abaca")
    probe = Probe(PLAN, labelled, data_list)
    assert [[case.name for case in fold] for fold in probe.folds] == [["0", "2", "4"], ["1"], ["3"]]
    assert [len(fold) for fold in _folds(probe.cases, [c for f in probe.folds for c in f], 2)] == [4, 1]
    rows = pretrain(tmp_path / "run", labelled, probe_data_list=str(data_list), max_steps=2)
    assert 0 <= float(rows[-1]["probe_iou"]) <= float(rows[-1]["probe_dice"]) <= 1


def test_a_held_out_image_is_scored_by_a_head_that_never_saw_it(labelled: Path) -> None:
    probe = Probe(PLAN, labelled, write_list(labelled, "0123"), shots=3)
    seen: list[tuple[float, float]] = []

    class Head(ClosedFormHead):
        def fit_sums(self, folds: Any, task: Task, extractor: Any) -> Any:
            seen.append((float(sum(f.counts[1] for f in folds)), len(folds)))
            return super().fit_sums(folds, task, extractor)

    probe.head = Head("ridge")

    class Engine:
        optimization = Optimization(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        state = type("State", (), {"device": torch.device("cpu"), "heldout": {"ssim_t250": 0.5}})()

        def __init__(self) -> None:
            torch.manual_seed(0)
            self.network = ADMUNet(in_channels=3, out_channels=3, model_channels=32, channel_mult=[1, 1],
                                   num_res_blocks=1, attention_resolutions=[], num_head_channels=16)  # fmt: skip
            probe.plan = {**PLAN, "corruption": {"_target_": "medmdm.corruption.PatchMasking", "patch_size": 8}}

    engine = Engine()
    probe(engine)  # type: ignore[arg-type]
    pixels = [_windowed_object_pixels(fold[0]) for fold in probe.folds]
    assert seen == [(sum(pixels) - own, 2) for own in pixels]
    assert set(engine.state.heldout) == {"ssim_t250", "probe_dice", "probe_iou"}


def _windowed_object_pixels(case: Any) -> float:
    return float(sum((view.label == 1).sum() for view in views(case.examples[0], "windows", (16, 16), 0.2)))


@pytest.mark.parametrize(("overrides", "sentence"), [
    ({"training": "0"}, "two or more"),
    ({"training": "012", "patients": "aaa"}, "two or more"),
    ({"training": "012", "every": 0}, "at least 1 step"),
])  # fmt: skip
def test_bad_input_is_refused_before_training(labelled: Path, overrides: dict[str, Any], sentence: str) -> None:
    every = overrides.pop("every", 5)
    refused(sentence, Probe, PLAN, labelled, write_list(labelled, **overrides), every=every)


def test_a_label_of_another_size_is_named_before_the_first_step(labelled: Path, tmp_path: Path) -> None:
    picture(labelled / "1_label.png", np.zeros((5, 5)))
    data_list = str(write_list(labelled, "012"))
    refused_in_config(r"1(_label)?\.png", pretrain, tmp_path / "run", labelled, probe_data_list=data_list)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_network_without_features_is_refused_before_the_first_step(labelled: Path, tmp_path: Path) -> None:
    settings = {"probe_data_list": str(write_list(labelled, "012"))}
    network = {
        "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 3,
        "channels": [8, 8], "attention_levels": [False, False], "num_res_blocks": 1, "norm_num_groups": 4,
    }  # fmt: skip
    refused_in_config("has no features", pretrain, tmp_path / "run", labelled, **settings, network_def=network)


def test_no_list_no_probe(tmp_path: Path) -> None:
    assert Probe(PLAN, tmp_path).names == []
