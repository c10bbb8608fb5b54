"""How a restored image is compared with the clean one. One class an equation.

All reconstruction losses are called as ``loss(pred, target, visible=None)`` and compute in float32 outside autocast:
under bfloat16 the variances inside SSIM lose most of their digits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.components import declared
from medmdm.errors import UserError


def with_visible(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that is called as ``loss(pred, target, visible)``, whether it reads ``visible`` or not.

    Args:
        loss: one of this module, or another (torch's, MONAI's, one's own), which gets ``visible`` if its call has an
            argument of that name.
    """
    called = loss.forward if isinstance(loss, nn.Module) else loss
    if "visible" in inspect.signature(called).parameters:
        return loss
    return lambda pred, target, visible=None: loss(pred, target)


class ReconstructionLoss(nn.Module):
    """Base: an error map averaged over the whole image, over its hidden part, or over a mix of both.

    For each image the mean of the map is weighted by 1 on hidden pixels and ``visible_weight`` on visible ones; the
    images' means are then averaged. Each image counts the same, so the value does not depend on how a batch is split
    over micro-batches or processes. An image without any weight (nothing hidden, ``visible_weight`` 0) counts 0.

    Args:
        visible_weight: 1 for the whole image (the paper), 0 for the hidden part only, between for a mix; in [0, 1].
    """

    config: dict[str, Any]

    def __init__(self, visible_weight: float = 1.0) -> None:
        super().__init__()
        self.config = declared(locals())
        if not 0 <= visible_weight <= 1:
            raise UserError(f"visible_weight must lie in [0, 1], got {visible_weight}.")
        self.visible_weight = visible_weight

    def error_map(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the error of each pixel, ``[B, C, *spatial]`` (or a centred part of it, where a window needs room)."""
        raise NotImplementedError(f"{type(self).__name__} does not define error_map.")

    def forward(self, pred: Tensor, target: Tensor, visible: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            pred: restored images, ``[B, C, *spatial]``.
            target: clean images (or noise), of the same shape.
            visible: ``[B, 1, *spatial]`` in {0, 1}; needed unless ``visible_weight`` is 1.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: on shapes that differ, or a missing ``visible``.
        """
        if pred.shape != target.shape:
            raise ValueError(f"pred and target must have one shape, got {tuple(pred.shape)} and {tuple(target.shape)}.")
        with torch.autocast(pred.device.type, enabled=False):
            error = self.error_map(pred.float(), target.float())
            if self.visible_weight == 1:
                return error.mean()
            if visible is None:
                raise ValueError(f"{type(self).__name__} with visible_weight {self.visible_weight} needs `visible`.")
            visible = centre(visible.float(), error.shape[2:])
            weight = (1 - visible + self.visible_weight * visible).expand_as(error)
            weight, error = weight.flatten(1), error.flatten(1)
            tiny = torch.finfo(torch.float32).tiny
            return ((weight * error).sum(1) / weight.sum(1).clamp_min(tiny)).mean()


def centre(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the central ``size`` out of the last axes of ``image``."""
    for axis, length in enumerate(size, start=image.ndim - len(size)):
        image = image.narrow(axis, (image.shape[axis] - length) // 2, length)
    return image


class PaperSSIMLoss(ReconstructionLoss):
    """SSIM exactly as the paper's program trains it: ``mean(clamp(1 - SSIM, 0, 1) / 2)``.

    Gaussian window, zero padding, per channel, C1 = 0.01**2 and C2 = 0.03**2: the dynamic range is taken as 1 although
    the images span 2, and where local SSIM is negative the clamp kills the gradient. :class:`SSIMLoss` is the
    principled variant.

    Args:
        window_size: edge of the window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        visible_weight: see :class:`ReconstructionLoss`.
    """

    window: Tensor

    def __init__(self, window_size: int = 5, sigma: float = 1.5, visible_weight: float = 1.0) -> None:
        super().__init__(visible_weight)
        self.config = declared(locals())
        if window_size < 1 or window_size % 2 == 0:
            raise UserError(f"window_size must be odd and positive, got {window_size}.")
        offsets = torch.arange(window_size, dtype=torch.float64) - window_size // 2
        window = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("window", (window / window.sum()).float(), persistent=False)
        self.c1, self.c2 = 0.01**2, 0.03**2

    def smooth(self, images: Tensor) -> Tensor:
        """Gaussian-weighted local mean of every channel, one axis at a time, with zero padding."""
        spatial_dims = images.ndim - 2
        conv = {2: F.conv2d, 3: F.conv3d}[spatial_dims]
        shape, n = images.shape, self.window.numel()
        images = images.flatten(0, 1)[:, None]
        for axis in range(spatial_dims):
            extent = [n if a == axis else 1 for a in range(spatial_dims)]
            window = self.window.to(images.device).reshape(1, 1, *extent)
            images = conv(images, window, padding=[length // 2 for length in extent])
        return images.reshape(shape)

    def error_map(self, pred: Tensor, target: Tensor) -> Tensor:
        x, y = target, pred
        stack = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        mu_x, mu_y, xx, yy, xy = self.smooth(stack).chunk(5, dim=1)
        var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
        luminance = (2 * mu_x * mu_y + self.c1) / (mu_x**2 + mu_y**2 + self.c1)
        contrast = (2 * cov + self.c2) / (var_x + var_y + self.c2)
        return torch.clamp(1 - luminance * contrast, 0, 1) / 2


class SSIMLoss(ReconstructionLoss):
    """``1 - SSIM`` by MONAI, with the data range that the intensities really have (Wang et al. 2004).

    Without padding: the map is smaller than the image by ``window_size - 1`` pixels per axis.

    Args:
        data_range: span of the intensities; images in [-1, 1] span 2.
        window_size: edge of the Gaussian window in pixels.
        sigma: standard deviation of the window in pixels.
        visible_weight: see :class:`ReconstructionLoss`.
    """

    def __init__(
        self, data_range: float = 2.0, window_size: int = 11, sigma: float = 1.5, visible_weight: float = 1.0
    ) -> None:
        super().__init__(visible_weight)
        self.config = declared(locals())
        self.data_range, self.window_size, self.sigma = data_range, window_size, sigma

    def error_map(self, pred: Tensor, target: Tensor) -> Tensor:
        spatial, size = tuple(pred.shape[2:]), self.window_size
        if min(spatial) < size:
            raise UserError(f"SSIM with a window of {size} pixels needs larger crops than {spatial}.")
        n = len(spatial)
        ssim, _ = compute_ssim_and_cs(pred, target, n, [size] * n, [self.sigma] * n, data_range=self.data_range)
        return 1 - ssim


class MSELoss(ReconstructionLoss):
    """Squared error (DDPM's objective, Ho et al. 2020, eq. 14)."""

    def error_map(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(pred, target, reduction="none")


class L1Loss(ReconstructionLoss):
    """Absolute error."""

    def error_map(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(pred, target, reduction="none")


class WeightedSumLoss(nn.Module):
    """A weighted sum of losses, each with its own ``visible_weight``.

    Args:
        losses: the terms; any that :func:`with_visible` takes.
        weights: one factor for each term; default all 1.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.config = declared(locals())
        self.losses = nn.ModuleList(losses)
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(self.weights) != len(losses):
            raise UserError(f"WeightedSumLoss got {len(losses)} losses and {len(self.weights)} weights.")

    def forward(self, pred: Tensor, target: Tensor, visible: Tensor | None = None) -> Tensor:
        """Sum the terms; arguments as in :class:`ReconstructionLoss`."""
        pairs = zip(self.weights, self.losses, strict=True)
        terms = [w * with_visible(loss)(pred, target, visible) for w, loss in pairs]
        return torch.stack(terms).sum()
