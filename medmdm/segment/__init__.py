"""From a backbone and a few labelled images to masks and their record."""

from __future__ import annotations

from medmdm.segment.apply import Evaluation, Inference
from medmdm.segment.postprocessing import PostProcess
from medmdm.segment.reconstruction_error import Surprise, open_surprise
from medmdm.segment.study import Study
from medmdm.segment.workflow import Segmentation

__all__ = [
    "Evaluation",
    "Inference",
    "PostProcess",
    "Segmentation",
    "Study",
    "Surprise",
    "open_surprise",
]
