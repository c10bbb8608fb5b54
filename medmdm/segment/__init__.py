"""From a backbone and a few labelled images to a segmentation and its numbers."""

from __future__ import annotations

from medmdm.segment.closed_form import ClosedFormHead
from medmdm.segment.context import Fitted, Fitter, Task
from medmdm.segment.end_to_end import FineTuning, FromScratch
from medmdm.segment.pixel_classifier import PixelClassifierHead
from medmdm.segment.views import Example, random_crop, views

__all__ = [
    "ClosedFormHead",
    "Example",
    "FineTuning",
    "Fitted",
    "Fitter",
    "FromScratch",
    "PixelClassifierHead",
    "Task",
    "random_crop",
    "views",
]
