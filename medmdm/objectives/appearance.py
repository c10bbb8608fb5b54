"""Terms that judge how a restored image looks: by a discriminator, by features, by its spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor
from torch.func import functional_call

from medmdm.components import declared
from medmdm.objectives.self_distillation import channel_norm
from medmdm.objectives.term import Restored, Term


class Adversarial(Term):
    """A patch discriminator must not tell restored crops from real ones (LSGAN: arXiv 1611.04076; patches: 1611.07004).

    MONAI's ``PatchDiscriminator``, with instance instead of batch normalisation, so that images do not depend on their
    batch, and ``PatchAdversarialLoss``. The discriminator learns from the same step's crops; it does so during the
    warm-up, too.

    Args:
        in_channels: channels of the images.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
        discriminator_channels: width of its first layer.
        num_layers: its strided layers.
        learning_rate: of the discriminator.
        spatial_dims: 2 or 3.
        seed: of its weights.
    """

    def __init__(
        self,
        in_channels: int = 3,
        weight: float = 0.05,
        warmup: float = 0.2,
        discriminator_channels: int = 32,
        num_layers: int = 2,
        learning_rate: float = 2e-4,
        spatial_dims: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        self.criterion = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)

        def layers() -> None:
            self.discriminator = PatchDiscriminator(
                spatial_dims, discriminator_channels, in_channels, num_layers_d=num_layers, norm="INSTANCE"
            )

        self.make(layers, seed)

    def forward(self, seen: Restored) -> Tensor:
        with torch.autocast(seen.pred.device.type, enabled=False):
            # The discriminator judges as it is: nothing of it is learnt from this.
            frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            judged = functional_call(self.discriminator, frozen, (seen.pred,))[-1]
            loss: Tensor = self.criterion(judged, target_is_real=True, for_discriminator=False)
            return loss

    def own_loss(self, seen: Restored) -> Tensor:
        with torch.autocast(seen.pred.device.type, enabled=False):
            real = self.criterion(self.discriminator(seen.images.float())[-1], True, for_discriminator=True)
            fake = self.criterion(self.discriminator(seen.pred.detach())[-1], False, for_discriminator=True)
            return (real + fake) / 2


class Perceptual(Term):
    """Distance between restored and clean image in features of the averaged network (arXiv 1603.08155).

    Features are normalised over the channels of each cell; the distance is their mean square difference.

    Args:
        blocks: decoder blocks that are compared.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
    """

    def __init__(self, blocks: Sequence[int] = (0, 1), weight: float = 0.1, warmup: float = 0.1) -> None:
        super().__init__(weight, warmup)
        self.config = declared(locals())
        self.compared = list(blocks)

    def forward(self, seen: Restored) -> Tensor:
        with torch.no_grad():
            wanted = seen.taught(seen.images, self.compared)
        found = seen.taught(seen.pred.to(seen.images.dtype), self.compared)
        pairs = zip(found, wanted, strict=True)
        return torch.stack(
            [(channel_norm(f.float()) - channel_norm(w.float())).square().mean() for f, w in pairs]
        ).mean()


class Spectral(Term):
    """Mean absolute difference of the Fourier magnitudes of restored and clean image (after arXiv 2012.12821).

    Args:
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
    """

    def __init__(self, weight: float = 0.1, warmup: float = 0.0) -> None:
        super().__init__(weight, warmup)
        self.config = declared(locals())

    def forward(self, seen: Restored) -> Tensor:
        axes = list(range(2, seen.images.ndim))
        found, wanted = (torch.fft.rfftn(x.float(), dim=axes, norm="ortho").abs() for x in (seen.pred, seen.images))
        return (found - wanted).abs().mean()
