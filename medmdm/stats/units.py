"""What counts as one observation: a patient where there are enough of them, else an image.

Images of one patient resemble each other. Counted as if they were independent they make every interval too narrow and
every difference too certain; so the images of a patient are averaged first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["ENOUGH_PATIENTS", "SMALL", "Units", "independent_units"]

ENOUGH_PATIENTS = 8  # fewer patients than this say too little about others: then images are counted, with a warning
SMALL = 20  # below this number of units a summary warns; docs/statistics.md has the coverage


@dataclass(frozen=True)
class Units:
    """Values of independent observations.

    Args:
        name: ``"patients"`` or ``"images"``.
        values: finite, one for each of them.
        n_patients: how many patients have a value; ``None`` where they are not known.
        warnings: sentences that belong next to every number made from the values.
    """

    name: str
    values: NDArray[np.float64]
    n_patients: int | None
    warnings: tuple[str, ...]


def independent_units(values: NDArray[np.float64], groups: Iterable[Any] | None = None) -> Units:
    """Average the images of each patient, where there are enough patients.

    Args:
        values: one for each image (or volume); those that are not finite are left out.
        groups: the patient of each; ``None`` or NaN where not known.

    Raises:
        ValueError: ``groups`` has another length.
    """
    patients = pd.Series(list(groups) if groups is not None else [None] * len(values), dtype=object)
    if len(patients) != len(values):
        raise ValueError(f"there are {len(values)} values and patients for {len(patients)} of them")
    defined = np.isfinite(values)
    values, patients = values[defined], patients[defined]
    name, n_patients = "images", None
    warnings = []
    missing = int(patients.isna().sum())
    if missing < len(patients):
        names = patients.astype(str)
        n_patients = int(names[patients.notna()].nunique())
        if missing:
            warnings.append(
                f"{missing} of {len(values)} images have no patient: images are counted as if they were independent."
            )
        elif n_patients >= ENOUGH_PATIENTS:
            name = "patients"
            values = pd.Series(values).groupby(names.to_numpy()).mean().to_numpy()
        elif n_patients < len(values):
            warnings.append(
                f"Only {n_patients} patients: their {len(values)} images are counted as if they were independent, so "
                "that intervals are too narrow."
            )
    if not len(values):
        warnings.append("No case has a value.")
    elif len(values) < SMALL:
        warnings.append(f"Only {len(values)} {name}: intervals cover less than they claim, or say little.")
    return Units(name, values, n_patients, tuple(warnings))
