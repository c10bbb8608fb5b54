"""What is learnt: the objective, and how a restored image is compared with the clean one."""

from medmdm.objectives.losses import (
    L1Loss,
    MSELoss,
    PaperSSIMLoss,
    ReconstructionLoss,
    SSIMLoss,
    WeightedSumLoss,
    with_visible,
)
from medmdm.objectives.objective import Objective

__all__ = [
    "L1Loss", "MSELoss", "Objective", "PaperSSIMLoss", "ReconstructionLoss", "SSIMLoss", "WeightedSumLoss",
    "with_visible",
]  # fmt: skip
