"""What is learnt: the objective, how a restored image is compared with the clean one, and terms beside that."""

from medmdm.objectives.appearance import Adversarial, Perceptual, Spectral
from medmdm.objectives.contrast import DenseContrast, ImageContrast, SlicePosition
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
from medmdm.objectives.self_distillation import SelfDistillation
from medmdm.objectives.slice_order import SliceOrder
from medmdm.objectives.term import Restored, Term

__all__ = [
    "Adversarial", "DenseContrast", "ImageContrast", "L1Loss", "MSELoss", "Objective", "PaperSSIMLoss", "Perceptual",
    "ReconstructionLoss", "Restored", "SSIMLoss", "SelfDistillation", "SliceOrder", "SlicePosition", "Spectral", "Term",
    "WeightedSumLoss", "with_visible",
]  # fmt: skip
