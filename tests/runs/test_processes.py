import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from monai.engines.utils import IterationEvents

from medmdm.files import is_main_process
from medmdm.runs import processes as distributed
from tests.bundle_runs import BUNDLE, OVERLAYS, TINY, bundle_command, run_python, trainer_of

pytestmark = pytest.mark.slow  # starts programs

SCRIPT = str(Path(__file__).with_name("two_processes.py"))


DISTILLATION = {
    "_target_": "medmdm.objectives.SelfDistillation", "blocks": [1, 3], "channels": [32, 32], "warmup": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"terms": [DISTILLATION]}, {"accumulation_steps": 2, "loss_function": {
    "_target_": "medmdm.objectives.L1Loss", "visible_weight": 0.0}}])  # fmt: skip
def test_two_processes_have_the_gradients_of_one(settings, tmp_path, image_folder, workflow) -> None:
    one_step = {**TINY, "network_def": {**TINY["network_def"], "dropout": 0.0}, "max_steps": 1, **settings}
    one_step |= {"dataset_dir": str(image_folder), "run_dir": str(tmp_path / "two")}
    files = json.dumps([str(BUNDLE), str(OVERLAYS / "multi_gpu.json")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT, str(tmp_path / "g2")]
    run_python(*launch, files, json.dumps(one_step), cwd=tmp_path)
    trainer = trainer_of(workflow(**{**one_step, "run_dir": str(tmp_path / "one")}))
    one: dict[str, torch.Tensor] = {}
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda: one.update({name: p.grad.clone() for name, p in trainer.network.named_parameters()}),
    )
    trainer.run()
    largest = max(float(g.abs().max()) for g in one.values())
    assert largest > 1e-3
    for rank in (0, 1):
        two = torch.load(tmp_path / f"g2.{rank}", weights_only=True)
        assert two.keys() == one.keys()
        for name, gradient in one.items():
            assert torch.allclose(gradient, two[name], rtol=1e-4, atol=1e-6 * largest), name
        assert "gloo" not in (tmp_path / f"g2.threads.{rank}").read_text()  # they abort a process that is ending
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].iloc[-1] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_torchrun_of_the_bundle_runs_and_one_process_writes(tmp_path: Path, image_folder: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    command = bundle_command(tmp_path / "run", image_folder, "multi_gpu", max_steps=4)  # held out: 0, 3, 4
    assert run_python(*launch, *command, cwd=tmp_path).stderr.count("step 4/4") == 1
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["step"].tolist() == [0, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][0]["hardware"]["processes"] == 2
    assert not any(name.startswith("module.") for name in torch.load(tmp_path / "run" / "model.pt")["model"])


def test_without_torchrun_there_is_one_process() -> None:
    assert (distributed.rank(), distributed.world_size(), is_main_process()) == (0, 1, True)
    assert torch.equal(distributed.average(torch.ones(2)), torch.ones(2))
    distributed.stop()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
@pytest.mark.parametrize("hit", ["torchrun", "rank 1"])
def test_a_signal_ends_all_processes_after_the_same_step(hit: str, tmp_path: Path, image_folder: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    command = bundle_command(tmp_path / "run", image_folder, "multi_gpu", max_steps=900, checkpoint_every=500)
    said, deadline = tmp_path / "said", time.monotonic() + 240
    with open(said, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *launch, *command], cwd=tmp_path, stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        while "step 4/900" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid if hit == "torchrun" else int(children[1]), signal.SIGTERM)
        process.wait(240)
    finally:
        process.kill()
    steps = re.findall(r"^interrupted: stopped after step (\d+) of 900; .*$", said.read_text(), re.MULTILINE)
    assert len(steps) == 1, said.read_text()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step_{int(steps[0]):08d}.pt"]
