"""q(x_t | x_0): how an image is damaged at timestep t, and how t is drawn. One class an equation.

Every corruption is called as ``corrupt(x0, t, generator)`` and returns a :class:`Corrupted`. Fixing t turns masked
diffusion into a masked autoencoder and Gaussian diffusion into a denoising autoencoder (method of Pan, Chen and Shi,
"Masked Diffusion as Self-supervised Representation Learner", arXiv 2308.05695).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pydoc import locate
from typing import Any

import torch
from monai.networks.schedulers import DDPMScheduler
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medmdm.errors import UserError, nearest

__all__ = [
    "Corrupted",
    "Corruption",
    "FixedTimesteps",
    "GaussianNoise",
    "MaskedNoise",
    "PatchMasking",
    "UniformTimesteps",
    "from_config",
]

# One generator for the batch or, as in diffusers, one for each image: then an image's damage does not depend on
# which batch, micro-batch or process it travels in.
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(
    sample: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device, **kwargs: Any
) -> Tensor:
    """Draw ``sample(shape)`` (``torch.rand``, ``torch.randn``, ...) on ``device`` from one or from many generators.

    Args:
        sample: a torch function that takes ``(size, generator=, device=, **kwargs)``.
        shape: shape of the result; the first axis counts images.
        generator: None (torch's global state), one generator, or a sequence of ``shape[0]`` generators. Draws happen
            on the generator's own device, so that a CPU generator gives the same damage on a GPU.
        device: where the result goes.
    """
    if generator is None or isinstance(generator, torch.Generator):
        where = device if generator is None else generator.device
        return sample(tuple(shape), generator=generator, device=where, **kwargs).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators were given for {shape[0]} images; give one for each.")
    drawn = [sample(tuple(shape[1:]), generator=g, device=g.device, **kwargs) for g in generator]
    return torch.stack(drawn).to(device)


@dataclass(frozen=True)
class Corrupted:
    """A damaged batch; unpacks as ``x_t, visible = corrupt(x0, t)``.

    Args:
        x_t: the damaged images, ``[B, C, *spatial]``.
        visible: ``[B, 1, *spatial]`` in {0, 1}: 0 where the image was hidden (all ones for pure noise).
        noise: the Gaussian noise that was added, shaped as ``x_t``, or None where there is none.
    """

    x_t: Tensor
    visible: Tensor
    noise: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x_t, self.visible))


class Corruption(ABC):
    """Base of all corruptions: checks the input and fixes the number of timesteps T.

    Args:
        num_timesteps: T, at least 1.
    """

    has_noise = False  # whether Corrupted.noise is there to be predicted

    def __init__(self, num_timesteps: int = 1000) -> None:
        if num_timesteps < 1:
            raise UserError(f"num_timesteps must be at least 1, got {num_timesteps}.")
        self.num_timesteps = num_timesteps

    def __call__(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Corrupted:
        """Damage ``x0``.

        Args:
            x0: clean images, ``[B, C, *spatial]`` with 2 or 3 spatial axes, in [-1, 1].
            t: ``[B]`` integers in {0, ..., T-1}, one an image.
            generator: None, one ``torch.Generator``, or one for each image.

        Raises:
            ValueError: on another number of axes, a ``t`` of another length, kind or range, or a size that the
                corruption cannot cut into patches.
        """
        if x0.ndim not in (4, 5):
            raise ValueError(f"x0 must be [B, C, H, W] or [B, C, D, H, W], got shape {tuple(x0.shape)}.")
        if t.shape != x0.shape[:1] or t.is_floating_point():
            raise ValueError(
                f"t must hold one integer for each of {x0.shape[0]} images, got {t.dtype} {tuple(t.shape)}."
            )
        if t.numel() and not (int(t.min()) >= 0 and int(t.max()) < self.num_timesteps):
            raise ValueError(f"t must lie in 0...{self.num_timesteps - 1}, got {int(t.min())}...{int(t.max())}.")
        return self._corrupt(x0, t.to(x0.device), generator)

    @abstractmethod
    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        """The equation."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The corruption as a JSON-able ``{"_target_": ..., arguments}``, for the plan in a weights file."""


class PatchMasking(Corruption):
    """Masked diffusion: hide whole patches, ever more of them as t grows (arXiv 2308.05695, section 3).

    The image is cut into L patches; ``floor(L * (1 - t/T))`` of them, drawn uniformly without replacement and
    independently for each image, stay visible. The others are set to 0 (mid-grey) in all channels.

    Args:
        num_timesteps: T.
        patch_size: edge of a patch in pixels, one number or one for each spatial axis.
    """

    def __init__(self, num_timesteps: int = 1000, patch_size: int | Sequence[int] = 8) -> None:
        super().__init__(num_timesteps)
        self.patch_size = patch_size
        if min(ensure_tuple_rep(patch_size, 1) if isinstance(patch_size, int) else patch_size) < 1:
            raise UserError(f"patch_size must be at least 1, got {patch_size}.")

    def visible(self, x0: Tensor, t: Tensor, generator: Generators) -> Tensor:
        """Draw which pixels stay, as ``[B, 1, *spatial]`` of x0's type."""
        spatial = x0.shape[2:]
        patch = ensure_tuple_rep(self.patch_size, len(spatial))
        if any(size % edge for size, edge in zip(spatial, patch, strict=True)):
            raise UserError(
                f"An image of {tuple(spatial)} pixels cannot be cut into patches of {patch}: "
                "choose a crop size that patch_size divides."
            )
        grid = [size // edge for size, edge in zip(spatial, patch, strict=True)]
        count = math.prod(grid)
        # In integers, floor(L (1 - t/T)) does not suffer from 1 - t/T being rounded.
        keep = count * (self.num_timesteps - t) // self.num_timesteps
        scores = draw(torch.rand, (x0.shape[0], count), generator, x0.device)
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        visible = (rank < keep[:, None]).to(x0.dtype).reshape(-1, 1, *grid)
        for axis, edge in enumerate(patch, start=2):
            visible = visible.repeat_interleave(edge, dim=axis)
        return visible

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators) -> Corrupted:
        visible = self.visible(x0, t, generator)
        return Corrupted(x0 * visible, visible)

    def to_config(self) -> dict[str, Any]:
        patch_size = self.patch_size if isinstance(self.patch_size, int) else list(self.patch_size)
        return {
            "_target_": "medmdm.corruption.PatchMasking",
            "num_timesteps": self.num_timesteps,
            "patch_size": patch_size,
        }


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


class UniformTimesteps:
    """t drawn uniformly from {0, ..., T-1}: diffusion.

    Args:
        num_timesteps: T.
    """

    def __init__(self, num_timesteps: int = 1000) -> None:
        self.num_timesteps = num_timesteps

    def __call__(self, batch_size: int, generator: Generators = None, device: str | torch.device = "cpu") -> Tensor:
        """Draw ``[batch_size]`` integers on ``device`` from None, one generator, or one for each image."""

        def integers(shape: tuple[int, ...], **kwargs: Any) -> Tensor:
            return torch.randint(self.num_timesteps, shape, **kwargs)

        return draw(integers, (batch_size,), generator, torch.device(device))

    def to_config(self) -> dict[str, Any]:
        """The draw as a JSON-able ``{"_target_": ..., arguments}``."""
        return {"_target_": "medmdm.corruption.UniformTimesteps", "num_timesteps": self.num_timesteps}


class FixedTimesteps:
    """Always the same t: a masked autoencoder (with masking) or a denoising autoencoder (with noise).

    Args:
        timestep: t, in {0, ..., T-1}.
        num_timesteps: T.
    """

    def __init__(self, timestep: int, num_timesteps: int = 1000) -> None:
        if not 0 <= timestep < num_timesteps:
            raise UserError(f"timestep must lie in 0...{num_timesteps - 1}, got {timestep}.")
        self.timestep = timestep
        self.num_timesteps = num_timesteps

    def __call__(self, batch_size: int, generator: Generators = None, device: str | torch.device = "cpu") -> Tensor:
        """Return ``[batch_size]`` times t on ``device``; the generator is not used."""
        return torch.full((batch_size,), self.timestep, dtype=torch.long, device=device)

    def to_config(self) -> dict[str, Any]:
        """The draw as a JSON-able ``{"_target_": ..., arguments}``."""
        return {
            "_target_": "medmdm.corruption.FixedTimesteps",
            "timestep": self.timestep,
            "num_timesteps": self.num_timesteps,
        }


def from_config(config: Mapping[str, Any], trust: bool = False) -> Any:
    """Rebuild what ``to_config`` of a class of this module described, as the plan in a weights file holds it.

    Args:
        config: ``{"_target_": "medmdm.corruption.<class>", arguments}``.
        trust: also import and call another target; use it for files of your own.

    Returns:
        The :class:`Corruption`, or the draw of timesteps.

    Raises:
        UserError: another target (nothing outside this module is run on the word of a file), or arguments that do not
            fit.

    Example:
        >>> from_config({"_target_": "medmdm.corruption.PatchMasking", "patch_size": 4}).patch_size
        4
    """
    target = config.get("_target_")
    known = {f"{__name__}.{name}": globals()[name] for name in __all__}
    known = {name: c for name, c in known.items() if hasattr(c, "to_config") and not inspect.isabstract(c)}
    found = known.get(str(target))
    if found is None and trust:
        found = locate(str(target))
    if found is None:
        raise UserError(
            f"The corruption {target!r} is none of {', '.join(known)}{nearest(str(target), known)}; pass trust=True "
            "if it is one of your own."
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"The corruption {target!r} cannot be built: {error}.") from error
