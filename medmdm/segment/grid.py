"""The cells of a study: backbones, heads, numbers of labelled images, draws of them and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medmdm.errors import UserError, counted


@dataclass(frozen=True)
class Cell:
    """One fit of a study and its scores on the test cases."""

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
