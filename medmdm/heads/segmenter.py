"""The deployable segmenter: one module, image in, logits out."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from medmdm.backbones.extractor import Extractor
from medmdm.errors import UserError
from medmdm.heads.padded import cut

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

    def __init__(self, extractor: Extractor, head: nn.Module, ensemble: str = "mean") -> None:
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
        size = self.extractor.padded_size(image.shape[2:])
        return cut(self.head(self.extractor(image), size, members), image.shape[2:])

    def mean_probabilities(self, image: Tensor) -> Tensor:
        """Return the ensemble's probabilities ``[B, K, *spatial]``; one member is in memory at a time."""
        votes = map(self._vote, self._each(self.extractor(image), image.shape[2:]))
        return functools.reduce(operator.add, votes) / self.members

    def with_uncertainty(self, image: Tensor) -> Tensor:
        """Return logits and two maps of uncertainty in one tensor, ``[B, K + 2, *spatial]``.

        Behind the K logits stand the entropy of the mean probabilities and the Jensen-Shannon divergence between the
        members (its part that they disagree on; 0 for one member), both in nats; see :func:`entropy`.

        Where features are read under complementary masks (``masking="partition"``), the divergence is between all pairs
        of a member and a mask: it also says how much the answer depends on which patches are hidden, so that a single
        member has one too. This reads the image once more per mask. Logits and entropy are those of the averaged
        features, as without uncertainty.
        """
        spread, votes = _Spread(), torch.zeros(())
        for logits in self._each(self.extractor(image), image.shape[2:]):
            spread.add(logits.softmax(1))
            votes = votes + self._vote(logits)
        if self.members > 1:
            logits = (votes / self.members).clamp_min(1e-12).log()
        voices = spread
        if self.extractor.config["masking"] == "partition":
            voices = _Spread()
            for view in self.extractor.innermost.views(image):
                for each in self._each(view, image.shape[2:]):
                    voices.add(each.softmax(1))
        return torch.cat([logits, spread.total(), voices.disagreement()], dim=1)

    def _each(self, maps: list[Tensor], spatial: Sequence[int]) -> Iterator[Tensor]:
        """Yield the logits of one member after the other."""
        size = self.extractor.padded_size(spatial)
        for m in range(self.members):
            yield cut(self.head(maps, size, slice(m, m + 1))[0], spatial)

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


def entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p log p`` in nats over the classes: ``[B, K, *spatial]`` → ``[B, 1, *spatial]``."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)
