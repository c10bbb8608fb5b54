"""The mean of a metric over cases, how far cases spread, and what counts as one observation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medmdm.errors import UserError, counted, nearest
from medmdm.patients import patient_id
from medmdm.stats.intervals import CONFIDENCE, Intervals, Result, intervals, json_ready

ENOUGH_PATIENTS = 8  # fewer patients than this say too little about others: then images are counted, with a warning
SMALL = 20  # below this number of units a summary warns; docs/statistics.md has the coverage


@dataclass(frozen=True)
class Units:
    """Values of independent observations."""

    name: str  # "patients" or "images"
    values: NDArray[np.float64]  # finite, one for each of them
    n_patients: int | None  # that have a value; None where they are not known
    warnings: tuple[str, ...]  # sentences that belong next to every number made from the values


def independent_units(values: NDArray[np.float64], groups: Iterable[Any] | None = None) -> Units:
    """Average the images of each patient, where there are enough patients.

    Args:
        values: one for each image (or volume); those that are not finite are left out.
        groups: the patient of each, see :func:`medmdm.patients.patient_id`; ``None`` or NaN where not known.

    Raises:
        ValueError: ``groups`` has another length.
    """
    patients = pd.Series(list(groups) if groups is not None else [None] * len(values), dtype=object)
    if len(patients) != len(values):
        raise ValueError(f"there are {len(values)} values and patients for {len(patients)} of them")
    defined = np.isfinite(values)
    values, patients = values[defined], patients[defined]
    name, n_patients, warnings = "images", None, []
    missing, as_if = int(patients.isna().sum()), "images are counted as if they were independent"
    if missing < len(patients):
        names = patients.where(patients.notna(), None).map(patient_id)
        n_patients = int(names.nunique())
        if missing:
            warnings.append(f"{missing} of {len(values)} images have no patient: {as_if}.")
        elif n_patients >= ENOUGH_PATIENTS:
            name = "patients"
            values = pd.Series(values).groupby(names.to_numpy()).mean().to_numpy()
        elif n_patients < len(values):
            few = f"Only {counted(n_patients, 'patient')}: their {len(values)} {as_if}"
            warnings.append(f"{few}, so that intervals are too narrow.")
    if not len(values):
        warnings.append("No case has a value.")
    elif len(values) < SMALL:
        warnings.append(f"Only {counted(len(values), name[:-1])}: intervals cover less than they claim, or say little.")
    return Units(name, values, n_patients, tuple(warnings))


PAPER_LABELS = {
    "dice": "Dice as in the paper: the mean over images of the pixel Dice",
    "iou": "IoU as in the paper (GlaS): d / (2 - d) of that mean Dice d, not a measured IoU",
    "aji": '"AJI" as in the paper (MoNuSeg): AJI of binary maps, which is the mean over images of the pixel IoU',
}


def paper_block(dices: ArrayLike) -> dict[str, Any]:
    """Report in the paper's conventions (Pan et al. 2023, arXiv 2308.05695), labelled as such.

    Args:
        dices: pixel Dice of the foreground of each image, ``[images]``, or of several classifiers on the same images,
            ``[classifiers, images]``; NaN where an image has neither truth nor prediction.

    Returns:
        ``dice``, ``iou`` and ``aji``, each with ``label``, ``mean`` (over classifiers) and ``sd`` (over classifiers,
        n - 1; ``None`` for one); ``classifiers``, ``images``, and ``undefined``: images left out because a classifier
        has no value for them. Shares, not percent.

    Raises:
        ValueError: ``dices`` has no images, or other than one or two axes.
    """
    values = np.atleast_2d(np.asarray(dices, np.float64))
    if values.ndim != 2 or not values.size:
        raise ValueError(f"pixel Dice of [classifiers, images] is needed, got shape {values.shape}")
    defined = np.isfinite(values).all(0)
    # Without an image that has a value there is nothing to average: NaN, None in the result.
    values = values[:, defined] if defined.any() else np.full((len(values), 1), np.nan)
    mean = values.mean(1)
    columns = {"dice": mean, "iou": mean / (2 - mean), "aji": (values / (2 - values)).mean(1)}
    block: dict[str, Any] = {
        name: {"label": PAPER_LABELS[name], "mean": of.mean(), "sd": of.std(ddof=1) if len(of) > 1 else None}
        for name, of in columns.items()
    }
    block |= {"classifiers": len(values), "images": int(defined.sum()), "undefined": int((~defined).sum())}
    return json_ready(block)


BCA_FROM = 40  # units from which the bootstrap's interval is the better one; docs/statistics.md has the coverage


@dataclass(frozen=True)
class Summary(Result):
    """A metric over the cases of a data set.

    Args:
        unit: what was counted, ``"patients"`` (the mean of each one's images is one value) or ``"images"``.
        n: number of units with a value; what follows is NaN where it is 0, intervals and ``sd`` where it is 1.
        mean: mean over units.
        median: median over units.
        sd: standard deviation over units (n - 1).
        intervals: of the mean.
        n_cases: images or volumes with a value.
        case_mean: mean over these; differs from ``mean`` where patients have different numbers of images.
        n_patients: patients with a value; ``None`` where they are not known.
        undefined: cases without a value (NaN), left out of everything above.
        infinite: cases with an infinite distance (one side empty), left out of everything above.
        warnings: sentences to print with the numbers.
    """

    unit: str
    n: int
    mean: float
    median: float
    sd: float
    intervals: Intervals
    n_cases: int
    case_mean: float
    n_patients: int | None
    undefined: int
    infinite: int
    warnings: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """The interval to print when there is room for one: t for few units, BCa for many."""
        return self.intervals.bca_interval if self.n >= BCA_FROM else self.intervals.t_interval

    @property
    def interval_name(self) -> str:
        """Which one :attr:`interval` is: ``"t"`` or ``"BCa"``."""
        return "BCa" if self.n >= BCA_FROM else "t"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON, with the interval to print."""
        return super().as_dict() | {"interval": json_ready(self.interval), "interval_name": self.interval_name}


def summarise(values: ArrayLike, groups: Iterable[Any] | None = None, confidence: float = CONFIDENCE) -> Summary:
    """Summarise a metric over cases.

    Args:
        values: the metric of each case (image or whole volume, never pixels or slices), ``[cases]``; NaN where it is
            undefined, infinite for a distance to nothing. Neither enters the mean; both are counted and warned of.
        groups: the patient of each case, ``None`` where not known.
        confidence: nominal coverage of the intervals.

    Raises:
        ValueError: ``values`` is not a list, or ``groups`` has another length.
        UserError: ``confidence`` does not lie between 0 and 1.
    """
    cases = np.asarray(values, np.float64)
    if cases.ndim != 1:
        raise ValueError(f"one value per case is needed, got an array of shape {cases.shape}")
    undefined, infinite = int(np.isnan(cases).sum()), int(np.isinf(cases).sum())
    units = independent_units(cases, groups)
    warnings = list(units.warnings)
    if undefined:
        warnings.append(f"{undefined} of {len(cases)} cases have no value (nothing to score) and are left out.")
    if infinite:
        far = f"{infinite} of {len(cases)} cases are infinitely far off (prediction or truth is empty)"
        warnings.append(f"{far} and left out of the mean: compare it only together with this number.")
    defined = cases[np.isfinite(cases)]
    n = len(units.values)
    return Summary(
        unit=units.name,
        n=n,
        mean=float(units.values.mean()) if n else math.nan,
        median=float(np.median(units.values)) if n else math.nan,
        sd=float(units.values.std(ddof=1)) if n > 1 else math.nan,
        intervals=intervals(units.values, confidence),
        n_cases=len(defined),
        case_mean=float(defined.mean()) if n else math.nan,
        n_patients=units.n_patients,
        undefined=undefined,
        infinite=infinite,
        warnings=tuple(warnings),
    )


def subgroups(
    cases: pd.DataFrame, column: str, value: str, patient: str | None = None, confidence: float = CONFIDENCE
) -> dict[str, Summary]:
    """Summarise a metric for each value of a column (grade, organ, scanner).

    The intervals are of each subgroup on its own; they are no test of a difference between subgroups.

    Args:
        cases: one row per case.
        column: the column to divide by; cases without an entry form the group ``"(none)"``.
        value: the column of the metric.
        patient: the column of patients.
        confidence: nominal coverage of the intervals.

    Returns:
        The summaries by the column's values (numbers in order, then text).

    Raises:
        UserError: a column is missing.
    """
    for name in (column, value, patient):
        if name is not None and name not in cases.columns:
            known = nearest(name, map(str, cases.columns))
            raise UserError(f"The cases have no column {name!r}{known}: choose from {', '.join(map(str, cases))}.")
    keys = cases[column].map(lambda entry: "(none)" if pd.isna(entry) or entry == "" else str(entry))
    numbers = pd.to_numeric(cases[column], errors="coerce")
    ordered = pd.DataFrame({"key": keys, "number": numbers}).sort_values(["number", "key"])["key"].unique()
    parts = {key: cases[keys == key] for key in ordered}
    return {key: summarise(part[value], patient and part[patient], confidence) for key, part in parts.items()}


def count_empty(n_pred: ArrayLike, n_true: ArrayLike) -> dict[str, int]:
    """Count the cases where prediction, truth or both hold nothing, from each one's number of pixels or instances.

    Returns:
        ``both``, ``pred`` (only the prediction is empty: missed) and ``true`` (only the truth is: a false alarm).
    """
    no_pred, no_true = np.asarray(n_pred) == 0, np.asarray(n_true) == 0
    empty = {"both": no_pred & no_true, "pred": no_pred & ~no_true, "true": no_true & ~no_pred}
    return {name: int(cases.sum()) for name, cases in empty.items()}
