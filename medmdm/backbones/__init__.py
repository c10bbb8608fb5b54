"""Networks that give features, frozen, and the arithmetic on their feature maps."""

from medmdm.backbones.adapters import BasicUNetBackbone, MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.concatenation import Concatenation
from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.backbones.layers import BlockNetwork
from medmdm.backbones.timm import TimmBackbone

__all__ = [
    "ADMUNet", "BasicUNetBackbone", "BlockNetwork", "CachedExtractor", "Concatenation", "Extractor", "FeatureExtractor",
    "FilterBank", "MONAIDiffusionBackbone", "RawPixels", "TimmBackbone", "randomise",
]  # fmt: skip
