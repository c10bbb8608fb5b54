"""The networks, and how their weights are read from files."""

from __future__ import annotations

from medmdm.networks.adapters import MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.networks.adm_unet import ADMUNet
from medmdm.networks.backbone import make_extractor
from medmdm.networks.checkpoints import convert, load_network, load_pretrained
from medmdm.networks.extractor import FeatureExtractor
from medmdm.networks.padded import PaddedNetwork
from medmdm.networks.pixel_classifier import LinearClassifier, PixelClassifier
from medmdm.networks.segmenter import Segmenter
from medmdm.networks.segmenter_files import load_segmenter, save_segmenter

__all__ = [
    "ADMUNet",
    "FeatureExtractor",
    "LinearClassifier",
    "MONAIDiffusionBackbone",
    "PaddedNetwork",
    "PixelClassifier",
    "RawPixels",
    "Segmenter",
    "convert",
    "load_network",
    "load_pretrained",
    "load_segmenter",
    "make_extractor",
    "randomise",
    "save_segmenter",
]
