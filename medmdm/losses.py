"""Names of 0.1 that other programs import: see :mod:`medmdm.objectives`."""

from medmdm.heads.pixel_classifier import CrossEntropyDiceLoss as CrossEntropyDiceLoss
from medmdm.objectives import *  # noqa: F403
