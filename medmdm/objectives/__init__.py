"""What is learnt: the objective, and how a restored image is compared with the clean one."""

from __future__ import annotations

from medmdm.objectives.losses import (
    CrossEntropyDiceLoss,
    L1Loss,
    MSELoss,
    PaperSSIMLoss,
    ReconstructionLoss,
    SSIMLoss,
    WeightedSumLoss,
    with_visible,
)
from medmdm.objectives.objective import Objective
from medmdm.objectives.target import check_target, restored

__all__ = [
    "CrossEntropyDiceLoss",
    "L1Loss",
    "MSELoss",
    "Objective",
    "PaperSSIMLoss",
    "ReconstructionLoss",
    "SSIMLoss",
    "WeightedSumLoss",
    "check_target",
    "restored",
    "with_visible",
]
