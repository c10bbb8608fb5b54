"""What a network predicts, and the image that follows from it."""

from __future__ import annotations

from torch import Tensor

from medmdm.corruption import Corruption
from medmdm.errors import UserError, nearest

__all__ = ["check_target", "restored"]


def check_target(target: str, corruption: Corruption) -> None:
    """Refuse a prediction target that there is not.

    Args:
        target: ``"image"`` (x_0) or ``"noise"`` (e).
        corruption: what damages the images.

    Raises:
        UserError: if ``target`` is neither, or is the noise of a corruption that adds none.
    """
    if target not in ("image", "noise"):
        raise UserError(f"target must be 'image' or 'noise', got {target!r}{nearest(target, ['image', 'noise'])}.")
    if target == "noise" and not corruption.has_noise:
        raise UserError(f"target 'noise' needs a corruption that adds noise; {type(corruption).__name__} adds none.")


def restored(pred: Tensor, x_t: Tensor, t: Tensor, target: str, corruption: Corruption) -> Tensor:
    """Return the clean image that a prediction implies.

    For ``target="noise"`` that is ``(x_t - b e) / a`` with the corruption's rates a and b, in DDPM
    ``sqrt(a_t)`` and ``sqrt(1 - a_t)`` (Ho et al. 2020, eq. 15); where a mask has hidden the image as well it holds on
    the visible pixels only.

    Args:
        pred: the network's output, ``[B, C, *spatial]``.
        x_t: what it was given, ``[B, C, *spatial]``.
        t: ``[B]`` timesteps.
        target: what the network predicts.
        corruption: what damaged the images.
    """
    if target == "image":
        return pred
    signal, noise = corruption.rates(t, x_t)
    return (x_t - noise * pred) / signal
