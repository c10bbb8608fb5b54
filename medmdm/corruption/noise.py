"""Corruption by Gaussian noise, alone and on what a mask leaves visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.corruption.masking import PatchMasking
from medmdm.errors import UserError, nearest

__all__ = ["GaussianNoise", "MaskedNoise"]


class GaussianNoise(Corruption):
    """The corruption of DDPM: ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e`` with e ~ N(0, 1) (Ho et al. 2020, eq. 4).

    Args:
        num_timesteps: T.
        schedule: ``"linear"`` (betas from 1e-4 to 0.02 at T = 1000) or ``"cosine"`` (Nichol and Dhariwal 2021), or
            any other name in ``monai.networks.schedulers.NoiseSchedules``.
    """

    has_noise = True
    _monai_names = {"linear": "linear_beta"}  # noqa: RUF012

    def __init__(self, num_timesteps: int = 1000, schedule: str = "linear") -> None:
        super().__init__(num_timesteps)
        self.schedule = schedule
        try:
            self._scheduler = DDPMScheduler(num_timesteps, schedule=self._monai_names.get(schedule, schedule))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"schedule must be 'linear' or 'cosine', got {schedule!r}{nearest(schedule, ['linear', 'cosine'])}."
            ) from error

    @property
    def alphas_cumprod(self) -> Tensor:
        """``a_t`` for t = 0 ... T-1."""
        return self._scheduler.alphas_cumprod

    def add_noise(self, x0: Tensor, t: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
        """Return ``(x_t, e)``."""
        noise = draw(torch.randn, x0.shape, generator, x0.device).to(x0.dtype)
        return self._scheduler.add_noise(x0, noise, t), noise

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        x_t, noise = self.add_noise(x0, t, generator)
        return Corrupted(x_t, torch.ones_like(x0[:, :1]), noise)

    def to_config(self) -> dict[str, Any]:
        return {
            "_target_": "medmdm.corruption.GaussianNoise",
            "num_timesteps": self.num_timesteps,
            "schedule": self.schedule,
        }


class MaskedNoise(Corruption):
    """Masking and noise together: noise at timestep ``floor(noise_rate * t)``, then :class:`PatchMasking` at t.

    Not in the paper. With ``noise_rate`` 0 only the noise of timestep 0 is left (standard deviation 0.01), with 1 the
    visible patches carry the whole noise of DDPM.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
        schedule: as in :class:`GaussianNoise`.
        noise_rate: how far the noise's timestep follows the mask's, in [0, 1].
    """

    has_noise = True

    def __init__(
        self,
        num_timesteps: int = 1000,
        patch_size: int | Sequence[int] = 8,
        schedule: str = "linear",
        noise_rate: float = 0.25,
    ) -> None:
        super().__init__(num_timesteps)
        if not 0 <= noise_rate <= 1:
            raise UserError(f"noise_rate must lie in [0, 1], got {noise_rate}.")
        self.masking = PatchMasking(num_timesteps, patch_size)
        self.noising = GaussianNoise(num_timesteps, schedule)
        self.noise_rate = noise_rate

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        x_t, noise = self.noising.add_noise(x0, (t * self.noise_rate).long(), generator)
        visible = self.masking.visible(x0, t, generator)
        return Corrupted(x_t * visible, visible, noise)

    def to_config(self) -> dict[str, Any]:
        return {
            **self.masking.to_config(),
            "_target_": "medmdm.corruption.MaskedNoise",
            "schedule": self.noising.schedule,
            "noise_rate": self.noise_rate,
        }
