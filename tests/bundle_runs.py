"""Runs of the bundles so small that they take a second, and ways to start them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from medmdm.artifacts.pretrained import save_weights
from medmdm.backbones import ADMUNet
from medmdm.components import to_config
from medmdm.corruption import PatchMasking

REPOSITORY = Path(__file__).parents[1]
BUNDLES = REPOSITORY / "bundles"
BUNDLE = BUNDLES / "mdm_pretrain.json"
OVERLAYS = BUNDLES / "overlays"

# 6 steps on crops of 16x16 pixels; dropout, so that the global random state matters.
TINY: dict[str, Any] = {
    "crop_size": [16, 16],
    "batch_size": 4,
    "max_steps": 6,
    "network_def": {
        "_target_": "medmdm.backbones.ADMUNet", "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1,
        "attention_resolutions": [2], "num_head_channels": 16, "in_channels": "@channels", "out_channels": "@channels",
        "dropout": 0.1,
    },
    "log_every": 2,
    "checkpoint_every": 2,
    "preview_every": 3,
    "preview_crops": 2,
}  # fmt: skip

Workflow = Callable[..., ConfigWorkflow]
Run = Callable[..., Any]

HEAD = {
    "_target_": "medmdm.heads.PixelClassifierHead", "members": 2, "max_epochs": 12, "min_epochs": 12, "batch_size": 4,
    "pixels": 128,
}  # fmt: skip
UNET = {
    "_target_": "medmdm.heads.FromScratch",
    "network": {
        "_target_": "monai.networks.nets.UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3,
        "out_channels": 2, "channels": [8, 16], "strides": [2],
    },
    "multiple": 2, "training": {"_target_": "medmdm.heads.Training", "steps": 2},
}  # fmt: skip


def bundle_command(run_dir: Path, dataset_dir: Path, *overlays: str, **overrides: Any) -> list[str]:
    files = [str(BUNDLE), *(str(OVERLAYS / f"{name}.json") for name in overlays)]
    settings = {**TINY, "dataset_dir": str(dataset_dir), "run_dir": str(run_dir), **overrides}
    arguments = ["run", "--config_file", str(files)]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    return arguments


def saved_by(made: ConfigWorkflow) -> dict[str, Any]:
    """Run a workflow of a pre-training and return what its ``model.pt`` holds."""
    made.initialize()
    made.run()
    return torch.load(Path(made.parser["run_dir"]) / "model.pt", weights_only=True)


def trainer_of(made: ConfigWorkflow) -> Any:
    """Make a workflow of a pre-training ready to run."""
    made.initialize()
    return made.parser.get_parsed_content("train#trainer")


def run_python(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, two threads at most, to an exit code, and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == code, result.stderr
    return result


def write_backbone(path: Path, seed: int = 0, **plan: Any) -> Path:
    torch.manual_seed(seed)
    network = ADMUNet(
        spatial_dims=len(plan.get("crop_size", (16, 16))),
        in_channels=plan.get("channels", 3), out_channels=plan.get("channels", 3), model_channels=32,
        channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=16,
    )  # fmt: skip
    content = {
        "format": 1, "network": {"_target_": "medmdm.backbones.ADMUNet", **network.config},
        "corruption": to_config(PatchMasking(1000, 4)), "num_timesteps": 1000, "channels": 3, "crop_size": [16, 16],
        "intensity_range": None, "ledger": {"images": [], "patients": [], "salt": ""}, **plan,
    }  # fmt: skip
    save_weights(network.state_dict(), content, path)
    return path
