"""The filters of scikit-image as a backbone: what users would take where nothing is pre-trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medmdm.backbones.layers import BlockNetwork
from medmdm.components import buildable, declared
from medmdm.errors import UserError


@buildable
class FilterBank(BlockNetwork):
    """Features of ``skimage.feature.multiscale_basic_features``: intensity, edges and texture at several scales.

    Trainable segmentation as ilastik and Weka made it known. It has one block, number 0, at full resolution, and no
    parameters; timesteps are not looked at. Each channel of the image gives at each scale, powers of 2 of the smallest,
    the image smoothed by a Gaussian, its Sobel edges and the eigenvalues of its Hessian, the largest first. Read it
    with ``masking="none"``, for hidden patches are hidden from it.

    Args:
        in_channels: channels of the image.
        spatial_dims: 2 for images, 3 for volumes.
        sigma_min: standard deviation in pixels of the smallest Gaussian.
        sigma_max: of the largest.

    Raises:
        UserError: a number is out of range.

    Example:
        >>> [f.shape for f in FilterBank().features(torch.zeros(1, 3, 5, 7), torch.tensor([0]), [0])]
        [torch.Size([1, 72, 5, 7])]
    """

    restores = False
    sigmas: Tensor

    def __init__(
        self, in_channels: int = 3, spatial_dims: int = 2, sigma_min: float = 0.5, sigma_max: float = 16.0
    ) -> None:
        super().__init__(declared(locals()))
        if in_channels < 1:
            raise UserError(f"FilterBank: in_channels is {in_channels!r}, expected 1 or more.")
        if spatial_dims not in (2, 3):
            raise UserError(f"FilterBank: spatial_dims is {spatial_dims!r}, expected 2 or 3.")
        if not 0 < sigma_min <= sigma_max:
            given = f"sigma_min is {sigma_min} and sigma_max {sigma_max}"
            raise UserError(f"FilterBank: {given}, expected numbers above 0 (pixels), the smaller one first.")
        smallest, largest = np.log2(sigma_min), np.log2(sigma_max)
        sigmas = np.logspace(smallest, largest, int(largest - smallest + 1), base=2)
        self.add_block(in_channels * len(sigmas) * (2 + spatial_dims), reduction=1)
        # In the state dict, so that what is keyed by the weights tells one set of scales from another.
        self.register_buffer("sigmas", torch.from_numpy(sigmas).float())

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x``, ``[B, in_channels, *spatial]``: nothing is restored."""
        return x

    def features(self, x: Tensor, timesteps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the filtered images, computed by the processor, for each of ``blocks`` (all 0)."""
        from skimage.feature import multiscale_basic_features  # slow to import

        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise UserError("FilterBank's features are scikit-image's, which cannot be exported: use another backbone.")
        self.check_blocks(blocks)
        self.check_inputs(x, timesteps)
        if min(x.shape[2:]) < 2:
            raise UserError(f"FilterBank: x has the shape {tuple(x.shape)}, expected 2 pixels or more along each axis.")
        scales = {name: self._config[name] for name in ("sigma_min", "sigma_max")} | {"num_sigma": len(self.sigmas)}
        images = x.detach().float().cpu().numpy()
        found = [
            multiscale_basic_features(image, **scales, workers=torch.get_num_threads(), channel_axis=0)
            for image in images
        ]
        return [torch.from_numpy(np.moveaxis(np.stack(found), -1, 1)).to(x)] * len(blocks)
