"""The deployable segmenter: one module, image in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmdm.errors import UserError
from medmdm.networks.extractor import FeatureExtractor

__all__ = ["ENSEMBLES", "Segmenter"]

ENSEMBLES = ("mean", "vote")


class Segmenter(nn.Module):
    """A frozen backbone up to its last used block and a head on its features.

    The same image always gives the same logits, so that the module can be traced, exported and served.

    Args:
        extractor: image → list of feature maps, usually a :class:`medmdm.networks.FeatureExtractor`.
        head: ``head(maps, size, members)`` → ``[M, B, K, *size]``, for example
            :class:`medmdm.networks.PixelClassifier`; has ``members`` and ``num_classes``.
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
        """
        maps, size = self._features(image)
        mean: Tensor | None = None
        votes: Tensor | None = None
        within: Tensor | None = None
        for m in range(self.members):
            logits = _cut(self.head(maps, size, slice(m, m + 1))[0], image.shape[2:])
            p = logits.softmax(1)
            mean = p if mean is None else mean + p
            votes = self._vote(logits) if votes is None else votes + self._vote(logits)
            within = entropy(p) if within is None else within + entropy(p)
        assert mean is not None
        assert votes is not None
        assert within is not None
        between = entropy(mean / self.members)
        logits = self.head(maps, size)[0] if self.members == 1 else (votes / self.members).clamp_min(1e-12).log()
        disagreement = (between - within / self.members).clamp_min(0)
        return torch.cat([_cut(logits, image.shape[2:]), between, disagreement], dim=1)

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


def entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p log p`` in nats over the classes: ``[B, K, *spatial]`` → ``[B, 1, *spatial]``."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)


def _cut(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Take the padding off the last axes."""
    index = (slice(None),) * (x.ndim - len(spatial)) + tuple(slice(0, int(n)) for n in spatial)
    return x[index]
