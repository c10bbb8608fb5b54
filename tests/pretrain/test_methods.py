"""Each overlay that changes what is learnt trains, is named in the documentation, and goes on with the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events

from tests.bundle_runs import OVERLAYS, Workflow, saved_by, trainer_of
from tests.made import refused_in_config
from tests.written import write_nifti

#: What says that an overlay is a way to pre-train, and not a data set or a machine.
METHOD_KEYS = {"corruption", "terms", "timesteps", "target"}
METHODS = sorted(
    path.stem for path in OVERLAYS.glob("*.json") if METHOD_KEYS & json.loads(path.read_text()).keys()
)  # fmt: skip
OF_VOLUMES = ("slice_order", "slice_position")
STATEFUL = ["adaptive_masking", "adversarial", "dense_contrast", "self_distillation"]
SMALL: dict[str, Any] = {"patch_size": 4, "max_steps": 4, "preview_crops": 2}


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(3):
        values = np.kron(rng.normal(0, 300, (6, 8, 3)), np.ones((4, 4, 4))).astype(np.int16)
        write_nifti(tmp_path / "set" / f"case{i}.nii.gz", values, np.diag([1.0, 1.0, 2.0, 1.0]))
    return tmp_path / "set"


def settings_of(method: str, volumes: Path) -> dict[str, Any]:
    settings = dict(SMALL)
    if method in OF_VOLUMES:
        settings |= {"dataset_dir": str(volumes), "percentiles": [1, 99]}
    if method == "volumes":
        settings |= {"dataset_dir": str(volumes), "crop_size": [8, 16, 16], "network_def#spatial_dims": 3}
    if method in ("best", "self_distillation"):
        settings |= {"terms#0#blocks": [1, 3], "terms#0#channels": [32, 32]}
    if method == "mask_and_noise_twice":
        settings["network_def#out_channels"] = 6
    if method in ("dense_contrast", "image_contrast", *OF_VOLUMES):
        settings |= {"terms#0#block": 2, "terms#0#channels": 32}
    if method == "dense_contrast":
        settings["terms#0#queue"] = 100
    if method == "object_masking":
        entries = [{"image": "a.png", "label": "a_mask.png"}, {"image": "b.png"}]
        settings["data_list"] = {"labels": {"background": 0, "gland": 1}, "training": entries}
    return settings


@pytest.mark.parametrize("precision", [None, "bfloat16"], ids=["", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_method_trains(
    method: str, precision: str | None, workflow: Workflow, volumes: Path, tmp_path: Path
) -> None:
    settings = settings_of(method, volumes) | {"max_steps": 2, "run_dir": str(tmp_path / "run")}
    settings["amp_dtype"] = precision
    saved = saved_by(workflow(method, **settings))
    assert all(torch.isfinite(w).all() for w in saved["model"].values())
    assert list((tmp_path / "run" / "previews").glob("step_*.png"))
    losses = (tmp_path / "run" / "metrics.csv").read_text()
    assert "nan" not in losses.lower()


def test_a_term_that_sets_in_later_trains_in_float16(workflow: Workflow, volumes: Path, tmp_path: Path) -> None:
    settings = settings_of("self_distillation", volumes) | {"terms#0#warmup": 0.9, "max_steps": 3}
    saved = saved_by(workflow("self_distillation", **settings, amp_dtype="float16", run_dir=str(tmp_path / "run")))
    assert all(torch.isfinite(w).all() for w in saved["model"].values())


@pytest.mark.parametrize("method", STATEFUL)
def test_a_run_cut_short_ends_with_the_same_bits(
    method: str, workflow: Workflow, volumes: Path, tmp_path: Path
) -> None:
    settings = settings_of(method, volumes)
    whole = saved_by(workflow(method, **settings, run_dir=str(tmp_path / "whole")))
    cut = trainer_of(workflow(method, **settings, run_dir=str(tmp_path / "cut")))

    def stop() -> None:
        raise RuntimeError("cut")

    cut.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
    with pytest.raises(RuntimeError, match="cut"):
        cut.run()
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step_00000002.pt"]
    resumed = saved_by(workflow(method, **settings, run_dir=str(tmp_path / "cut")))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    kept = [torch.load(tmp_path / run / "checkpoints" / "step_00000004.pt") for run in ("whole", "cut")]
    if method != "adaptive_masking":
        first, second = (one["terms"][0]["module"] for one in kept)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], torch.zeros_like(first[name])) for name in first)


def test_terms_change_what_is_learnt_and_no_terms_change_nothing(workflow: Workflow, tmp_path: Path) -> None:
    runs = {}
    for name, overlays, extra in (
        ("plain", (), {}), ("none", (), {"terms": []}), ("weightless", ("spectral",), {"terms#0#weight": 0.0}),
        ("spectral", ("spectral",), {}),
    ):  # fmt: skip
        # The first images are 0 everywhere, where magnitudes have no gradient: the term acts from the third step on.
        settings = {**SMALL, "max_steps": 4, "run_dir": str(tmp_path / name), **extra}
        runs[name] = saved_by(workflow(*overlays, **settings))["model"]
    for name in ("none", "weightless"):
        assert all(torch.equal(runs["plain"][k], runs[name][k]) for k in runs["plain"])
    assert any(not torch.equal(runs["plain"][k], runs["spectral"][k]) for k in runs["plain"])


def test_micro_batches_give_the_same_step_with_a_term(workflow: Workflow, tmp_path: Path) -> None:
    sgd = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 1.0}
    one = {**SMALL, "max_steps": 1, "network_def#dropout": 0.0, "optimizer": sgd, "terms#0#warmup": 0.0}
    settings = {**settings_of("self_distillation", tmp_path), **one}
    whole = saved_by(workflow("self_distillation", **settings, run_dir=str(tmp_path / "whole")))["model"]
    parts = saved_by(workflow("self_distillation", **settings, accumulation_steps=4, run_dir=str(tmp_path / "parts")))
    for name in whole:
        assert torch.allclose(whole[name], parts["model"][name], atol=1e-6), name


def test_without_an_average_there_is_no_teacher(workflow: Workflow) -> None:
    made = workflow("spectral", **{**SMALL, "optimization#ema": "$None"})
    refused_in_config("averaged weights", trainer_of, made)


def test_slices_are_needed_for_their_place(workflow: Workflow) -> None:
    made = workflow("slice_position", **{**SMALL, "channels": 3, "terms#0#block": 2, "terms#0#channels": 32})
    refused_in_config("slices of volumes", saved_by, made)
