"""What a network learns: how images are corrupted, what it is to predict from them, and how that is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmdm.corruption import Corruption, Generators, PatchMasking
from medmdm.errors import UserError, nearest
from medmdm.objectives.losses import with_visible
from medmdm.objectives.term import Restored, Term

TARGETS = ("image", "noise", "image and noise")
_OTHERS = "choose RegionMasking ('regions') or ContentMasking with content 'map' ('content'), or leave label_as null"


@dataclass(frozen=True)
class Objective:
    """The objective of masked diffusion (arXiv 2308.05695, section 3) and of its relatives.

    Args:
        corruption: ``corrupt(x0, t, generators)``.
        timesteps: called as ``timesteps(batch_size, generators, device)``.
        loss_function: any that :func:`medmdm.objectives.losses.with_visible` takes; called in float32 outside autocast.
        target: what the network predicts: ``"image"`` (x_0) or, for corruptions that add some, ``"noise"`` (e), or
            ``"image and noise"``: the network then has twice the channels, and the mean square error of the noise
            on the visible pixels, times ``noise_weight``, is added to the loss of the image.
        terms: what else is learnt, see :class:`medmdm.objectives.Term`.
        noise_weight: of the noise beside the image, at least 0.
        label_as: name under which the corruption is given the labels of images; None where it is given none.

    Raises:
        UserError: ``target`` is none of these, or has the noise of a corruption that adds none, or the corruption does
            not take ``label_as``.
    """

    corruption: Corruption
    timesteps: Callable[..., Tensor]
    loss_function: Callable[..., Tensor]
    target: str = "image"
    terms: Sequence[Term] = ()
    noise_weight: float = 1.0
    label_as: str | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(
                f"target must be one of {list(TARGETS)}, got {self.target!r}{nearest(self.target, TARGETS)}."
            )
        if self.target != "image" and not self.corruption.has_noise:
            name = type(self.corruption).__name__
            raise UserError(f"target {self.target!r} needs a corruption that adds noise; {name} adds none.")
        if self.noise_weight < 0:
            raise UserError(f"noise_weight must be at least 0, got {self.noise_weight}.")
        if self.label_as is not None and self.label_as not in self.corruption.takes:
            what = f"{type(self.corruption).__name__} takes no {self.label_as} of an image"
            raise UserError(f"label_as is {self.label_as!r}, but {what}: {_OTHERS}.")

    def to(self, device: torch.device) -> Objective:
        """Move what the loss holds to a device."""
        if isinstance(self.loss_function, nn.Module):
            self.loss_function.to(device)
        for term in self.terms:
            term.to(device)
        return self

    @property
    def blocks(self) -> list[int]:
        """The decoder blocks that the terms read."""
        return sorted({block for term in self.terms for block in term.blocks})

    def added(self, seen: Restored) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the terms, and of what they learn for themselves."""
        value, own = (torch.zeros((), device=seen.images.device) for _ in range(2))
        for term in self.terms:
            if strength := term.strength(seen.progress):
                value = value + strength * term(seen)
            if (loss := term.own_loss(seen)) is not None:
                own = own + loss
        return value, own

    def pose(self, images: Tensor, generators: Generators, **given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Corrupt a batch ``[B, C, *spatial]`` in [-1, 1], with one generator for each image.

        ``given`` is what the corruption takes of the images. Returns the corrupted images x_t, t ``[B]``, what the
        network is to predict, and the visible pixels ``[B, 1, *spatial]``.
        """
        t = self.timesteps(len(images), generators, images.device)
        corrupted = self.corruption(images, t, generators, **given)
        target = images
        if self.target != "image":
            assert corrupted.noise is not None  # a corruption with noise
            target = corrupted.noise if self.target == "noise" else torch.cat([images, corrupted.noise], dim=1)
        return corrupted.x_t, t, target, corrupted.visible

    def loss(self, pred: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        """Judge a prediction; channels beyond the target's (a learnt sigma) are not part of the objective."""
        pred = pred.float()
        if self.target != "image and noise":
            return with_visible(self.loss_function)(pred[:, : target.shape[1]], target, visible)
        channels = target.shape[1] // 2
        if pred.shape[1] < 2 * channels:
            advice = f"set network_def#out_channels to {2 * channels}"
            raise UserError(f"target 'image and noise' needs {2 * channels} channels of output: {advice}.")
        image = with_visible(self.loss_function)(pred[:, :channels], target[:, :channels], visible)
        error = (pred[:, channels : 2 * channels] - target[:, channels:]).square().mean(1, keepdim=True) * visible
        noise = (error.flatten(1).sum(1) / visible.flatten(1).sum(1).clamp_min(1)).mean()
        return image + self.noise_weight * noise

    def restored(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean image that a prediction implies, in float32.

        For ``target="noise"`` that is ``(x_t - b e) / a`` with the corruption's rates a and b, in DDPM ``sqrt(a_t)``
        and ``sqrt(1 - a_t)`` (Ho et al. 2020, eq. 15); it holds on the visible pixels only.

        Args:
            pred: the network's output for ``x_t``, ``[B, C, *spatial]`` or with a learnt sigma's channels behind.
            x_t: what it was given, ``[B, C, *spatial]``.
            t: ``[B]`` timesteps.
        """
        pred = pred.float()[:, : x_t.shape[1]]
        if self.target != "noise":
            return pred
        signal, noise = self.corruption.rates(t, x_t)
        return (x_t - noise * pred) / signal

    def hardness(self, images: Tensor, restore: Callable[[Tensor, Tensor], Tensor], generators: Generators) -> Tensor:
        """Return how badly each pixel is restored while it is hidden, ``[B, 1, *spatial]``: the mean absolute error.

        Half of the patches of a masking are hidden, drawn for each image, and then the other half.
        """
        masking = _adaptive(self.corruption)
        assert masking is not None
        half = torch.full((len(images),), masking.num_timesteps // 2, device=images.device)
        first = PatchMasking(masking.num_timesteps, masking.patch_size).visible(images, half, generators)
        error = torch.zeros_like(images[:, :1])
        for visible in (first, 1 - first):
            restored = restore(images * visible, half)
            error = error + (restored - images).abs().mean(1, keepdim=True) * (1 - visible)
        return error


def _adaptive(corruption: Corruption) -> PatchMasking | None:
    """Return the masking that asks for errors, which may be a part of several corruptions."""
    if isinstance(corruption, PatchMasking):
        return corruption if "error" in corruption.takes else None
    parts = [_adaptive(one) for one in getattr(corruption, "corruptions", ())]
    return next((part for part in parts if part is not None), None)
