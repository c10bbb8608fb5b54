"""What a network learns: how images are corrupted, what it is to predict from them, and how that is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmdm.corruption import Corruption, Generators
from medmdm.errors import UserError, nearest
from medmdm.objectives.losses import with_visible


@dataclass(frozen=True)
class Objective:
    """The objective of masked diffusion (arXiv 2308.05695, section 3) and of its relatives.

    Args:
        corruption: ``corrupt(x0, t, generators)``.
        timesteps: called as ``timesteps(batch_size, generators, device)``.
        loss_function: any that :func:`medmdm.objectives.losses.with_visible` takes; called in float32 outside autocast.
        target: what the network predicts: ``"image"`` (x_0) or, for corruptions that add some, ``"noise"`` (e).

    Raises:
        UserError: ``target`` is neither, or is the noise of a corruption that adds none.
    """

    corruption: Corruption
    timesteps: Callable[..., Tensor]
    loss_function: Callable[..., Tensor]
    target: str = "image"

    def __post_init__(self) -> None:
        kinds = ("image", "noise")
        if self.target not in kinds:
            raise UserError(f"target must be 'image' or 'noise', got {self.target!r}{nearest(self.target, kinds)}.")
        if self.target == "noise" and not self.corruption.has_noise:
            name = type(self.corruption).__name__
            raise UserError(f"target 'noise' needs a corruption that adds noise; {name} adds none.")

    def to(self, device: torch.device) -> Objective:
        """Move what the loss holds to a device."""
        if isinstance(self.loss_function, nn.Module):
            self.loss_function.to(device)
        return self

    def pose(self, images: Tensor, generators: Generators) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Corrupt a batch.

        Args:
            images: ``[B, C, *spatial]`` in [-1, 1].
            generators: one for each image.

        Returns:
            The corrupted images x_t, t ``[B]``, what the network is to predict, and the visible pixels
            ``[B, 1, *spatial]``.
        """
        t = self.timesteps(len(images), generators, images.device)
        corrupted = self.corruption(images, t, generators)
        target = images if self.target == "image" else corrupted.noise
        assert target is not None  # a corruption with noise
        return corrupted.x_t, t, target, corrupted.visible

    def loss(self, pred: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        """Judge a prediction; channels beyond the target's (a learnt sigma) are not part of the objective."""
        return with_visible(self.loss_function)(pred.float()[:, : target.shape[1]], target, visible)

    def restored(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean image that a prediction implies, in float32.

        For ``target="noise"`` that is ``(x_t - b e) / a`` with the corruption's rates a and b, in DDPM
        ``sqrt(a_t)`` and ``sqrt(1 - a_t)`` (Ho et al. 2020, eq. 15); where a mask has hidden the image as well it holds
        on the visible pixels only.

        Args:
            pred: the network's output, ``[B, C, *spatial]`` or with a learnt sigma's channels behind.
            x_t: what it was given, ``[B, C, *spatial]``.
            t: ``[B]`` timesteps.
        """
        pred = pred.float()[:, : x_t.shape[1]]
        if self.target == "image":
            return pred
        signal, noise = self.corruption.rates(t, x_t)
        return (x_t - noise * pred) / signal
