"""Tables of objects, one for all cases: their boxes, and what is measured of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from medmdm.files import plain_cell, table_text
from medmdm.segment.formats.base import RunFormat, Segmented
from medmdm.segment.formats.measurements import object_scores
from medmdm.segment.postprocessing import boxes


class _Table(RunFormat):
    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        # Names are text, also one such as "NA" or "007".
        names = {"case": str, "class_name": str}
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
        for name in names.keys() & set(table.columns):
            table[name] = table[name].map(plain_cell)
        return {str(case): rows for case, rows in table.groupby("case", sort=False)}

    def text(self, pieces: Mapping[str, Any]) -> str:
        columns = dict.fromkeys(name for piece in pieces.values() for name in piece.columns)
        rows = [row for piece in pieces.values() for row in piece.to_dict("records")]
        return table_text(pd.DataFrame(rows, columns=list(columns)))


class BoxTable(_Table):
    """``boxes.csv``: the boxes of instances, see :func:`medmdm.segment.postprocessing.boxes`, and where probabilities
    were kept their ``score``: the mean probability of the object's class over its pixels.
    """  # noqa: D205

    file: ClassVar[str] = "boxes.csv"

    def describe(self, made: Segmented) -> pd.DataFrame | None:
        if made.instances is None:
            return None
        case = made.case
        table = boxes(case.in_place(made.instances), case.in_place(made.mask))
        if made.probabilities is not None:
            table["score"] = object_scores(made.instances, made.mask, made.probabilities)
        return table.assign(case=case.name)


@dataclass(frozen=True)
class ObjectTable(_Table):
    """``objects.csv``: each object's class, area, perimeter, eccentricity, equivalent diameter, centroid and the mean
    probability of its class; the columns are those of :func:`medmdm.segment.formats.measurements.measure`.

    Objects are the instances of the post-processing, or without any the connected parts of each class. Sizes of
    pictures are in pixels and, where the spacing is known, in µm; of volumes in voxels and mm³.

    Args:
        mean_probability: needs the probabilities of the whole image in memory.
    """  # noqa: D205

    mean_probability: bool = True
    file: ClassVar[str] = "objects.csv"

    @property
    def needs_probabilities(self) -> bool:  # type: ignore[override]
        """Whether probabilities have to be kept for it."""
        return self.mean_probability

    def describe(self, made: Segmented) -> pd.DataFrame:
        table = made.measured(made.objects)
        if not self.mean_probability:
            table = table.drop(columns="mean_probability", errors="ignore")
        names = made.origin.class_names
        table.insert(2, "class_name", [names[number] for number in table["class"]])
        table.insert(0, "case", made.case.name)
        return table
