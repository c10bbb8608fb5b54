"""How the timestep t of each image is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Generators, draw
from medmdm.errors import UserError

__all__ = ["FixedTimesteps", "UniformTimesteps"]


@buildable
@dataclass(frozen=True)
class UniformTimesteps:
    """t drawn uniformly from {0, ..., T-1}: diffusion.

    Args:
        num_timesteps: T.
    """

    num_timesteps: int = 1000

    def __call__(self, batch_size: int, generator: Generators = None, device: str | torch.device = "cpu") -> Tensor:
        """Draw ``[batch_size]`` integers on ``device`` from None, one generator, or one for each image."""

        def integers(shape: tuple[int, ...], **kwargs: Any) -> Tensor:
            return torch.randint(self.num_timesteps, shape, **kwargs)

        return draw(integers, (batch_size,), generator, torch.device(device))


@buildable
@dataclass(frozen=True)
class FixedTimesteps:
    """Always the same t: a masked autoencoder (with masking) or a denoising autoencoder (with noise).

    Args:
        timestep: t, in {0, ..., T-1}.
        num_timesteps: T.
    """

    timestep: int
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.timestep < self.num_timesteps:
            raise UserError(f"timestep must lie in 0...{self.num_timesteps - 1}, got {self.timestep}.")

    def __call__(self, batch_size: int, generator: Generators = None, device: str | torch.device = "cpu") -> Tensor:
        """Return ``[batch_size]`` times t on ``device``; the generator is not used."""
        return torch.full((batch_size,), self.timestep, dtype=torch.long, device=device)
