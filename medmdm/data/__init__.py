"""What a lab has on disk, as samples that MONAI can batch."""

from __future__ import annotations

from medmdm.data.dataset import CropDataset
from medmdm.data.folders import FolderImages, find_images, is_mask
from medmdm.data.holdout import HeldOut, hold_out
from medmdm.data.images import IMAGE_SUFFIXES, RasterReader, image_size, pixel_hash, read_image
from medmdm.data.lists import DataList, load_data_list, shipped_data_lists
from medmdm.data.sampler import StepSampler
from medmdm.data.selection import Selection, find_data_list, select_training_images
from medmdm.data.transforms import (
    CutRegion,
    CutRegiond,
    PadToSize,
    PadToSized,
    ScaleIntensityByDtype,
    ScaleIntensityByDtyped,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "CropDataset",
    "CutRegion",
    "CutRegiond",
    "DataList",
    "FolderImages",
    "HeldOut",
    "PadToSize",
    "PadToSized",
    "RasterReader",
    "ScaleIntensityByDtype",
    "ScaleIntensityByDtyped",
    "Selection",
    "StepSampler",
    "find_data_list",
    "find_images",
    "hold_out",
    "image_size",
    "is_mask",
    "load_data_list",
    "pixel_hash",
    "read_image",
    "select_training_images",
    "shipped_data_lists",
]
