"""What every corruption is called with and returns, how it draws its random numbers, and how t is drawn."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medmdm.components import buildable
from medmdm.errors import UserError

# One generator for the batch or, as in diffusers, one for each image: then an image's damage does not depend on
# which batch, micro-batch or process it travels in.
Generators = torch.Generator | Sequence[torch.Generator] | None


def per_image(generator: Generators, chosen: Sequence[int]) -> Generators:
    """Return the generators of the ``chosen`` images of a batch."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[index] for index in chosen]


def draw(sample: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Draw ``sample(shape)`` (``torch.rand``, ``torch.randn``, ...) on ``device`` from one or from many generators.

    Args:
        sample: a torch function that takes ``(size, generator=, device=)``.
        shape: shape of the result; the first axis counts images.
        generator: None (torch's global state), one generator, or a sequence of ``shape[0]`` generators. Draws happen
            on the generator's own device, so that a CPU generator gives the same damage on a GPU.
        device: where the result goes.
    """
    if generator is None or isinstance(generator, torch.Generator):
        where = device if generator is None else generator.device
        return sample(tuple(shape), generator=generator, device=where).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators were given for {shape[0]} images; give one for each.")
    return torch.stack([sample(tuple(shape[1:]), generator=g, device=g.device) for g in generator]).to(device)


@dataclass(frozen=True)
class Corrupted:
    """A damaged batch; unpacks as ``x_t, visible = corrupt(x0, t)``.

    An affine corruption, which all masks and noises are, also says how it acted: ``x_t = scale * x0 + offset``, pixel
    by pixel, so that the same can be done to other images. A spatial one says where each pixel came from; a filter
    (blur, bands, stain) says neither.

    Args:
        x_t: the damaged images, ``[B, C, *spatial]``.
        visible: ``[B, 1, *spatial]`` in {0, 1}: 0 where the image was hidden (all ones for pure noise).
        noise: the Gaussian noise that was added, shaped as ``x_t``, or None where there is none.
        scale: broadcasts to ``x_t``; None for a corruption that is not affine.
        offset: shaped as ``x_t``, or None for nothing.
        source: ``[B, *spatial]`` integers: the flat index, over the spatial axes, of the pixel of x_0 that a pixel of
            ``x_t`` shows; None for a corruption that moves nothing.
    """

    x_t: Tensor
    visible: Tensor
    noise: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    source: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x_t, self.visible))


@dataclass(frozen=True)
class Corruption(ABC):
    """Base of all corruptions: checks the input and fixes the number of timesteps T.

    Subclasses are frozen dataclasses too: their fields are what :func:`medmdm.components.to_config` writes.

    Args:
        num_timesteps: T, at least 1.
    """

    num_timesteps: int = 1000

    has_noise: ClassVar[bool] = False  # whether Corrupted.noise is there to be predicted
    takes: ClassVar[tuple[str, ...]] = ()  # names of what it can be given about the images: maps [B, 1, *spatial]

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise UserError(f"num_timesteps must be at least 1, got {self.num_timesteps}.")

    def __call__(self, x0: Tensor, t: Tensor, generator: Generators = None, **given: Tensor) -> Corrupted:
        """Damage ``x0``.

        Args:
            x0: clean images, ``[B, C, *spatial]`` with 2 or 3 spatial axes, in [-1, 1].
            t: ``[B]`` integers in {0, ..., T-1}, one per image.
            generator: None, one ``torch.Generator``, or one for each image.
            **given: what is known of the images, under the names in :attr:`takes`: maps that broadcast to
                ``[B, 1, *spatial]``.

        Raises:
            ValueError: on another number of axes, a ``t`` of another length, kind or range, a map of another name or
                shape.
            UserError: on a size that the corruption cannot cut into patches.
        """
        if x0.ndim not in (4, 5):
            raise ValueError(f"x0 must be [B, C, H, W] or [B, C, D, H, W], got shape {tuple(x0.shape)}.")
        if t.shape != x0.shape[:1] or t.is_floating_point():
            raise ValueError(f"t must hold one integer for each of {len(x0)} images, got {t.dtype} {tuple(t.shape)}.")
        if t.numel() and not (int(t.min()) >= 0 and int(t.max()) < self.num_timesteps):
            raise ValueError(f"t must lie in 0...{self.num_timesteps - 1}, got {int(t.min())}...{int(t.max())}.")
        for name, values in given.items():
            if name not in self.takes:
                raise ValueError(f"{type(self).__name__} takes {list(self.takes)} of an image, not {name!r}.")
            whole = (len(x0), 1, *x0.shape[2:])
            fits = values.ndim == len(whole) and all(n in (1, m) for n, m in zip(values.shape, whole, strict=True))
            if not fits or len(values) != len(x0):
                raise ValueError(f"{name} must broadcast to {whole}, got {tuple(values.shape)}.")
        return self._corrupt(x0, t.to(x0.device), generator, **given)

    def rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return by what visible pixels of the image and the noise are multiplied, each ``[B, 1, ...]``.

        With noise e, ``x_t = a x0 + b e`` there, at timesteps t ``[B]``; ``like`` has the axes, type and device of the
        images. A corruption that adds no noise refuses.
        """
        raise UserError(f"{type(self).__name__} adds no noise.")

    @property
    def multiple(self) -> int:
        """What each side of an image may be a multiple of, so that it can be damaged: of the edges of patches."""
        edges = getattr(self, "patch_size", None) or 1
        return math.lcm(*([edges] if isinstance(edges, int) else edges))

    def blank(self, x0: Tensor) -> dict[str, Tensor]:
        """Return what has to be given of images ``[B, C, *spatial]`` of which nothing is known: maps of one value."""
        return {"content": torch.zeros_like(x0[:, :1])} if "content" in self.takes else {}

    @abstractmethod
    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        """The equation."""


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
        integers = functools.partial(torch.randint, self.num_timesteps)
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


def usual_timestep(timesteps: object, num_timesteps: int, share: float = 50 / 1000) -> int:
    """Return the t to read features at: the fixed one of an autoencoder, else a share of T (the paper's is 50 of 1000).

    Args:
        timesteps: how a pre-training draws t.
        num_timesteps: T.
        share: of T, in [0, 1).
    """
    return timesteps.timestep if isinstance(timesteps, FixedTimesteps) else round(share * num_timesteps)
