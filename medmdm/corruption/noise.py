"""Corruption by Gaussian noise, alone and on what a mask leaves visible."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw
from medmdm.corruption.masking import PatchMasking
from medmdm.errors import UserError, nearest

_MONAI_NAMES = {"linear": "linear_beta"}


@buildable
@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """The corruption of DDPM: ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e`` with e ~ N(0, 1) (Ho et al. 2020, eq. 4).

    Args:
        num_timesteps: T.
        schedule: ``"linear"`` (betas from 1e-4 to 0.02 at T = 1000) or ``"cosine"`` (Nichol and Dhariwal 2021), or
            any other name in ``monai.networks.schedulers.NoiseSchedules``.
    """

    schedule: str = "linear"

    has_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.alphas_cumprod  # noqa: B018 an unknown schedule is found now
        except (KeyError, ValueError) as error:
            near = nearest(self.schedule, ["linear", "cosine"])
            raise UserError(f"schedule must be 'linear' or 'cosine', got {self.schedule!r}{near}.") from error

    @functools.cached_property
    def alphas_cumprod(self) -> Tensor:
        """``a_t`` for t = 0 ... T-1."""
        name = _MONAI_NAMES.get(self.schedule, self.schedule)
        return DDPMScheduler(self.num_timesteps, schedule=name).alphas_cumprod

    def rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(like)[t].reshape(-1, *[1] * (like.ndim - 1))
        return a.sqrt(), (1 - a).sqrt()

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        noise = _gaussian(x0, generator)
        scale, rate = self.rates(t, x0)
        offset = rate * noise
        return Corrupted(scale * x0 + offset, torch.ones_like(x0[:, :1]), noise, scale, offset)


@buildable
@dataclass(frozen=True)
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

    patch_size: int | Sequence[int] = 8
    schedule: str = "linear"
    noise_rate: float = 0.25

    has_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_rate <= 1:
            raise UserError(f"noise_rate must lie in [0, 1], got {self.noise_rate}.")
        self.masking, self.noising  # noqa: B018 their arguments are checked now

    @functools.cached_property
    def masking(self) -> PatchMasking:
        """What hides."""
        return PatchMasking(self.num_timesteps, self.patch_size)

    @functools.cached_property
    def noising(self) -> GaussianNoise:
        """What adds noise."""
        return GaussianNoise(self.num_timesteps, self.schedule)

    def rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.noising.rates((t * self.noise_rate).long(), like)

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        noise = _gaussian(x0, generator)
        visible = self.masking.visible(x0, t, generator)
        scale, rate = self.rates(t, x0)
        offset = rate * noise
        return Corrupted((scale * x0 + offset) * visible, visible, noise, scale * visible, offset * visible)


def _gaussian(x0: Tensor, generator: Generators) -> Tensor:
    return draw(torch.randn, x0.shape, generator, x0.device).to(x0.dtype)
