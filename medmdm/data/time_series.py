"""Time series: 4-D NIfTI files whose frames are the neighbours of a slice, instead of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medmdm.data.files.formats import NIFTI_SUFFIXES, errors_as_sentences
from medmdm.data.slices import VolumeStore, slice_entries
from medmdm.data.transforms.intensity import check_percentiles
from medmdm.errors import UserError

#: The "slice axis" whose neighbours are frames.
TIME = "time"
_TIME_UNITS = (0, 8, 16, 24)  # of NIfTI's xyzt_units: unknown, s, ms, µs; others are Hz, ppm and rad/s
_KINDS = 1000  # intent codes from here on say what values are: labels, vectors, matrices; below, statistics
_TIME_SERIES = 2001


def check_time_series(path: str | Sequence[str]) -> None:
    """Refuse what is no series of frames, as far as a header says it.

    Raises:
        UserError: it is several sequences, no NIfTI file, has no fourth axis of two or more (or further ones), or says
            that this axis is something else than time: frequencies, vectors, matrices.
    """
    reads = f"slice_axis {TIME!r} reads 4-D NIfTI files"
    if not isinstance(path, str) or not path.lower().endswith(NIFTI_SUFFIXES):
        name = path if isinstance(path, str) else " + ".join(path)
        raise UserError(f"{name} is no such file: {reads}, one for each series.")
    with errors_as_sentences(Path(path), "truncated, damaged or no volume"):
        image = nib.load(path)
    shape, header = tuple(image.shape), image.header
    if len(shape) < 4 or shape[3] < 2 or any(size > 1 for size in shape[4:]):
        raise UserError(f"{path} has the shape {shape}: {reads}, whose fourth axis are two or more frames.")
    intent = int(header["intent_code"]) if "intent_code" in header else 0
    unit = int(header["xyzt_units"]) & 0x38 if "xyzt_units" in header else 0
    if unit not in _TIME_UNITS or (intent >= _KINDS and intent != _TIME_SERIES):
        what = f"xyzt_units {unit}" if unit not in _TIME_UNITS else f"intent_code {intent}"
        raise UserError(f"{path} says that its fourth axis is not time ({what}): {reads} whose frames it is.")


def frame_entries(
    entry: Mapping[str, Any],
    store: VolumeStore,
    percentiles: Sequence[float] | None = None,
    nonzero: bool = False,
) -> list[dict[str, Any]]:
    """Return one entry per slice and frame of a time series, for :class:`medmdm.data.LoadSliced`.

    Args:
        entry: as of :func:`medmdm.data.slice_entries`; slices are axial unless it names another axis.
        store: where decoded volumes go.
        percentiles: percentages of the intensities of the whole series that become −1 and 1.
        nonzero: whether voxels of value 0 are left out of the percentiles.

    Returns:
        Entries of :func:`medmdm.data.slice_entries` with ``frame`` (number); ``foreground`` and ``constant`` are those
        of the slice at all times, and there is one ``intensity_range`` for all of them. It is found from the quantiles
        of each frame, so that its percentages are exact to 0.05.

    Raises:
        UserError: as :func:`check_time_series`, or the file cannot be read.
    """
    check_time_series(entry["image"])
    slices = slice_entries(entry, store)
    volume = store.get(entry["image"], slices[0]["axis"], entry.get("series_uid"))
    pooled: dict[str, Any] = {}
    if percentiles is not None:
        # Each frame has as many voxels, and its quantiles stand for equal shares of them.
        table = volume.quantiles_nonzero if nonzero else volume.quantiles
        pooled["intensity_range"] = [np.percentile(table, check_percentiles(percentiles)).tolist()]
    return [{**one, **pooled, "frame": frame} for one in slices for frame in range(len(volume.quantiles))]
