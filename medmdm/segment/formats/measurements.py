"""What is measured of objects: how large they are, how round, where they lie, and how sure the segmenter was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

_DIGITS = 7  # that are kept of a measurement
_ROWS = 1024  # that are looked at at once
_OVERLAP = 8  # of parts: more rows than the estimator of perimeters looks over
_SQUARE = 0.01  # how far the sides of a slide's pixels may differ, which rounding to whole pixels makes them

#: Columns of pictures, and how QuPath would call them; of sizes in pixels only where the pixels' own is not known.
QUPATH = {
    "area_um2": "Area µm^2", "perimeter_um": "Perimeter µm", "equivalent_diameter_um": "Equivalent diameter µm",
    "area_px": "Area px^2", "perimeter_px": "Perimeter px", "equivalent_diameter_px": "Equivalent diameter px",
    "eccentricity": "Eccentricity", "mean_probability": "Mean probability",
}  # fmt: skip


def measure(
    labels: np.ndarray,
    mask: np.ndarray,
    probabilities: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    shift: Sequence[int] = (0, 0),
) -> pd.DataFrame:
    """Measure objects (:func:`skimage.measure.regionprops`), a row each, by rising label.

    Args:
        labels: ``[H, W]`` or ``[I, J, K]``, 0 is background.
        mask: class numbers of the same shape; an object's class is that of its first pixel.
        probabilities: ``[classes, ...]``; None for no ``mean_probability``.
        spacing: mm between pixels along each axis; None for sizes in pixels alone.
        shift: added to the centroids.

    Returns:
        ``label`` and ``class``. Of pictures ``area_px``, ``perimeter_px``, ``equivalent_diameter_px`` and, with a
        spacing, the same as ``area_um2``, ``perimeter_um``, ``equivalent_diameter_um``; ``eccentricity`` (0 a circle,
        to 1; of the shape in mm where it is known), ``centroid_row`` and ``centroid_column`` (pixel centres are whole
        numbers). The perimeter in µm is empty where pixels are not square: its estimator knows squares only. Of volumes
        ``voxels``, ``volume_mm3``, ``equivalent_diameter_mm``, ``centroid_i``, ``_j``, ``_k`` (array indices).
        ``mean_probability``: of the object's class over its pixels.
    """
    from skimage.measure import perimeter, regionprops  # slow to import

    steps = None if spacing is None else [float(step) for step in spacing]
    axes = ("row", "column") if labels.ndim == 2 else ("i", "j", "k")
    square = steps is not None and math.isclose(steps[0], steps[1], rel_tol=1e-6)
    rows: list[dict[str, Any]] = []
    regions = regionprops(labels.astype(np.int32), spacing=[1.0] * labels.ndim if steps is None else steps)
    classes = [int(mask[tuple(region.coords[0])]) for region in regions]
    means = [math.nan] * len(regions)
    if probabilities is not None:
        means = _means(labels, [int(region.label) for region in regions], classes, probabilities)
    for region, number, mean in zip(regions, classes, means, strict=True):
        count = len(region.coords)
        row: dict[str, Any] = {"label": int(region.label), "class": number}
        if labels.ndim == 2:
            edge = float(perimeter(region.image))
            row |= {"area_px": count, "perimeter_px": edge, "equivalent_diameter_px": math.sqrt(4 * count / math.pi)}
            if steps is not None:
                area = count * steps[0] * steps[1] * 1e6
                row |= {
                    "area_um2": area, "perimeter_um": edge * steps[0] * 1e3 if square else math.nan,
                    "equivalent_diameter_um": math.sqrt(4 * area / math.pi),
                }  # fmt: skip
            row["eccentricity"] = float(region.eccentricity)
        else:
            row["voxels"] = count
            if steps is not None:
                volume = count * math.prod(steps)
                row |= {"volume_mm3": volume, "equivalent_diameter_mm": (6 * volume / math.pi) ** (1 / 3)}
        centre = region.coords.mean(axis=0)
        row |= {f"centroid_{axis}": c + s for axis, c, s in zip(axes, centre, shift, strict=True)}
        if probabilities is not None:
            row["mean_probability"] = mean
        rows.append({key: _rounded(value) for key, value in row.items()})
    return pd.DataFrame(rows, columns=_columns(labels.ndim, steps is not None, probabilities is not None))


def measure_classes(
    labels: np.ndarray, mask: np.ndarray, mpp: Sequence[float], shares: tuple[np.ndarray, np.ndarray]
) -> pd.DataFrame:
    """Measure what each label covers, part by part: of a large mask :func:`measure` would list every pixel.

    Args:
        labels: ``[H, W]``, 0 is background.
        mask: class numbers of the same shape; of a label all pixels have one class.
        mpp: µm between rows, and between columns.
        shares: of each row ``[H]`` and column ``[W]``, how much of it lies on the image: the last may reach over it.

    Returns:
        A row each, by rising label: ``label``, ``class``, ``area_um2`` and ``perimeter_um``, which is empty where
        pixels are not square; the latter is the estimator of :func:`measure`.
    """
    from skimage.measure import perimeter  # slow to import

    square, side = abs(mpp[0] - mpp[1]) <= _SQUARE * min(mpp), (mpp[0] + mpp[1]) / 2
    areas, edges, classes = dict[int, float](), dict[int, float](), dict[int, int]()
    for start in range(0, len(labels), _ROWS):
        part = labels[start : start + _ROWS + _OVERLAP]
        # Sums of what is local: of all that parts have in common, their own ends included, one is too many.
        shared = part[_ROWS:]
        for number in np.unique(part[part != 0]).tolist():
            here = part == number
            if number not in classes:
                classes[number] = int(mask[start : start + len(part)][here][0])
            own = here[:_ROWS]
            weights = shares[0][start : start + len(own)]
            areas[number] = areas.get(number, 0.0) + float(weights @ (own @ shares[1]))
            edges[number] = edges.get(number, 0.0) + float(perimeter(here))
            if start + _ROWS < len(labels):
                edges[number] -= float(perimeter(shared == number))
    rows = [
        {
            "label": number, "class": classes[number], "area_um2": _rounded(areas[number] * mpp[0] * mpp[1]),
            "perimeter_um": _rounded(edges[number] * side if square else math.nan),
        }
        for number in sorted(areas)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["label", "class", "area_um2", "perimeter_um"])


def object_scores(labels: np.ndarray, mask: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """Return how sure the segmenter was of each object, by rising label: ``mean_probability`` of :func:`measure`.

    Args:
        labels: numbers of objects ``[*spatial]``, 0 is background.
        mask: class numbers of the same shape.
        probabilities: ``[classes, *spatial]``.
    """
    numbers, first = np.unique(labels, return_index=True)
    objects = [(int(label), int(mask.flat[place])) for label, place in zip(numbers, first, strict=True) if label]
    means = _means(labels, [label for label, _ in objects], [number for _, number in objects], probabilities)
    return [_rounded(mean) for mean in means]


def qupath_measurements(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what QuPath shows of a row of :func:`measure`."""
    physical = "area_um2" in row
    shown = {k: v for k, v in QUPATH.items() if k in row and not (physical and k.endswith("_px"))}
    return {name: float(row[key]) for key, name in shown.items() if not math.isnan(row[key])}


def _columns(dimensions: int, sized: bool, sure: bool) -> list[str]:
    if dimensions == 2:
        sizes = ["area_px", "perimeter_px", "equivalent_diameter_px"]
        sizes += ["area_um2", "perimeter_um", "equivalent_diameter_um"] * sized
        found = [*sizes, "eccentricity", "centroid_row", "centroid_column"]
    else:
        sizes = ["voxels", *["volume_mm3", "equivalent_diameter_mm"] * sized]
        found = [*sizes, "centroid_i", "centroid_j", "centroid_k"]
    return ["label", "class", *found, *["mean_probability"] * sure]


def _means(
    labels: np.ndarray, numbers: Sequence[int], classes: Sequence[int], probabilities: np.ndarray
) -> list[float]:
    """Return the mean probability of each object's class over the object."""
    found = np.zeros(len(numbers))
    for number in set(classes):
        of_class = [place for place, one in enumerate(classes) if one == number]
        # A single channel of scores is that of class 1.
        values = probabilities[number if len(probabilities) > 1 else 0]
        found[of_class] = ndimage.mean(values, labels, [numbers[place] for place in of_class])
    return [float(value) for value in found]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
