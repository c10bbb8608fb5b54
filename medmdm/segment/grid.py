"""The cells of a study: backbones, heads, numbers of labelled images, draws of them and seeds."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.data.identity import content_hash
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError, counted
from medmdm.intact import DamagedFileError, load_record
from medmdm.segment.postprocessing import Postprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One fit of a study."""

    backbone: str
    head: str
    shots: int
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Its file name."""
        words = f"{self.backbone}__{self.head}__k{self.shots}__draw{self.draw}__seed{self.seed}"
        return "".join(c if c.isalnum() or c in "_-." else "-" for c in words)

    def path(self, run_dir: str | os.PathLike[str]) -> Path:
        """Return its file in a run folder."""
        return Path(run_dir) / "cells" / f"{self.name}.json"


@dataclass(frozen=True)
class Grid:
    """What a study varies besides backbones and heads.

    Args:
        shots: numbers of labelled training images; null stands for all of them.
        draws: how many seeded subsets of each number; all images are one draw.
        seeds: of the fits.
        only: restrict a head to some backbones, ``{head: [backbone, ...]}``.

    Raises:
        UserError: there is no draw or seed, or a seed is none.
    """

    shots: Sequence[int | None] = (8, None)
    draws: int = 10
    seeds: Sequence[int] = (0,)
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise UserError(f"seeds must be whole numbers of 0 or more, got {list(self.seeds)}.")
        if self.draws < 1 or not self.seeds:
            raise UserError("A study needs one draw and one seed at least.")

    def samples(self, available: int) -> Iterator[tuple[int, int, int]]:
        """Yield (shots, draw, seed), each once, where so many training images are available."""
        for shots in dict.fromkeys(available if n is None else n for n in self.shots):
            if not isinstance(shots, int) or not 1 <= shots <= available:
                raise UserError(
                    f"shots asks for {shots}, but to train on there {'is' if available == 1 else 'are'} "
                    f"{counted(available, 'image')}."
                )
            for draw in range(1 if shots == available else self.draws):
                for seed in dict.fromkeys(self.seeds):
                    yield shots, draw, seed


@dataclass(frozen=True)
class StudyCases:
    """The cases of a study, by name: that may be learnt from, without a label, and to test on."""

    training: dict[str, LoadedCase]
    unlabeled: dict[str, LoadedCase]
    tested: list[LoadedCase]

    @functools.cached_property
    def every(self) -> dict[str, LoadedCase]:
        """All of them."""
        return {case.name: case for case in [*self.training.values(), *self.unlabeled.values(), *self.tested]}

    @functools.cached_property
    def contents(self) -> dict[str, list[str]]:
        """What keys of cells say of each."""
        return {name: [name, content_hash(case)] for name, case in self.every.items()}


@dataclass(frozen=True)
class CellCases:
    """What a cell learns from, what it may look at besides, what it is also scored on, and its post-processing."""

    support: list[LoadedCase]
    others: list[LoadedCase]
    left_out: list[LoadedCase]
    postprocess: Postprocessing


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """Return a cell that was computed under the same settings."""
    try:
        content = load_record(path)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        logger.warning("%s It is computed again.", error)
        return None
    if content.get("key") != key or not isinstance(content.get("rows"), list):
        logger.warning("%s was computed with other settings or data; it is computed again.", path)
        return None
    return content
