"""Networks that give features, frozen, and the arithmetic on their feature maps."""

from medmdm.backbones.adapters import BasicUNetBackbone, MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.backbones.layers import BlockNetwork

__all__ = [
    "ADMUNet", "BasicUNetBackbone", "BlockNetwork", "CachedExtractor", "Extractor", "FeatureExtractor", "FilterBank",
    "MONAIDiffusionBackbone", "RawPixels", "randomise",
]  # fmt: skip
