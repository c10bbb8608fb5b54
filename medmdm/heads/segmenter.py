"""The deployable segmenter: one module, image in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmdm.backbones.extractor import FeatureExtractor
from medmdm.errors import UserError

__all__ = ["ENSEMBLES", "Segmenter"]

ENSEMBLES = ("mean", "vote")


class Segmenter(nn.Module):
    """A frozen backbone up to its last used block and a head on its features.

    The same image always gives the same logits, so that the module can be traced, exported and served.

    Args:
        extractor: image → list of feature maps, usually a :class:`medmdm.backbones.FeatureExtractor`.
        head: ``head(maps, size, members)`` → ``[M, B, K, *size]``, for example
            :class:`medmdm.heads.PixelClassifier`; has ``members`` and ``num_classes``.
        ensemble: how several members are joined: ``"mean"`` of their probabilities or ``"vote"`` of their classes.

    Raises:
        UserError: an unknown ensemble.
    """

    def __init__(self, extractor: FeatureExtractor, head: nn.Module, ensemble: str = "mean") -> None:
        super().__init__()
        if ensemble not in ENSEMBLES:
            raise UserError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {ensemble!r}.")
        self.extractor = extractor
        self.head = head
        self.ensemble = ensemble
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
        """Segment images.

        Args:
            image: ``[B, C, *spatial]`` in [-1, 1], of any size.

        Returns:
            Logits ``[B, K, *spatial]``; of an ensemble the logarithm of its mean probabilities (or share of votes).
        """
        if self.members == 1:
            return self.member_logits(image, slice(0, 1))[0]
        return self.mean_probabilities(image).clamp_min(1e-12).log()

    def member_logits(self, image: Tensor, members: slice | None = None) -> Tensor:
        """Return the logits of each member, ``[M, B, K, *spatial]``."""
        maps, size = self._features(image)
        return _cut(self.head(maps, size, members), image.shape[2:])

    def mean_probabilities(self, image: Tensor) -> Tensor:
        """Return the ensemble's probabilities ``[B, K, *spatial]``; one member is in memory at a time."""
        maps, size = self._features(image)
        total: Tensor | None = None
        for m in range(self.members):
            p = self._vote(_cut(self.head(maps, size, slice(m, m + 1))[0], image.shape[2:]))
            total = p if total is None else total + p
        assert total is not None  # members >= 1
        return total / self.members

    def with_uncertainty(self, image: Tensor) -> Tensor:
        """Return logits and two maps of uncertainty in one tensor, ``[B, K + 2, *spatial]``.

        Behind the K logits stand the entropy of the mean probabilities and the Jensen-Shannon divergence between the
        members (its part that they disagree on; 0 for one member), both in nats; see :func:`entropy`.

        Where features are read under complementary masks (``masking="partition"``), the divergence is between all pairs
        of a member and a mask: it also says how much the answer depends on which patches are hidden, so that a single
        member has one too. This reads the image once more a mask. Logits and entropy are those of the averaged
        features, as without uncertainty.
        """
        maps, size = self._features(image)
        spread = _Spread()
        votes: Tensor | None = None
        for m in range(self.members):
            logits = _cut(self.head(maps, size, slice(m, m + 1))[0], image.shape[2:])
            spread.add(logits.softmax(1))
            votes = self._vote(logits) if votes is None else votes + self._vote(logits)
        assert votes is not None  # members >= 1
        total, disagreement = spread.total(), spread.disagreement()
        logits = self.head(maps, size)[0] if self.members == 1 else (votes / self.members).clamp_min(1e-12).log()
        extractor = innermost(self.extractor)
        if isinstance(extractor, FeatureExtractor) and extractor.config["masking"] == "partition":
            pairs = _Spread()
            for view in extractor.views(image):
                for m in range(self.members):
                    pairs.add(_cut(self.head(view, size, slice(m, m + 1))[0], image.shape[2:]).softmax(1))
            disagreement = pairs.disagreement()
        return torch.cat([_cut(logits, image.shape[2:]), total, disagreement], dim=1)

    def _features(self, image: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        maps = self.extractor(image)
        return maps, self.extractor.padded_size(image.shape[2:])

    def _vote(self, logits: Tensor) -> Tensor:
        if self.ensemble == "mean":
            return logits.softmax(1)
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)

    def train(self, mode: bool = True) -> Segmenter:
        """Stay in evaluation mode."""
        return super().train(False)


class _Spread:
    """Probabilities of several voices, of which one is in memory at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.within: Tensor | float = 0.0

    def add(self, probabilities: Tensor) -> None:
        """Hear ``[B, K, *spatial]``."""
        self.count += 1
        self.sum = self.sum + probabilities
        self.within = self.within + entropy(probabilities)

    def total(self) -> Tensor:
        """Entropy of the mean."""
        return entropy(torch.as_tensor(self.sum / self.count))

    def disagreement(self) -> Tensor:
        """Jensen-Shannon divergence: entropy of the mean minus mean entropy."""
        return (self.total() - self.within / self.count).clamp_min(0)


def innermost(extractor: nn.Module) -> nn.Module:
    """Return the extractor inside a cache (:class:`medmdm.backbones.cache.CachedExtractor`), if there is one."""
    while not isinstance(extractor, FeatureExtractor) and isinstance(getattr(extractor, "extractor", None), nn.Module):
        extractor = extractor.extractor  # type: ignore[assignment]
    return extractor


def entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p log p`` in nats over the classes: ``[B, K, *spatial]`` → ``[B, 1, *spatial]``."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)


def _cut(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Take the padding off the last axes."""
    index = (slice(None),) * (x.ndim - len(spatial)) + tuple(slice(0, int(n)) for n in spatial)
    return x[index]
