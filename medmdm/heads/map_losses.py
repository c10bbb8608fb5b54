"""How maps of objects are learnt beside the classes: a loss for each, and what each of them weighs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.errors import UserError, nearest
from medmdm.heads.object_maps import check_maps, places, targets
from medmdm.labels import IGNORE

CLASSES = "classes"
UNCERTAINTY = "uncertainty"


class MapLosses(nn.Module):
    """The weighted sum of the loss of the classes and those of maps, on labelled pixels.

    The boundary is learnt by binary cross-entropy, distances and centres by their squared error, horizontal and
    vertical maps by HoVer-Net's (MONAI's ``HoVerNetLoss``: twice the squared error, and that of their gradients inside
    objects).

    Weights that are learnt are those of Kendall et al., "Multi-task learning using uncertainty to weigh losses"
    (CVPR 2018): with s = log σ² of each task, a loss of classes counts exp(-s) L + s/2, a squared error half of
    exp(-s) L + s. They train with the network, without weight decay.

    Args:
        names: of the maps, see :data:`medmdm.heads.object_maps.MAPS`.
        weights: ``"uncertainty"``, or numbers by name of a map, or ``"classes"``; 1 where there is none.
        centre_sigma: standard deviation of the Gaussians of ``centres``, in pixels.

    Raises:
        UserError: an argument is unknown or out of range.
    """

    def __init__(
        self, names: Sequence[str], weights: Mapping[str, float] | str = UNCERTAINTY, centre_sigma: float = 2.0
    ) -> None:
        super().__init__()
        self.names = check_maps(names)
        self.centre_sigma = centre_sigma
        if not centre_sigma > 0:
            raise UserError(f"centre_sigma must be above 0, got {centre_sigma!r}.")
        known = (CLASSES, *self.names)
        self.fixed: dict[str, float] | None = None
        if isinstance(weights, str):
            if weights != UNCERTAINTY:
                raise UserError(f"weights is {weights!r}: use '{UNCERTAINTY}', or numbers by name.")
            self.log_variances = nn.Parameter(torch.zeros(len(known)))
        else:
            for name, value in weights.items():
                if name not in known:
                    raise UserError(f"weights names {name!r}{nearest(name, known)}: use some of {', '.join(known)}.")
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                    raise UserError(f"weights: {name} is {value!r}: give a number of 0 or more.")
            self.fixed = {name: float(weights.get(name, 1)) for name in known}

    def targets(self, objects: Tensor | None) -> Tensor:
        """Return what the maps of a crop are, ``[M, *spatial]``, of its numbered objects."""
        assert objects is not None  # which MultiTaskHead has seen to
        return targets(objects, self.names, self.centre_sigma)

    def forward(self, classes: Tensor, values: Tensor, label: Tensor, wanted: Tensor) -> Tensor:
        """Return the weighted sum.

        Args:
            classes: the loss of the classes.
            values: what the network gives, ``[B, M, *spatial]``.
            label: class numbers ``[B, *spatial]``.
            wanted: of :meth:`targets`, ``[B, M, *spatial]``.
        """
        losses = {CLASSES: classes, **self.each(values, label, wanted)}
        if self.fixed is not None:
            return torch.stack([self.fixed[name] * loss for name, loss in losses.items()]).sum()
        weighed = self._factors() * torch.stack(list(losses.values())) + self.log_variances / 2
        return weighed.sum()

    def each(self, values: Tensor, label: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Return the loss of each map; 0 with gradients of 0 where nothing is labelled."""
        known = (label != IGNORE)[:, None]
        found = {}
        for name, place in places(self.names).items():
            value, target = values[:, place], wanted[:, place]
            if name == "hv":
                found[name] = _hover_loss(value, target, known, label)
                continue
            per_pixel = F.binary_cross_entropy_with_logits if name == "boundary" else F.mse_loss
            found[name] = (per_pixel(value, target, reduction="none") * known).sum() / known.sum().clamp_min(1)
        return found

    def weights_now(self) -> dict[str, float]:
        """Return what each loss is multiplied by."""
        if self.fixed is not None:
            return dict(self.fixed)
        return dict(zip((CLASSES, *self.names), self._factors().tolist(), strict=True))

    def _factors(self) -> Tensor:
        # Cross-entropy, of classes and of the boundary, is no squared error.
        halves = [1.0 if name in (CLASSES, "boundary") else 0.5 for name in (CLASSES, *self.names)]
        return torch.tensor(halves, device=self.log_variances.device) * (-self.log_variances).exp()


@functools.cache
def _hover() -> Callable[..., Any]:
    from monai.apps.pathology.losses import HoVerNetLoss  # slow to import

    return HoVerNetLoss(lambda_np_ce=0.0, lambda_np_dice=0.0)


def _hover_loss(value: Tensor, target: Tensor, known: Tensor, label: Tensor) -> Tensor:
    """Return MONAI's loss of maps ``[B, 2, H, W]``; what is not known is taken to be right."""
    inside = (known[:, 0] & (label > 0)).to(value)
    nuclei = torch.stack([1 - inside, inside], dim=1)  # the classes are learnt by another loss
    said = {"nucleus_prediction": nuclei, "horizontal_vertical": torch.where(known, value, target)}
    loss: Tensor = _hover()(said, {"nucleus_prediction": nuclei, "horizontal_vertical": target})
    return loss
