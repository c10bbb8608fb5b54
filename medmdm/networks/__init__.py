"""The networks, and how their weights are read from files."""

from __future__ import annotations

from medmdm.networks.adm_unet import ADMUNet

__all__ = ["ADMUNet"]
