"""Segmenters: a backbone and its head as one module, image in, logits out, and their predictions for whole cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones.extractor import Extractor
from medmdm.backbones.feature_maps import cut, pad_ends
from medmdm.backbones.layers import parameters_of
from medmdm.data.reading import LoadedCase
from medmdm.data.transforms.spatial import PadToSize, resample_to_shape
from medmdm.data.writers import SliceAssembler
from medmdm.errors import UserError
from medmdm.heads.task import Reading
from medmdm.progress import followed

ENSEMBLES = ("mean", "vote")
#: Logits of classes that do not exist: their probability is 0, yet windows can be blended, which infinity could not.
NEVER = -1e4


class _Voices(nn.Module):
    """A segmentation model of several voices, members and mirror images, heard one after the other."""

    ensemble = "mean"
    flips: tuple[int, ...] = ()
    undeclared: tuple[int, ...] = ()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`medmdm.backbones.layers.BlockNetwork.load_state_dict`."""
        return super().load_state_dict(parameters_of(state_dict), strict, assign)

    def voices(self, image: Tensor) -> Iterator[Tensor]:
        """Yield logits ``[B, K, *spatial]`` of images ``[B, C, *spatial]``."""
        raise NotImplementedError

    def mirrors(self) -> list[list[int]]:
        """Return the axes of a batch along which each mirror image is mirrored, first none."""
        chosen = itertools.chain.from_iterable(
            itertools.combinations(self.flips, n) for n in range(len(self.flips) + 1)
        )
        return [[2 + axis for axis in axes] for axes in chosen]

    def mean_probabilities(self, image: Tensor) -> Tensor:
        """Return the mean of the voices' probabilities ``[B, K, *spatial]`` (or votes)."""
        total, count = torch.zeros(()), 0
        for logits in self.voices(image):
            total, count = total + self._vote(logits), count + 1
        return total / count

    def disputing(self, image: Tensor) -> Iterator[Tensor] | None:
        """Yield the logits whose divergence is the disagreement; None for those of :meth:`voices`."""
        return None

    def with_uncertainty(self, image: Tensor) -> Tensor:
        """Return logits and two maps of uncertainty in one tensor, ``[B, K + 2, *spatial]``.

        Behind the K logits stand the entropy of the mean probabilities and the Jensen-Shannon divergence between the
        voices (its part that they disagree on; 0 for one voice), both in nats; see :func:`entropy`.
        """
        spread, votes = _Spread(), torch.zeros(())
        for logits in self.voices(image):
            spread.add(logits.softmax(1))
            votes = votes + self._vote(logits)
        if spread.count > 1:
            logits = (votes / spread.count).clamp_min(1e-12).log()
        others, disputed = self.disputing(image), spread
        if others is not None:
            disputed = _Spread()
            for each in others:
                disputed.add(each.softmax(1))
        return torch.cat([logits, spread.total(), disputed.disagreement()], dim=1)

    def _shut(self, logits: Tensor, spatial: Sequence[int]) -> Tensor:
        """Shut off the channels of numbers that are no class: ``[..., K, *spatial]``."""
        if not self.undeclared:
            return logits
        numbers = torch.tensor(self.undeclared, device=logits.device)
        return logits.index_fill(logits.ndim - len(spatial) - 1, numbers, NEVER)

    def _vote(self, logits: Tensor) -> Tensor:
        if self.ensemble == "mean":
            return logits.softmax(1)
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)


class Segmenter(_Voices):
    """A frozen backbone up to its last used block and a head on its features.

    The same image always gives the same logits, so that the module can be traced, exported and served.

    Args:
        extractor: image → list of feature maps, usually a :class:`medmdm.backbones.FeatureExtractor`.
        head: ``head(maps, size, members)`` → ``[M, B, K, *size]``, for example
            :class:`medmdm.heads.PixelClassifier`; has ``members`` and ``num_classes``.
        ensemble: how several members are joined: ``"mean"`` of their probabilities or ``"vote"`` of their classes.
        flips: spatial axes along which images are also read mirrored, every combination of them once; what is read is
            mirrored back and joined as members are.
        undeclared: numbers below K that are no class, as 2 and 3 of the classes 0, 1 and 4: they are never predicted.

    Raises:
        UserError: an unknown ensemble.
    """

    def __init__(
        self,
        extractor: Extractor,
        head: nn.Module,
        ensemble: str = "mean",
        flips: Sequence[int] = (),
        undeclared: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if ensemble not in ENSEMBLES:
            raise UserError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {ensemble!r}.")
        self.extractor = extractor
        self.head = head
        self.ensemble = ensemble
        self.flips, self.undeclared = tuple(flips), tuple(undeclared)
        self.eval()

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.head.num_classes)  # type: ignore[arg-type]

    @property
    def members(self) -> int:
        """Size of the ensemble."""
        return int(self.head.members)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``[B, K, *spatial]`` of images ``[B, C, *spatial]`` in [-1, 1], of any size.

        Of several voices these are the logarithm of their mean probabilities (or share of votes).
        """
        if self.members == 1 and not self.flips:
            return self.member_logits(image, slice(0, 1))[0]
        return self.mean_probabilities(image).clamp_min(1e-12).log()

    def member_logits(self, image: Tensor, members: slice | None = None) -> Tensor:
        """Return the logits of each member, ``[M, B, K, *spatial]``."""
        size = self.extractor.padded_size(image.shape[2:])
        return self._shut(cut(self.head(self.extractor(image), size, members), image.shape[2:]), image.shape[2:])

    def voices(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of one member after the other, for each mirror image."""
        for axes in self.mirrors():
            seen = image.flip(axes) if axes else image
            for logits in self._each(self.extractor(seen), image.shape[2:]):
                yield logits.flip(axes) if axes else logits

    def disputing(self, image: Tensor) -> Iterator[Tensor] | None:
        """Yield every pair of a member and a complementary mask, where features are read under such masks.

        A single member has a disagreement too, then. This reads the image once more per mask.
        """
        if self.extractor.config["masking"] != "partition":
            return None
        views = self.extractor.innermost.views(image)
        return itertools.chain.from_iterable(self._each(view, image.shape[2:]) for view in views)

    def _each(self, maps: list[Tensor], spatial: Sequence[int]) -> Iterator[Tensor]:
        """Yield the logits of one member after the other."""
        size = self.extractor.padded_size(spatial)
        for m in range(self.members):
            yield self._shut(cut(self.head(maps, size, slice(m, m + 1))[0], spatial), spatial)

    def train(self, mode: bool = True) -> Segmenter:
        """Stay in evaluation mode."""
        return super().train(False)


class _Spread:
    """Probabilities of several voices, of which one is in memory at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = self.within = torch.zeros(())

    def add(self, probabilities: Tensor) -> None:
        """Hear ``[B, K, *spatial]``."""
        self.count += 1
        self.sum = self.sum + probabilities
        self.within = self.within + entropy(probabilities)

    def total(self) -> Tensor:
        """Entropy of the mean."""
        return entropy(self.sum / self.count)

    def disagreement(self) -> Tensor:
        """Jensen-Shannon divergence: entropy of the mean minus mean entropy."""
        return (self.total() - self.within / self.count).clamp_min(0)


def entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p log p`` in nats over the classes: ``[B, K, *spatial]`` → ``[B, 1, *spatial]``."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)


class PaddedNetwork(_Voices):
    """Repeat the last row and column until the sides fit, and cut the output back.

    Args:
        network: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``, or a list of such whose last is read (as
            MONAI's UNet++ gives).
        multiple: what the sides must be multiples of.
        num_classes: K, checked at the first call; None: not checked.
        flips: spatial axes along which images are also read mirrored when the network is evaluated; the logits are then
            the logarithm of the mean probabilities.
        undeclared: numbers below K that are no class: they are never predicted.
    """

    def __init__(
        self,
        network: nn.Module,
        multiple: int = 32,
        num_classes: int | None = None,
        flips: Sequence[int] = (),
        undeclared: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.num_classes = num_classes
        self.flips, self.undeclared = tuple(flips), tuple(undeclared)
        if isinstance(network, BasicUNet) and multiple % 16 == 0:
            for part in network.modules():  # the sides fit at every level, and a padding by nothing copies everything
                if isinstance(part, UpCat):
                    part.is_pad = False

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``[B, K, *spatial]`` of images of any size."""
        if self.training or not self.flips:
            return self._logits(image)
        return self.mean_probabilities(image).clamp_min(1e-12).log()

    def voices(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each mirror image, mirrored back."""
        for axes in self.mirrors():
            yield self._logits(image.flip(axes)).flip(axes) if axes else self._logits(image)

    def _logits(self, image: Tensor) -> Tensor:
        spatial = [int(n) for n in image.shape[2:]]
        out = self.network(pad_ends(image, [-(-n // self.multiple) * self.multiple for n in spatial]))
        logits: Tensor = out[-1] if isinstance(out, (list, tuple)) else out
        if self.num_classes is not None and not torch.jit.is_tracing() and logits.shape[1] != self.num_classes:
            given = f"gives {logits.shape[1]} classes, but the data has {self.num_classes}"
            raise UserError(f"The network {given}: set its out_channels.")
        return self._shut(cut(logits, spatial), spatial)


@dataclass(frozen=True)
class Prediction:
    """What a model says of a case, on the grid of its file.

    Args:
        probabilities: ``[K, *spatial]`` float32.
        uncertainty: ``[2, *spatial]``: entropy and disagreement between members, in nats; None if not asked for.
    """

    probabilities: np.ndarray
    uncertainty: np.ndarray | None = None


@dataclass
class Predictor:
    """Run a model over images of any size: whole, or in sliding windows whose logits are blended by Gaussian weights.

    Args:
        model: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``; uncertainty needs its ``with_uncertainty``. Of
            other maps, such as :class:`medmdm.segment.ReconstructionError`, read :meth:`values`.
        reading: windows or whole images.
        uncertainty: also give the maps of uncertainty, where the model has them.
        batch_size: windows at once.
        device: where to compute.
        inferer: of MONAI's, where images are read otherwise than ``reading`` says.
    """

    model: nn.Module
    reading: Reading
    uncertainty: bool = False
    batch_size: int = 4
    device: torch.device | str = "cpu"
    inferer: Inferer | None = None

    def __post_init__(self) -> None:
        self.uncertainty = self.uncertainty and hasattr(self.model, "with_uncertainty")
        self.device = torch.device(self.device)
        self.inferer = self.inferer or self.reading.inferer(self.batch_size)

    @torch.no_grad()
    def image(self, image: Tensor) -> Tensor:
        """Return logits, with two maps of uncertainty behind them where asked for, of ``[C, H, W]`` in [-1, 1]."""
        padded = image if self.reading.whole else torch.as_tensor(PadToSize(self.reading.window)(image))
        function = self.model.with_uncertainty if self.uncertainty else self.model
        assert self.inferer is not None
        out = self.inferer(padded[None].to(self.device), function)
        assert isinstance(out, Tensor)
        starts = [(new - old) // 2 for new, old in zip(padded.shape[1:], image.shape[1:], strict=True)]
        inside = (slice(None), *(slice(a, a + n) for a, n in zip(starts, image.shape[1:], strict=True)))
        return out[0][inside].float().cpu()

    def case(self, case: LoadedCase) -> Prediction:
        """Return what the model says of a picture or a volume, resampled to the grid of its file."""
        values = self.values(case, self._probabilities)
        return Prediction(values[:-2], values[-2:]) if self.uncertainty else Prediction(values)

    def values(self, case: LoadedCase, function: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """Return what the model gives for a picture or a volume, ``[N, *spatial]`` float32 on the grid of its file.

        Slices of a volume that were left out stay 0. ``function`` is applied to what :meth:`image` gives, before it is
        resampled.
        """

        def read(image: Tensor, shape: Sequence[int]) -> np.ndarray:
            values = self.image(image) if function is None else function(self.image(image))
            return (values if tuple(values.shape[1:]) == tuple(shape) else resample_to_shape(values, shape)).numpy()

        if case.slicing is None:
            return read(case.examples[0].image, case.shape)
        assembler: SliceAssembler | None = None
        pairs = zip(case.slices, case.examples, strict=True)
        for number, example in followed(pairs, f"slices of {case.name}", len(case.slices)):
            values = read(example.image, case.slicing.slice_shape)
            assembler = assembler or SliceAssembler(case.slicing, len(values), "float32")
            assembler.add(number, values)
        assert assembler is not None  # volumes have slices
        return assembler.volume()

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities and leave the maps of uncertainty behind them as they are."""
        count = len(logits) - 2 if self.uncertainty else len(logits)
        return torch.cat([F.softmax(logits[:count], dim=0), logits[count:]])
