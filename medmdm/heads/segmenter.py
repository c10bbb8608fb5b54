"""Segmenters: a backbone and its head as one module, image in, logits out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

from medmdm.backbones.extractor import Extractor
from medmdm.backbones.feature_maps import cut, pad_ends
from medmdm.backbones.layers import Traced, parameters_of
from medmdm.data.files.volumes import axis_number
from medmdm.errors import UserError
from medmdm.heads.object_maps import channels, mirrored
from medmdm.heads.slice_by_slice import along

ENSEMBLES = ("mean", "vote")
#: Logits of classes that do not exist: their probability is 0, yet windows can be blended, which infinity could not.
NEVER = -1e4


class _Voices(nn.Module):
    """A segmentation model of several voices, members and mirror images, heard one after the other."""

    ensemble = "mean"
    flips: tuple[int, ...] = ()
    undeclared: tuple[int, ...] = ()
    #: Further maps that are given beside the classes, see :mod:`medmdm.heads.object_maps`.
    maps: tuple[str, ...] = ()
    #: ``(C, *spatial)`` of the images that ``torch.jit.script`` compiles it for; None where nobody has said it.
    scripted_shape: tuple[int, ...] | None = None

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` a trace: voices are generators, which it cannot read."""
        return self if self.scripted_shape is None else Traced(self, self.scripted_shape)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`medmdm.backbones.layers.BlockNetwork.load_state_dict`."""
        return super().load_state_dict(parameters_of(state_dict), strict, assign)

    def heard(self, image: Tensor) -> Iterator[Tensor]:
        """Yield logits and further maps ``[B, K + M, *spatial]`` of images ``[B, C, *spatial]``."""
        raise NotImplementedError

    def voices(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits ``[B, K, *spatial]`` of one voice after the other, mirrored back."""
        return (self._classes(values) for values in self.heard(image))

    def with_maps(self, image: Tensor, uncertainty: bool = False) -> Tensor:
        """Return what a call (or :meth:`with_uncertainty`) gives, and behind it the mean of the voices' further maps.

        Returns:
            ``[B, K + M, *spatial]``, or ``[B, K + 2 + M, *spatial]``; probabilities among the maps are logits.
        """
        maps: list[Tensor] = []

        def voices() -> Iterator[Tensor]:
            for values in self.heard(image):
                maps.append(values[:, values.shape[1] - channels(self.maps) :])
                yield self._classes(values)

        if uncertainty:
            logits = self._uncertain(voices(), image)
        elif len(self.mirrors()) * int(getattr(self, "members", 1)) == 1:
            (logits,) = voices()
        else:
            logits = self._mean(voices()).clamp_min(1e-12).log()
        return torch.cat([logits, torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]], dim=1)

    def _classes(self, values: Tensor, axis: int = 1) -> Tensor:
        """Leave out the further maps."""
        return values.narrow(axis, 0, values.shape[axis] - channels(self.maps)) if self.maps else values

    def mirrors(self) -> list[list[int]]:
        """Return the axes of a batch along which each mirror image is mirrored, first none."""
        chosen = itertools.chain.from_iterable(
            itertools.combinations(self.flips, n) for n in range(len(self.flips) + 1)
        )
        return [[2 + axis for axis in axes] for axes in chosen]

    def mean_probabilities(self, image: Tensor) -> Tensor:
        """Return the mean of the voices' probabilities ``[B, K, *spatial]`` (or votes)."""
        return self._mean(self.voices(image))

    def _mean(self, voices: Iterator[Tensor]) -> Tensor:
        total, count = torch.zeros(()), 0
        for logits in voices:
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
        return self._uncertain(self.voices(image), image)

    def _uncertain(self, voices: Iterator[Tensor], image: Tensor) -> Tensor:
        spread, votes = _Spread(), torch.zeros(())
        for logits in voices:
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
        maps: which further maps the head's last channels are, see :meth:`with_maps`.

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
        maps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if ensemble not in ENSEMBLES:
            raise UserError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {ensemble!r}.")
        self.extractor = extractor
        self.head = head
        self.ensemble = ensemble
        self.flips, self.undeclared, self.maps = tuple(flips), tuple(undeclared), tuple(maps)
        self.eval()

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.head.num_classes) - channels(self.maps)  # type: ignore[arg-type]

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
        values = cut(self.head(self.extractor(image), size, members), image.shape[2:])
        return self._classes(self._shut(values, image.shape[2:]), axis=2)

    def heard(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what one member after the other gives, for each mirror image, mirrored back."""
        for axes in self.mirrors():
            seen = image.flip(axes) if axes else image
            for values in self._each(self.extractor(seen), image.shape[2:]):
                yield mirrored(values, axes, self.maps) if axes else values

    def disputing(self, image: Tensor) -> Iterator[Tensor] | None:
        """Yield every pair of a member and a complementary mask, where features are read under such masks.

        A single member has a disagreement too, then. This reads the image once more per mask.
        """
        if self.extractor.config["masking"] != "partition":
            return None
        views = self.extractor.innermost.views(image)
        each = itertools.chain.from_iterable(self._each(view, image.shape[2:]) for view in views)
        return (self._classes(values) for values in each)

    def _each(self, maps: list[Tensor], spatial: Sequence[int]) -> Iterator[Tensor]:
        """Yield the logits and further maps of one member after the other."""
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
            MONAI's UNet++ gives). A ``ModuleList`` of such networks is an ensemble, whose probabilities are averaged.
        multiple: what the sides must be multiples of.
        num_classes: K, checked at the first call; None: not checked.
        flips: spatial axes along which images are also read mirrored when the network is evaluated. Of several voices
            the logits are the logarithm of the mean probabilities.
        undeclared: numbers below K that are no class: they are never predicted.
        maps: which further maps the network's last channels are, see :meth:`with_maps`.
        axes: of volumes that networks of slices read, see :func:`medmdm.heads.slice_by_slice.along`: as many networks
            each, one axis after the other. None: what the network reads is not cut.

    Raises:
        UserError: an unknown axis, or the networks cannot be divided among the axes.
    """

    def __init__(
        self,
        network: nn.Module,
        multiple: int = 32,
        num_classes: int | None = None,
        flips: Sequence[int] = (),
        undeclared: Sequence[int] = (),
        maps: Sequence[str] = (),
        axes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.num_classes = num_classes
        self.axes = tuple(axes)
        for axis in self.axes:
            axis_number(axis)
        if self.axes and self.members % len(self.axes):
            raise UserError(f"{self.members} networks cannot be divided among {len(self.axes)} axes.")
        self.flips, self.undeclared, self.maps = tuple(flips), tuple(undeclared), tuple(maps)
        for net in self.networks:
            if isinstance(net, BasicUNet) and multiple % 16 == 0:
                for part in net.modules():  # the sides fit at every level, and a padding by nothing copies everything
                    if isinstance(part, UpCat):
                        part.is_pad = False

    @property
    def networks(self) -> list[nn.Module]:
        """The members of the ensemble."""
        return list(self.network) if isinstance(self.network, nn.ModuleList) else [self.network]

    @property
    def members(self) -> int:
        """Size of the ensemble."""
        return len(self.networks)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``[B, K, *spatial]`` of images of any size."""
        if self.members == 1 and not self.axes and (self.training or not self.flips):
            return self._classes(self._values(image, self.networks[0]))
        return self.mean_probabilities(image).clamp_min(1e-12).log()

    def heard(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what one member after the other gives, for each mirror image, mirrored back."""
        each = len(self.networks) // max(len(self.axes), 1)
        for axes in self.mirrors():
            for number, network in enumerate(self.networks):
                read = functools.partial(self._mirrored, network=network, axes=axes)
                yield along(image, self.axes[number // each], read) if self.axes else read(image)

    def _mirrored(self, image: Tensor, network: nn.Module, axes: list[int]) -> Tensor:
        values = self._values(image.flip(axes) if axes else image, network)
        return mirrored(values, axes, self.maps) if axes else values

    def _values(self, image: Tensor, network: nn.Module) -> Tensor:
        spatial = [int(n) for n in image.shape[2:]]
        out = network(pad_ends(image, padded_size(network, spatial, self.multiple)))
        values: Tensor = out[-1] if isinstance(out, (list, tuple)) else out
        if self.num_classes is not None and not torch.jit.is_tracing():
            needed, found = self.num_classes + channels(self.maps), values.shape[1]
            given = f"gives {found} classes, but the data has {self.num_classes}"
            if self.maps:
                parts = f"{self.num_classes} classes and {', '.join(self.maps)}"
                given = f"gives {found} channels, but {parts} are {needed}"
            if found != needed:
                raise UserError(f"The network {given}: set its out_channels.")
        return self._shut(cut(values, spatial), spatial)


def padded_size(network: nn.Module, spatial: Sequence[int], multiple: int) -> list[int]:
    """Return the size of images that a network reads instead of ``spatial``: the sides are multiples of ``multiple``.

    Of 16 pixels MONAI's BasicUNet leaves one, which has no spread that instance normalisation could divide by, so that
    the last side becomes 32.
    """
    sides = [-(-n // multiple) * multiple for n in spatial]
    if sides == [16] * len(sides) and isinstance(network, BasicUNet):
        normalised = any(isinstance(part, (nn.InstanceNorm2d, nn.InstanceNorm3d)) for part in network.modules())
        sides[-1] = 32 if normalised else 16
    return sides
