"""Several segmenters as one: each reads a case its own way, and their probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr

from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.errors import UserError
from medmdm.heads.predictor import Choice, Prediction, Predictor


@dataclass
class EnsemblePredictor(Predictor):
    """Predict with several segmenters, which may read other slices of a volume, or at another spacing, than the first.

    Args:
        others: the further ones, each with what reads a case by its plan. They agree on classes and maps.
    """

    others: Sequence[tuple[CaseReader, Predictor]] = ()

    def case(self, case: LoadedCase) -> Prediction:
        """Return the mean of their probabilities and maps, on the grid of the case's file.

        Uncertainty is the entropy of the mean, and the Jensen-Shannon divergence between the segmenters.
        """
        probabilities: Any = 0
        within: Any = 0
        maps: dict[str, Any] = {}
        for found in self._each(case, super().case(case)):
            probabilities = probabilities + found.probabilities / self.count
            if self.uncertainty:
                within = within + entr(found.probabilities).sum(0) / self.count
            for name, values in found.maps.items():
                maps[name] = maps.get(name, 0) + values / self.count
        uncertainty = None
        if self.uncertainty:
            total = entr(probabilities).sum(0)
            uncertainty = np.stack([total, (total - within).clip(0)])
        return Prediction(probabilities, uncertainty, maps)

    def _each(self, case: LoadedCase, first: Prediction) -> Iterator[Prediction]:
        """Yield what one segmenter after the other says, so that one answer beside the sum is in memory."""
        yield first
        unlabelled = {key: value for key, value in case.entry.items() if key != "label"}
        for reader, predictor in self.others:
            yield predictor.case(reader.read(unlabelled))

    @property
    def count(self) -> int:
        """How many segmenters there are."""
        return 1 + len(self.others)

    def choice(self, case: LoadedCase, choose: Callable[[np.ndarray], np.ndarray]) -> Choice | None:
        """Return None: a case is read as a whole."""
        return None

    def parts(self, *_: Any, **__: Any) -> Iterator[tuple[int, int, np.ndarray]]:
        """Refuse slides, which one segmenter reads part by part."""
        raise UserError("slides are read by one segmenter, and several are given: name one.")
