"""Files that travel: weights with their plan, segmenters, published checkpoints, exports."""

from medmdm.artifacts.backbone import OpenBackbone, make_extractor, open_backbone, open_backbones
from medmdm.artifacts.pretrained import convert, load_network, load_pretrained, make_ledger, make_plan, patient_hashes
from medmdm.artifacts.restoration import Restoration
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.artifacts.timm_weights import load_timm

__all__ = [
    "OpenBackbone", "Restoration", "convert", "load_network", "load_pretrained", "load_segmenter", "load_timm",
    "make_extractor", "make_ledger", "make_plan", "open_backbone", "open_backbones", "patient_hashes", "save_segmenter",
]  # fmt: skip
