"""The reconstruction error: how badly a pre-trained network restores each part of an image from what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.artifacts.backbone import Backbone, default_timestep, opened
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import cut
from medmdm.components import instantiate
from medmdm.corruption import Corruption, PatchMasking
from medmdm.errors import UserError
from medmdm.objectives.losses import SSIMLoss

# Share of the patches that a mask hides. Less finds odd places a little better and takes more reads of the image: on
# GlaS at a quarter of its resolution, with two small networks and patches put in, the mean area under the ROC curve was
# 0.65 and 0.66 at 0.25 (4 reads), 0.67 and 0.71 at 0.1 (10 reads), 0.70 and 0.72 at 0.05 (20 reads).
_HIDDEN = 0.1


class ReconstructionError(nn.Module):
    """Hide every patch once, restore it from the others, and compare what was restored with what was there.

    Complementary masks hide each patch exactly once. The network restores the image under each of them, and of each
    restored image the hidden patches are kept: together they are an image of which every pixel was restored while it
    could not be seen. The error is ``(1 - SSIM) / 2`` between that image and the true one, averaged over channels, SSIM
    with the usual Gaussian window of 11 x 11 pixels (Wang et al. 2004), of intensities that go from 0 to 2; beyond the
    border images are mirrored. 0 is what the network expected; 0.5 has nothing in common with it.

    High is what the network could not guess: patterns it rarely saw, but also any fine texture; flat areas are low
    whatever they are. Compare with the same structure in other images rather than with a fixed number.

    Args:
        backbone: a weights file of a masked diffusion model, or (network, plan). A segmenter keeps too little of it.
        timestep: how much is hidden at once, as the network is told; None for what goes with ``partitions``, or else
            for a tenth (t = 100 of 1000, ten masks), or for the one t that a masked autoencoder was trained at.
        partitions: number of masks, two at least; None for the one that hides as much as t says, ``round(T / t)``.
        seed: of the masks.
        corruption: what the network was trained on, as an object or its config, where the plan does not say it.

    Raises:
        UserError: there is no network, it is not whole, was not trained with patch masking, or does not predict the
            image; or a timestep or number of masks does not exist.

    Example:
        >>> error = ReconstructionError("runs/demo/model.pt")  # doctest: +SKIP
        >>> error(image[None])[0, 0]  # ``[C, H, W]`` in [-1, 1] → ``[H, W]`` in [0, 1]  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Backbone | None,
        timestep: int | None = None,
        partitions: int | None = None,
        seed: int = 0,
        corruption: Corruption | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if backbone is None:
            kept = "a segmenter keeps only the part that gives features"
            need = "set backbone to the model.pt that it was made from"
            raise UserError(f"write_surprise needs the whole network, and {kept}: {need}.")
        network, plan, name = opened(backbone)
        described = plan.get("corruption") if corruption is None else corruption
        masking = _checked(name, network, plan, instantiate(described) if isinstance(described, Mapping) else described)
        if partitions is not None and partitions < 2:
            raise UserError(f"surprise#partitions is {partitions}: something must be seen, give 2 masks or more.")
        share = _HIDDEN if partitions is None else 1 / partitions
        self.timestep = default_timestep(plan, masking, share) if timestep is None else timestep
        # For its padding and its masks; the blocks are not read.
        self.masks = FeatureExtractor(
            network,
            blocks=[info["block"] for info in network.feature_info],  # type: ignore[union-attr]
            timesteps=[self.timestep],
            corruption=masking,
            masking="partition",
            partitions=partitions,
            normalize="none",
            seed=seed,
        )
        self.error = SSIMLoss(data_range=2.0)

    @torch.no_grad()
    def restored(self, image: Tensor) -> Tensor:
        """Return the image with every pixel as the network restores it while it is hidden.

        Args:
            image: ``[B, C, *spatial]`` in [-1, 1], of any size.

        Returns:
            As ``image``.
        """
        x = self.masks.pad(image)
        times = torch.full((len(x),), self.timestep, dtype=torch.long, device=x.device)
        result = torch.zeros_like(x)
        for x_t, visible in self.masks.corruptions(x, self.timestep):
            predicted = self.masks.backbone(x_t, times).clamp(-1, 1)
            result = torch.where(visible.bool(), result, predicted.to(result))
        return cut(result, image.shape[2:])

    def forward(self, image: Tensor) -> Tensor:
        """Return the map ``[B, 1, *spatial]`` in [0, 1] of images ``[B, C, *spatial]`` in [-1, 1], of any size."""
        margin = self.error.window_size // 2
        # SSIM is of intensities from 0: where means have signs, an inverted pattern of inverted mean counts as equal.
        pair = (_mirrored(x.float() + 1, margin) for x in (self.restored(image), image))
        error = self.error.error_map(*pair)
        return (error.mean(1, keepdim=True) / 2).clamp(0, 1)


def _checked(name: str, network: nn.Module, plan: Mapping[str, Any], corruption: Corruption | None) -> PatchMasking:
    """Return the corruption, or refuse a backbone that restores no hidden patches."""
    target = plan.get("target", "image")  # published files do not say it; masked diffusion predicts the image
    config: Any = getattr(network, "config", {})
    given, predicted = (config.get(key) for key in ("in_channels", "out_channels"))
    if getattr(network, "out", network) is None:
        fault, need = "is cut off after the features, so that it restores nothing", "model.pt"
    elif not isinstance(corruption, PatchMasking):
        trained = "its plan does not say on what" if corruption is None else f"with {type(corruption).__name__}"
        fault, need = f"was not trained to restore hidden patches ({trained})", "PatchMasking"
    elif target != "image":
        fault, need = f"predicts the {target}, not the image", "a backbone of target 'image'"
    elif given != predicted:
        fault, need = f"predicts {predicted} channels for images of {given}", "a backbone that predicts the image"
    else:
        return corruption
    raise UserError(f"{name} {fault}: write_surprise needs {need}.")


def _mirrored(x: Tensor, margin: int) -> Tensor:
    """Pad by reflection as far as it reaches, then by the edge: a side of n pixels can be reflected by n - 1."""
    reach = [min(margin, int(n) - 1) for n in reversed(x.shape[2:])]
    rest = [n for r in reach for n in (margin - r, margin - r)]
    return F.pad(F.pad(x, [n for r in reach for n in (r, r)], mode="reflect"), rest, mode="replicate")
