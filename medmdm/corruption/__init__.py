"""q(x_t | x_0): how an image is damaged at timestep t, and how t is drawn. One class an equation.

Every corruption is called as ``corrupt(x0, t, generator)`` and returns a :class:`Corrupted`. Fixing t turns masked
diffusion into a masked autoencoder and Gaussian diffusion into a denoising autoencoder (method of Pan, Chen and Shi,
"Masked Diffusion as Self-supervised Representation Learner", arXiv 2308.05695).
"""

from __future__ import annotations

from medmdm.corruption.base import Corrupted, Corruption, FixedTimesteps, Generators, UniformTimesteps
from medmdm.corruption.masking import PatchMasking
from medmdm.corruption.noise import GaussianNoise, MaskedNoise

__all__ = [
    "Corrupted", "Corruption", "FixedTimesteps", "GaussianNoise", "Generators", "MaskedNoise", "PatchMasking",
    "UniformTimesteps",
]  # fmt: skip
