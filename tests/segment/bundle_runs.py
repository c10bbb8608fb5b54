"""A tiny backbone and quick heads for tests that run the bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medmdm.corruption import PatchMasking
from medmdm.files import save_torch
from medmdm.networks import ADMUNet

BUNDLES = Path(__file__).parents[2] / "bundles"
HEAD = {
    "_target_": "medmdm.segment.PixelClassifierHead",
    "members": 2,
    "max_epochs": 12,
    "min_epochs": 12,
    "batch_size": 4,
    "pixels": 128,
}
UNET = {
    "_target_": "medmdm.segment.FromScratch",
    "network": {
        "_target_": "monai.networks.nets.UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3,
        "out_channels": 2, "channels": [8, 16], "strides": [2],
    },
    "multiple": 2, "steps": 2,
}  # fmt: skip


def write_backbone(path: Path, seed: int = 0, **plan: Any) -> Path:
    torch.manual_seed(seed)
    network = ADMUNet(
        in_channels=plan.get("channels", 3), out_channels=plan.get("channels", 3), model_channels=32,
        channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=16,
    )  # fmt: skip
    content = {
        "format": 1,
        "network": {"_target_": "medmdm.networks.ADMUNet", **network.config},
        "corruption": PatchMasking(1000, 4).to_config(),
        "num_timesteps": 1000,
        "channels": 3,
        "crop_size": [16, 16],
        "intensity_range": None,
        "ledger": {"images": [], "patients": [], "salt": ""},
        **plan,
    }
    save_torch({"model": network.state_dict(), "plan": content}, path)
    return path
