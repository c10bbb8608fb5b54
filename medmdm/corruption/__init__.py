"""q(x_t | x_0): how an image is damaged at timestep t, and how t is drawn. One class an equation.

Every corruption is called as ``corrupt(x0, t, generator)`` and returns a :class:`Corrupted`. Fixing t turns masked
diffusion into a masked autoencoder and Gaussian diffusion into a denoising autoencoder (method of Pan, Chen and Shi,
"Masked Diffusion as Self-supervised Representation Learner", arXiv 2308.05695).
"""

from __future__ import annotations

from medmdm.corruption.base import Corrupted, Corruption, FixedTimesteps, Generators, UniformTimesteps
from medmdm.corruption.compose import Compose, RandomChoice
from medmdm.corruption.filters import Blur, Downsample, FrequencyMasking
from medmdm.corruption.masking import AdaptiveMasking, BlockMasking, ContentMasking, PatchMasking, TubeMasking
from medmdm.corruption.noise import GaussianNoise, MaskedNoise
from medmdm.corruption.regions import RegionMasking
from medmdm.corruption.spatial import PatchRotation, PatchShift, PatchShuffle
from medmdm.corruption.stain import StainMasking

__all__ = [
    "AdaptiveMasking", "BlockMasking", "Blur", "Compose", "ContentMasking", "Corrupted", "Corruption", "Downsample",
    "FixedTimesteps", "FrequencyMasking", "GaussianNoise", "Generators", "MaskedNoise", "PatchMasking", "PatchRotation",
    "PatchShift", "PatchShuffle", "RandomChoice", "RegionMasking", "StainMasking", "TubeMasking", "UniformTimesteps",
]  # fmt: skip
