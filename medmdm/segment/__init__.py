"""From a backbone and a few labelled images to masks and their record."""

from medmdm.segment.apply import Announced, Evaluation, Inference
from medmdm.segment.classification import Classification
from medmdm.segment.evaluation import Outputs
from medmdm.segment.formats import COCO, DicomSeg, GeoJSON, ObjectTable, OMETiff
from medmdm.segment.grid import Grid
from medmdm.segment.label_plan import LabelPlanner
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.mask_transform import MaskFromLogitsd
from medmdm.segment.postprocessing import PostProcess
from medmdm.segment.reconstruction_error import ReconstructionError
from medmdm.segment.saved_segmenter import OpenSegmenter, open_segmenter
from medmdm.segment.study import Study
from medmdm.segment.workflow import Segmentation

__all__ = [
    "COCO",
    "Announced",
    "Classification",
    "DicomSeg",
    "Evaluation",
    "GeoJSON",
    "Grid",
    "Inference",
    "LabelPlanner",
    "LabelledData",
    "MaskFromLogitsd",
    "OMETiff",
    "ObjectTable",
    "OpenSegmenter",
    "Outputs",
    "PostProcess",
    "ReconstructionError",
    "Segmentation",
    "Study",
    "open_segmenter",
]  # fmt: skip
