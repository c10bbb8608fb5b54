"""Names of 0.1 that other programs import: see :mod:`medmdm.backbones`, ``heads`` and ``artifacts``."""

from __future__ import annotations

from medmdm.artifacts import convert, load_network, load_pretrained, load_segmenter, save_segmenter
from medmdm.artifacts.backbone import make_extractor
from medmdm.backbones import ADMUNet, FeatureExtractor, MONAIDiffusionBackbone, RawPixels, randomise
from medmdm.heads import LinearClassifier, PaddedNetwork, PixelClassifier, Segmenter

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
