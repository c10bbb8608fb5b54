"""A pre-training so small that it takes a second, and ways to start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundles" / "mdm_pretrain.json"
OVERLAYS = REPOSITORY / "bundles" / "overlays"

# 6 steps on crops of 16x16 pixels; dropout, so that the global random state matters.
TINY: dict[str, Any] = {
    "crop_size": [16, 16],
    "batch_size": 4,
    "max_steps": 6,
    "network_def": {
        "_target_": "medmdm.networks.ADMUNet",
        "model_channels": 32,
        "channel_mult": [1, 1],
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "num_head_channels": 16,
        "in_channels": "@channels",
        "out_channels": "@channels",
        "dropout": 0.1,
    },
    "log_every": 2,
    "checkpoint_every": 2,
    "preview_every": 3,
    "preview_crops": 2,
}

Workflow = Callable[..., ConfigWorkflow]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three small RGB images of different shapes, and a mask."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 52)), ("b", (33, 64)), ("c_x", (64, 48))):
        coarse = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
        fine = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))[: shape[0], : shape[1]]
        Image.fromarray(fine).save(folder / f"{name}.png")
    Image.fromarray(np.zeros((40, 52), np.uint8)).save(folder / "a_mask.png")
    return folder


@pytest.fixture
def workflow(tmp_path: Path, image_folder: Path) -> Workflow:
    """Make a tiny pre-training workflow, as ``monai.bundle run`` does, without running it."""

    def make(*overlays: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(BUNDLE), *(str(OVERLAYS / f"{name}.json") for name in overlays)]
        settings = {**TINY, "dataset_dir": str(image_folder), "run_dir": str(tmp_path / "run"), **overrides}
        return ConfigWorkflow(config_file=files, logging_file=False, **settings)

    return make


def bundle_command(run_dir: Path, dataset_dir: Path, *overlays: str, **overrides: Any) -> list[str]:
    """Return the arguments of ``monai.bundle run`` for the tiny pre-training."""
    files = [str(BUNDLE), *(str(OVERLAYS / f"{name}.json") for name in overlays)]
    settings = {**TINY, "dataset_dir": str(dataset_dir), "run_dir": str(run_dir), **overrides}
    arguments = ["run", "--config_file", str(files)]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    return arguments


def run_python(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, two threads at most, and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
