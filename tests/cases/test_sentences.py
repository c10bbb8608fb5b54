"""What used to end in a traceback, or said too little."""

import errno
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from monai.networks.nets import UNet

from medmdm import cli
from medmdm.data import select_cases
from medmdm.data.lists import label_names
from medmdm.errors import INTERRUPTED, Terminated, find_user_error, when_interrupted
from medmdm.heads import FromScratch
from tests.bundle_runs import BUNDLES, HEAD, Workflow, write_backbone
from tests.made import made_example, refused, task
from tests.segment.conftest import pictures  # noqa: F401 - a fixture

GOES_ON = "the same command goes on from there."
LONG = {"_target_": "medmdm.heads.Training", "steps": 900_000}
MONAI_NET = {
    "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 3,
    "channels": [30, 30], "attention_levels": [False, False], "num_res_blocks": 1, "norm_num_groups": 32,
}  # fmt: skip


@pytest.mark.parametrize(("network", "sentence"), [
    (MONAI_NET, "monai.networks.nets.DiffusionModelUNet cannot be built: DiffusionModelUNet expects all num_channels"),
    ({"_target_": "torch.nn.GroupNorm", "num_groups": 4, "num_channels": 6},
     "torch.nn.GroupNorm cannot be built: num_channels"),
    ({"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3, "groups": 2},
     "torch.nn.Conv2d cannot be built: in_channels must be divisible by groups."),
])  # fmt: skip
def test_a_network_that_cannot_be_built(network: dict[str, Any], sentence: str, workflow: Workflow) -> None:
    run = workflow(network_def=network)
    run.initialize()
    with pytest.raises(RuntimeError) as caught:
        run.run()
    assert str(find_user_error(caught.value)).startswith(sentence)
    assert "\n" not in str(find_user_error(caught.value))


def test_a_baseline_that_cannot_be_built() -> None:
    for channels in ([8], []):
        network = partial(UNet, spatial_dims=2, in_channels=3, out_channels=2, channels=channels, strides=[2])
        refused("^UNet cannot be built: ", FromScratch(network).fit, task([made_example()]))


def test_a_failure_of_our_own_keeps_its_traceback() -> None:
    for name in ("medmdm.data.CropDataset", "medmdm.pretrain.Probe"):
        error = RuntimeError(f"Failed to instantiate component '{name}' with keywords: a")
        error.__cause__ = ValueError("shapes differ")
        assert find_user_error(error) is None


def test_no_case_is_left_says_which_sections_have_some(pictures: Path) -> None:  # noqa: F811
    content = json.loads((pictures / "dataset.json").read_text())
    del content["test"]
    (pictures / "dataset.json").write_text(json.dumps(content))
    refused(
        r"no case is left in test: choose a section that has cases \(training\)", select_cases, pictures, None, ["test"]
    )


def test_help_says_where_the_bundles_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "python -m medmdm init FOLDER" in " ".join(capsys.readouterr().out.split())


def test_commands_that_are_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Any:
        def run(_: Any) -> int:
            raise error

        return run

    arguments = ["init", "nowhere"]
    monkeypatch.setattr(cli.init, "run", fail(KeyboardInterrupt()))
    monkeypatch.setattr("medmdm.errors._told", [INTERRUPTED])
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"
    when_interrupted("three cases are kept.")
    monkeypatch.setattr(cli.init, "run", fail(Terminated()))
    assert cli.main(arguments) == 143
    assert capsys.readouterr().err == "interrupted: three cases are kept.\n"
    monkeypatch.setattr(cli.init, "run", fail(OSError(errno.ENOSPC, "No space left on device", "nowhere")))
    assert cli.main(arguments) == 1
    monkeypatch.setattr(cli.init, "run", fail(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        cli.main(arguments)


@pytest.mark.slow
@pytest.mark.bundle
@pytest.mark.parametrize("head", [
    {**HEAD, "max_epochs": 90_000, "min_epochs": 90_000},
    {"_target_": "medmdm.heads.FromScratch", "training": LONG, "multiple": 2, "network": {
        "_target_": "monai.networks.nets.UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3,
        "out_channels": 2, "channels": [4, 4], "strides": [2]}},
    {"_target_": "medmdm.heads.FineTuning", "training": LONG},
], ids=lambda head: head["_target_"].rpartition(".")[2])  # fmt: skip
def test_an_interrupted_fit(head: dict[str, Any], pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    overlay = tmp_path / "head.json"
    overlay.write_text(json.dumps({"head": head, "backbone": str(write_backbone(tmp_path / "model.pt"))}))
    files = str([str(BUNDLES / "mdm_segment.json"), str(overlay)])
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", files]
    command += ["--dataset_dir", str(pictures), "--run_dir", str(tmp_path / "run")]
    # What runs the tests in the background may ignore interrupts, and a child would inherit that.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=default)
    while process.poll() is None and not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    try:
        stderr = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == f"interrupted: {tmp_path / 'run'} keeps what is finished; {GOES_ON}"
    assert stderr.splitlines()[-1] in (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" not in stderr


@pytest.mark.parametrize("labels", [
    {"background": 0, "a": 1, "b": 1}, {"background": 0, "other": 0, "a": 1}, {"background": 0, "a": 2, "b": 1, "c": 2},
])  # fmt: skip
def test_two_names_of_one_number(labels: dict[str, int]) -> None:
    refused("'labels' names [012] twice, '.*' and '.*': give each class its own", label_names, {"labels": labels})


def test_regions_may_share_numbers() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    assert label_names({"labels": labels}) == {0: "background", 1: "whole 1", 2: "core"}


@pytest.mark.parametrize("labels", [{"background": 1, "a": 0}, {"0": "a", "1": " Background"}])
def test_background_is_0_everywhere(labels: dict) -> None:
    refused("'labels' numbers the background 1", label_names, {"labels": labels})
