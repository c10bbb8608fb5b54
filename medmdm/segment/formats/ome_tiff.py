"""Masks of pictures as OME-TIFF, with the size of the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmdm.data.ome_tiff import write_ome_tiff
from medmdm.segment.formats.base import CaseFormat, Segmented, only_pictures


@dataclass(frozen=True)
class OMETiff(CaseFormat):
    """``predictions/<case>.ome.tif``: the class numbers; beside it ``<case>_instances.ome.tif`` where they are found.

    The size of the pixels is written where the data list, the image's own header or ``image_spacing`` says it.

    Args:
        probabilities: also write ``<case>_probabilities.ome.tif``, a channel under the name of each class.
    """

    probabilities: bool = False

    @property
    def needs_probabilities(self) -> bool:  # type: ignore[override]
        """Whether probabilities have to be kept for it."""
        return self.probabilities

    def check(self, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        super().check(entries, class_names)
        only_pictures(self, entries, "the NIfTI mask")

    def write(self, made: Segmented) -> dict[str, str]:
        files: dict[str, str] = {}

        def write(kind: str, values: np.ndarray, channels: Sequence[str] | None = None) -> None:
            name = f"predictions/{made.case.name}{kind}.ome.tif"
            write_ome_tiff(made.folder / name, made.case.in_place(values), made.case.spacing, channels)
            files[f"ome_tiff{kind}"] = name

        write("", made.mask)
        if made.instances is not None:
            write("_instances", made.instances.astype(np.uint16 if made.instances.max(initial=0) < 2**16 else np.int32))
        if self.probabilities and made.probabilities is not None:
            names = made.origin.class_names
            write("_probabilities", made.probabilities, names if len(names) == len(made.probabilities) else None)
        return files
