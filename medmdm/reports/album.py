"""The pictures of a page: which cases stand out, and how many pictures there is room for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmdm.reports.pictures import CasePicture, encode_map, top_value
from medmdm.reports.scoring import ScoredCase
from medmdm.runs.record import MAPS

__all__ = ["BUDGET", "Album", "chosen"]

BUDGET = 16_000_000  # bytes that the pictures of a page may take
_IN_A_ROW = 5


def chosen(cases: Sequence[ScoredCase]) -> list[tuple[str, list[ScoredCase]]]:
    """Choose the worst, median and best five by Dice, fewer where these would overlap.

    Returns:
        Rows with their titles; cases without a Dice are in none.
    """
    ranked = sorted(
        (case for case in cases if not math.isnan(case.scores["dice"])), key=lambda c: (c.scores["dice"], c.number)
    )
    if len(ranked) <= _IN_A_ROW:
        return [("All cases, the worst first", ranked)] if ranked else []
    size = min(_IN_A_ROW, len(ranked) // 3)
    middle = (len(ranked) - size) // 2
    rows = (("worst", ranked[:size]), ("median", ranked[middle : middle + size]), ("best", ranked[::-1][:size]))
    return [(f"The {size} {name} by Dice" if size > 1 else f"The {name} by Dice", row) for name, row in rows]


class Album:
    """The pictures of a page: each is in it once, however often it is shown.

    Args:
        cases: the scored ones.
        budget: bytes that all may take; the cases of the galleries go first, then the others in their order.

    Attributes:
        rows: of the galleries, from :func:`chosen`.
        pictures: by the number of their case.
        missing: how many there was no room for.
        tops: of each kind of map, the value that is drawn lightest, so that cases can be compared.
    """

    def __init__(self, cases: Sequence[ScoredCase], budget: int = BUDGET) -> None:
        self.budget = budget
        self.rows = chosen(cases)
        self.pictures: dict[int, CasePicture] = {}
        drawn = {case.number: case.picture for case in cases if case.picture is not None}
        room = budget
        for number in dict.fromkeys(case.number for row in (*(row for _, row in self.rows), cases) for case in row):
            picture = drawn.get(number)
            if picture is not None and picture.size <= room:
                self.pictures[number] = picture
                room -= picture.size
        self.missing = len(drawn) - len(self.pictures)
        self.tops = {name: top_value([p.maps for p in self.pictures.values()], name) for name in MAPS}

    def drawn_map(self, number: int, name: str) -> bytes:
        """Return a map of a case as a JPEG."""
        return encode_map(self.pictures[number].maps[name], self.tops[name])
