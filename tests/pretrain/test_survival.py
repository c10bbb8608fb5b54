"""Runs that are killed, damaged, repeated: the weights must come out the same to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.bundle_runs import bundle_command, run_python

pytestmark = pytest.mark.slow  # starts programs

KILLED_RUN = str(Path(__file__).with_name("killed_run.py"))


def tensors(content: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return {path: content}
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {name: tensor for key, part in items for name, tensor in tensors(part, f"{path}/{key}").items()}


def assert_same_run(run: Path, reference: Path) -> None:
    ours = torch.load(run / "model.pt", weights_only=True)
    theirs = torch.load(reference / "model.pt", weights_only=True)
    assert ours["plan"] == theirs["plan"]
    a, b = tensors(ours["model"]), tensors(theirs["model"])
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (run / "model.pt").read_bytes() == (reference / "model.pt").read_bytes()
    columns = ["images_per_second", "seconds"]
    log = pd.read_csv(run / "metrics.csv").drop(columns=columns)
    assert log["step"].tolist() == [0, 2, 3, 4, 6]
    pd.testing.assert_frame_equal(log, pd.read_csv(reference / "metrics.csv").drop(columns=columns), check_exact=True)
    assert not list(run.rglob(".*.part"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in image, copied: a folder that the tests may not change."""
    import skimage

    folder = tmp_path_factory.mktemp("images")
    shutil.copy(Path(skimage.__file__).parent / "data" / "ihc.png", folder / "tissue.png")
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    run_python("-m", "monai.bundle", *bundle_command(run, images), cwd=run.parent)
    return run


@pytest.mark.parametrize(("moment", "left"), [
    ("step:4", {"step_00000002.pt"}),  # in the middle of an interval
    ("rename:step_00000004:1", {"step_00000002.pt"}),  # a checkpoint is written but not renamed
    ("rename:model.pt:3", {"step_00000004.pt", "step_00000006.pt"}),  # the last step is done, model.pt is not
    ("rename:run.json:1", set()),  # the run folder has just been made
])  # fmt: skip
def test_killed_run_goes_on_to_the_same_bits(moment, left, tmp_path, images, reference) -> None:
    run = tmp_path / "run"
    command = bundle_command(run, images)
    run_python(KILLED_RUN, moment, *command, cwd=tmp_path, code=-signal.SIGKILL)
    assert {p.name for p in run.glob("checkpoints/*.pt")} == left
    run_python("-m", "monai.bundle", *command, cwd=tmp_path)
    assert_same_run(run, reference)
    assert "finished" in run_python("-m", "monai.bundle", *command, cwd=tmp_path).stderr


def test_truncated_checkpoint_is_skipped_and_workers_change_nothing(tmp_path, images, reference) -> None:
    run = tmp_path / "run"
    command = bundle_command(run, images, num_workers=2)
    run_python(KILLED_RUN, "step:6", *command, cwd=tmp_path, code=-signal.SIGKILL)
    newest = run / "checkpoints" / "step_00000004.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with open(run / "metrics.csv", "a") as log:
        log.write("5,0.1,0.0")  # a row cut off in the middle
    resumed = run_python("-m", "monai.bundle", *command, cwd=tmp_path)
    assert "step_00000004.pt is damaged and is skipped" in resumed.stderr
    assert "Going on after step 2" in resumed.stderr
    assert_same_run(run, reference)


def test_termination_signal_saves_and_the_run_goes_on(tmp_path: Path, images: Path, reference: Path) -> None:
    run = tmp_path / "run"
    command = bundle_command(run, images)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "monai.bundle", *command]
    process = subprocess.Popen(program, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "previews" / "step_00000000.png").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal arrived")
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command goes on from there" in errors
    assert json.loads((run / "run.json").read_text())["sessions"][0]["ended"] is None
    run_python("-m", "monai.bundle", *command, cwd=tmp_path)
    assert_same_run(run, reference)
