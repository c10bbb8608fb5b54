"""How a segmentation is learnt from a few labelled images."""

from medmdm.heads.classifier_network import LinearClassifier, PixelClassifier
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.consistency import Consistency
from medmdm.heads.end_to_end import FineTuning, FromScratch
from medmdm.heads.multi_task import MultiTaskHead
from medmdm.heads.pixel_classifier import CrossEntropyDiceLoss, PixelClassifierHead
from medmdm.heads.predictor import Prediction, Predictor
from medmdm.heads.random_forest import RandomForest, RandomForestHead
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.self_training import SelfTraining
from medmdm.heads.slice_by_slice import SliceBySlice
from medmdm.heads.task import Fitted, Fitter, Reading, Task, random_crop, views
from medmdm.heads.training import Training

__all__ = [
    "ClosedFormHead", "Consistency", "CrossEntropyDiceLoss", "FineTuning", "Fitted", "Fitter", "FromScratch",
    "LinearClassifier", "MultiTaskHead", "PaddedNetwork", "PixelClassifier", "PixelClassifierHead", "Prediction",
    "Predictor", "RandomForest", "RandomForestHead", "Reading", "Segmenter", "SelfTraining", "SliceBySlice", "Task",
    "Training", "random_crop", "views",
]  # fmt: skip
