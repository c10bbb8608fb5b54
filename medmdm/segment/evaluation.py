"""Predict and score the cases of a section; what is left behind makes the report again without the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmdm.data.cases import Cases
from medmdm.data.reading import CaseReader, LoadedCase, data_hash
from medmdm.errors import UserError
from medmdm.heads.prediction import Predictor
from medmdm.segment.outputs import Outputs, Postprocessing

__all__ = ["LabelledData", "evaluate"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """The cases that a head learns from, and those that it is tested on.

    Args:
        reader: reads cases as the backbone was trained; knows the data set.
        section: that is tested.
        shots: number of training cases; None for all.
        rule: which: ``"paper"`` or ``"seeded"``, see :func:`medmdm.data.subset`.
        draw: seed of the subset.

    Raises:
        UserError: the section is empty, or there are fewer training cases than shots.
    """

    reader: CaseReader
    section: str = "test"
    shots: int | None = None
    rule: str = "paper"
    draw: int = 0

    def __post_init__(self) -> None:
        if not getattr(self.cases, self.section, None):
            raise UserError(
                f"There is no {self.section} case to evaluate: correct the data list or choose another section."
            )
        if self.shots is not None:
            self.draw_support(self.shots, self.draw)

    @property
    def cases(self) -> Cases:
        """The data set."""
        return self.reader.cases

    @property
    def subset(self) -> dict[str, Any] | None:
        """How the training cases were chosen, None for all of them."""
        return None if self.shots is None else {"rule": self.rule, "draw": self.draw}

    def draw_support(self, shots: int, draw: int) -> Sequence[dict[str, Any]]:
        """Return the entries of so many training cases."""
        return self.cases.subset(shots, self.rule, draw).training

    def support(self) -> list[LoadedCase]:
        """Read the training cases."""
        entries = self.cases.training if self.shots is None else self.draw_support(self.shots, self.draw)
        return [self.reader.read(entry) for entry in entries]

    def tested(self) -> list[LoadedCase]:
        """Read the cases to test on."""
        return [self.reader.read(entry) for entry in getattr(self.cases, self.section)]

    def identity(self, tested: Sequence[LoadedCase], training: Sequence[LoadedCase] = ()) -> dict[str, Any]:
        """Return what a run's record says of the images: a hash of their pixels and how many there are."""
        read = {"training": training, self.section: tested} if training else {self.section: tested}
        return {"hash": data_hash(**read), **{f"{section}_cases": len(cases) for section, cases in read.items()}}

    def announce(self) -> None:
        """Log what was chosen, and what the user should act on."""
        for sentence in self.cases.sentences:
            logger.info(sentence)
        for warning in self.cases.warnings:
            logger.warning(warning)
