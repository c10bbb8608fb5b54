"""Networks that give features, frozen, and the arithmetic on their feature maps."""

from __future__ import annotations

from medmdm.backbones.adapters import MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.base import BlockNetwork
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor

__all__ = [
    "ADMUNet",
    "BlockNetwork",
    "CachedExtractor",
    "FeatureExtractor",
    "MONAIDiffusionBackbone",
    "RawPixels",
    "randomise",
]
