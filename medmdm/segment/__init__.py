"""From a backbone and a few labelled images to a segmentation and its numbers."""

from __future__ import annotations

from medmdm.segment.apply import Evaluation, Inference
from medmdm.segment.backbones import OpenBackbone, open_backbone, open_backbones
from medmdm.segment.closed_form import ClosedFormHead
from medmdm.segment.context import Fitted, Fitter, Task
from medmdm.segment.end_to_end import FineTuning, FromScratch
from medmdm.segment.pixel_classifier import PixelClassifierHead
from medmdm.segment.prediction import Prediction, Predictor
from medmdm.segment.probe import Probe
from medmdm.segment.reading import CaseReader, LoadedCase
from medmdm.segment.study import Study
from medmdm.segment.surprise import Surprise, open_surprise
from medmdm.segment.views import Example, random_crop, views
from medmdm.segment.workflow import Segmentation

__all__ = [
    "CaseReader",
    "ClosedFormHead",
    "Evaluation",
    "Example",
    "FineTuning",
    "Fitted",
    "Fitter",
    "FromScratch",
    "Inference",
    "LoadedCase",
    "OpenBackbone",
    "PixelClassifierHead",
    "Prediction",
    "Predictor",
    "Probe",
    "Segmentation",
    "Study",
    "Surprise",
    "Task",
    "open_backbone",
    "open_backbones",
    "open_surprise",
    "random_crop",
    "views",
]
