"""The networks, and how their weights are read from files."""

from __future__ import annotations

from medmdm.networks.adm_unet import ADMUNet
from medmdm.networks.checkpoints import convert, load_network, load_pretrained

__all__ = ["ADMUNet", "convert", "load_network", "load_pretrained"]
