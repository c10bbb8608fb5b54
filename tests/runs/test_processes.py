import json
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
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].iloc[-1] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_torchrun_of_the_bundle_runs_and_one_process_writes(tmp_path: Path, image_folder: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    command = bundle_command(tmp_path / "run", image_folder, "multi_gpu", max_steps=2)
    assert run_python(*launch, *command, cwd=tmp_path).stderr.count("step 2/2") == 1
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["step"].tolist() == [0, 2]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][0]["hardware"]["processes"] == 2
    assert not any(name.startswith("module.") for name in torch.load(tmp_path / "run" / "model.pt")["model"])


def test_without_torchrun_there_is_one_process() -> None:
    assert (distributed.rank(), distributed.world_size(), is_main_process()) == (0, 1, True)
    assert torch.equal(distributed.average(torch.ones(2)), torch.ones(2))
    distributed.stop()
