"""Networks that give features, frozen, and the arithmetic on their feature maps."""

from medmdm.backbones.adapters import MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.backbones.layers import BlockNetwork

__all__ = [
    "ADMUNet", "BlockNetwork", "CachedExtractor", "Extractor", "FeatureExtractor", "MONAIDiffusionBackbone",
    "RawPixels", "randomise",
]  # fmt: skip
