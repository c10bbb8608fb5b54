"""Names of 0.1 that other programs import: see :mod:`medmdm.objectives`."""

from __future__ import annotations

from medmdm.objectives.losses import (
    CrossEntropyDiceLoss,
    L1Loss,
    MSELoss,
    PaperSSIMLoss,
    ReconstructionLoss,
    SSIMLoss,
    WeightedSumLoss,
)

__all__ = [
    "CrossEntropyDiceLoss",
    "L1Loss",
    "MSELoss",
    "PaperSSIMLoss",
    "ReconstructionLoss",
    "SSIMLoss",
    "WeightedSumLoss",
]
