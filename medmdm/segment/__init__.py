"""From a backbone and a few labelled images to masks and their record."""

from medmdm.segment.evaluation import LabelledData, Outputs
from medmdm.segment.postprocessing import PostProcess
from medmdm.segment.reconstruction_error import ReconstructionError
from medmdm.segment.study import Grid, Study
from medmdm.segment.workflow import Evaluation, Inference, OpenSegmenter, Segmentation, open_segmenter

__all__ = [
    "Evaluation", "Grid", "Inference", "LabelledData", "OpenSegmenter", "Outputs", "PostProcess", "ReconstructionError",
    "Segmentation", "Study", "open_segmenter",
]  # fmt: skip
