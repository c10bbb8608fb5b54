"""What a lab has on disk, as samples that MONAI can batch."""

from medmdm.data.cases import select_cases
from medmdm.data.dataset import CropDataset, StepSampler
from medmdm.data.files.formats import IMAGE_SUFFIXES, VOLUME_SUFFIXES, is_volume
from medmdm.data.files.pictures import RasterReader, image_size, read_image
from medmdm.data.files.volumes import (
    SLICE_AXES,
    SimpleITKReader,
    Slicing,
    Volume,
    read_volume,
    volume_geometry,
    volume_hash,
)
from medmdm.data.folders import FolderImages, find_data_list, find_images
from medmdm.data.given_labels import with_labels
from medmdm.data.holdout import HeldOut, hold_out
from medmdm.data.lists import DataList, load_data_list, shipped_data_lists
from medmdm.data.loading import LabelToClassesd, LoadCased, LoadObjectsd
from medmdm.data.mask_names import is_mask
from medmdm.data.reading import CaseReader, Example, LoadedCase
from medmdm.data.selection import Selection, select_training_images, slice_volumes
from medmdm.data.shard_files import write_shards
from medmdm.data.shards import ShardDataset, select_shards
from medmdm.data.single_image import Corruptd, ReadImaged
from medmdm.data.slices import LoadSliced, StoredVolume, VolumeStore, open_slices, slice_entries
from medmdm.data.splits import k_folds, split_by_patient, subset
from medmdm.data.tissue import Tissue, tile_slides
from medmdm.data.transforms.augmentation import Augmentation, histology, radiology
from medmdm.data.transforms.intensity import (
    CT_WINDOWS,
    PercentileRanged,
    ScaleByPercentiles,
    ScaleByPercentilesd,
    ScaleByWindow,
    ScaleByWindowd,
    ScaleIntensityByDtype,
    ScaleIntensityByDtyped,
    percentiles_record,
    scaled_range,
    window_range,
)
from medmdm.data.transforms.spatial import (
    CutRegion,
    CutRegiond,
    PadToSize,
    PadToSized,
    ResampleToSpacing,
    ResampleToSpacingd,
    as_spacing,
)
from medmdm.data.transforms.stain import RandStainJitter, RandStainJitterd
from medmdm.data.writers import SliceAssembler, write_map, write_mask
from medmdm.files import pixel_hash

__all__ = [
    "CT_WINDOWS", "IMAGE_SUFFIXES", "SLICE_AXES", "VOLUME_SUFFIXES", "Augmentation", "CaseReader", "Corruptd",
    "CropDataset", "CutRegion", "CutRegiond", "DataList", "Example", "FolderImages", "HeldOut", "LabelToClassesd",
    "LoadCased", "LoadObjectsd", "LoadSliced", "LoadedCase", "PadToSize", "PadToSized", "PercentileRanged",
    "RandStainJitter", "RandStainJitterd", "RasterReader", "ReadImaged", "ResampleToSpacing", "ResampleToSpacingd",
    "ScaleByPercentiles", "ScaleByPercentilesd", "ScaleByWindow", "ScaleByWindowd", "ScaleIntensityByDtype",
    "ScaleIntensityByDtyped", "Selection", "ShardDataset", "SimpleITKReader", "SliceAssembler", "Slicing",
    "StepSampler", "StoredVolume", "Tissue", "Volume", "VolumeStore", "as_spacing", "find_data_list", "find_images",
    "histology", "hold_out", "image_size", "is_mask", "is_volume", "k_folds", "load_data_list", "open_slices",
    "percentiles_record", "pixel_hash", "radiology", "read_image", "read_volume", "scaled_range", "select_cases",
    "select_shards", "select_training_images", "shipped_data_lists", "slice_entries", "slice_volumes",
    "split_by_patient", "subset", "tile_slides", "volume_geometry", "volume_hash", "window_range", "with_labels",
    "write_map", "write_mask", "write_shards",
]  # fmt: skip
