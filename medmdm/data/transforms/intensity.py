"""Which intensities become −1 and 1: the range of the file's type, a CT window, percentiles of a volume or picture."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from medmdm.data.transforms.spatial import EachKey, file_name, plain_tensor
from medmdm.errors import UserError, counted, nearest

# Values that stand for black and white in each type that has only one sensible answer.
_FULL_RANGE = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
# (centre, width) in Hounsfield units, as radiology consoles have them.
CT_WINDOWS = {
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft_tissue": (50.0, 400.0),
    "abdomen": (50.0, 400.0),
    "liver": (60.0, 160.0),
    "bone": (400.0, 1800.0),
    "spine": (50.0, 250.0),
    "angiography": (300.0, 600.0),
    "full": (1000.0, 4096.0),
}


def window_range(window: str | Sequence[float] | None) -> list[float] | None:
    """Return the [low, high] in Hounsfield units of a CT window.

    Args:
        window: a key of :data:`CT_WINDOWS`, [centre, width], or ``None`` for ``None``.

    Raises:
        UserError: the name is unknown or the width is not above 0.

    Example:
        >>> window_range("lung")
        [-1350.0, 150.0]
        >>> window_range([40, 80])
        [0.0, 80.0]
    """
    if window is None:
        return None
    if isinstance(window, str):
        if window not in CT_WINDOWS:
            raise UserError(
                f"the window {window!r} is unknown{nearest(window, CT_WINDOWS)}: use one of {', '.join(CT_WINDOWS)}, "
                "or [centre, width]."
            )
        window = CT_WINDOWS[window]
    if not _is_pair(window) or not window[1] > 0:
        raise UserError(f"the window is {list(window)}: give [centre, width] with a width above 0, both finite.")
    centre, width = map(float, window)
    return [centre - width / 2, centre + width / 2]


def _is_pair(values: Sequence[Any]) -> bool:
    """Whether they are two finite numbers."""
    return len(values) == 2 and all(isinstance(value, Real) and math.isfinite(value) for value in values)


def scaled_range(
    intensity_range: Sequence[float] | None = None, window: str | Sequence[float] | None = None
) -> list[float] | None:
    """Return the [low, high] that become −1 and 1, by an intensity range or a CT window; ``None`` without either.

    Raises:
        UserError: both are given, or the window is wrong.
    """
    if intensity_range is not None and window is not None:
        raise UserError("both intensity_range and window are given: keep one.")
    if intensity_range is not None:
        return [float(value) for value in intensity_range]
    return window_range(window)


def percentiles_record(percentiles: Sequence[float] | None, nonzero: bool = False) -> dict[str, Any] | None:
    """Return what the plan says of percentiles, ``None`` where none are used."""
    if percentiles is None:
        return None
    lower, upper = check_percentiles(percentiles)
    return {"lower": lower, "upper": upper, "nonzero": nonzero}


def check_percentiles(percentiles: Sequence[float]) -> tuple[float, float]:
    """Return (lower, upper).

    Raises:
        UserError: they are not two rising numbers from 0 to 100.
    """
    both = [n for n in percentiles if isinstance(n, (int, float))] if isinstance(percentiles, Sequence) else []
    if len(both) != 2 or len(percentiles) != 2 or not 0 <= both[0] < both[1] <= 100:
        raise UserError(f"percentiles is {percentiles!r}: give [lower, upper] with 0 <= lower < upper <= 100.")
    return float(both[0]), float(both[1])


def scale_to_range(img: torch.Tensor, ranges: Sequence[Sequence[float]]) -> torch.Tensor:
    """Scale each channel so that its [low, high] becomes [−1, 1], and clip.

    Args:
        img: ``[C, *spatial]``.
        ranges: one for all channels; or one for each of N groups of C / N channels (sequences with their
            neighbouring slices). A range without width gives zeros.

    Returns:
        ``[C, *spatial]``, float32.

    Raises:
        UserError: N does not divide C.
    """
    if len(img) % len(ranges):
        raise UserError(
            f"{counted(len(ranges), 'intensity range', 'does', 'do')} not fit an image of "
            f"{counted(len(img), 'channel')}."
        )
    shape = (-1, *[1] * (img.ndim - 1))
    # In float64: 16-bit intensities with a large offset keep all their steps.
    bounds = torch.tensor(ranges, dtype=torch.float64).repeat_interleave(len(img) // len(ranges), dim=0)
    low, width = bounds[:, 0].reshape(shape), (bounds[:, 1] - bounds[:, 0]).reshape(shape)
    scaled = (img.to(torch.float64) - low) / width.clamp_min(torch.finfo(torch.float64).tiny) * 2 - 1
    return torch.where(width > 0, scaled.clamp(-1, 1), 0).to(torch.float32)


def is_flat(image: torch.Tensor, ranges: Sequence[Sequence[float]] | None = None) -> bool:
    """Whether nothing is left to be seen of an image once it is scaled: one value, or ranges without width.

    Args:
        image: ``[C, *spatial]``, as in its file.
        ranges: [low, high] of each channel where they come from percentiles of its own.
    """
    if ranges is not None:
        return not any(low < high for low, high in ranges)
    if not image.numel():
        return False
    first = image.flatten()[0]
    return all(bool((row == first).all()) for channel in image for row in channel)  # the first that differs ends it


class ScaleByWindow(Transform):
    """Scale a CT image to [−1, 1] by a window; intensities beyond it are clipped.

    Args:
        window: a key of :data:`CT_WINDOWS`, or [centre, width] in Hounsfield units.
    """

    def __init__(self, window: str | Sequence[float]) -> None:
        self.range = window_range(window) or []

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        return scale_to_range(img, [self.range])


class ScaleByPercentiles(Transform):
    """Scale each channel of an image or volume to [−1, 1] by percentiles of its own intensities, and clip.

    For slices of volumes use the ``percentiles`` of :func:`medmdm.data.slice_volumes` instead, which are the volume's.

    Args:
        lower: percentage whose intensity becomes −1.
        upper: percentage whose intensity becomes 1.
        nonzero: whether voxels of value 0 (background of skull-stripped or defaced images) are left out of the count.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, nonzero: bool = False) -> None:
        self.bounds = check_percentiles([lower, upper])
        self.nonzero = nonzero

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        return scale_to_range(img, self.ranges(img))

    def ranges(self, img: torch.Tensor) -> list[list[float]]:
        """Return the [low, high] of each channel."""
        ranges = []
        for channel in plain_tensor(img).cpu().numpy():
            ordered = np.sort(channel.ravel())
            if self.nonzero and ordered.any():
                ordered = ordered[ordered != 0]
            ranges.append(values_at(ordered, np.array(self.bounds) / 100 * (len(ordered) - 1)))
        return ranges


def values_at(ordered: np.ndarray, at: np.ndarray) -> list[float]:
    """Return what stands at ``at`` (numbers from 0 to n − 1) in ``[n]`` rising values, in between by interpolation."""
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    low, high = ordered[below].astype(np.float64), ordered[above].astype(np.float64)
    values: list[float] = (low + (at - below) * (high - low)).tolist()
    return values


class PercentileRanged(MapTransform):
    """Note percentiles of a picture's channels as the range that :class:`ScaleIntensityByDtyped` scales to [−1, 1].

    It takes the colour of light and stain out of pictures. Slices of volumes come with the range of their volume, which
    stays. To be run on whole pictures: a crop must be scaled as the picture that it comes from.

    Args:
        keys: the key of the image ``[C, *spatial]``.
        percentiles: [lower, upper] percentages; None notes nothing.
        nonzero: whether pixels of value 0 are left out of the count.
        range_key: under which the [low, high] of each channel are put, unless it is there already.

    Raises:
        UserError: the percentages are out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        percentiles: Sequence[float] | None = None,
        nonzero: bool = False,
        range_key: str = "intensity_range",
    ) -> None:
        super().__init__(keys)
        self.scale = None if percentiles is None else ScaleByPercentiles(*check_percentiles(percentiles), nonzero)
        self.range_key = range_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.scale is not None and d.get(self.range_key) is None:
            for key in self.key_iterator(d):
                d[self.range_key] = self.scale.ranges(d[key])
        return d


class ScaleByWindowd(EachKey):
    """Dictionary version of :class:`ScaleByWindow`."""

    def __init__(self, keys: KeysCollection, window: str | Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, ScaleByWindow(window), allow_missing_keys)


class ScaleByPercentilesd(EachKey):
    """Dictionary version of :class:`ScaleByPercentiles`."""

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        nonzero: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ScaleByPercentiles(lower, upper, nonzero), allow_missing_keys)


def file_dtype_tensor(image: torch.Tensor) -> torch.Tensor:
    """Return ``image`` as a plain tensor in its file's own type where that loses nothing.

    MONAI widens types on loading (16-bit values become 32-bit integers, or all becomes float by default); the reader's
    metadata entry ``original_dtype`` says what the file has.
    """
    plain = plain_tensor(image)
    target = getattr(torch, _file_dtype(image), None)
    if target is None or plain.dtype == target:
        return plain
    narrow = plain.to(target)
    return narrow if torch.equal(narrow.to(plain.dtype), plain) else plain


# torch lacks most operations on these types; MONAI loads them so.
_WIDER = {"bool": np.uint8, "uint16": np.int32, "uint32": np.int64}


def as_monai_loads(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels in a type that torch can compute with: bilevel ones in 8 bits, unsigned ones above 8 bits wider."""
    return torch.as_tensor(pixels.astype(_WIDER.get(pixels.dtype.name, pixels.dtype), copy=False))


def _file_dtype(image: torch.Tensor) -> str:
    own = str(image.dtype).removeprefix("torch.")
    return str(image.meta.get("original_dtype", own)) if isinstance(image, MetaTensor) else own


class ScaleIntensityByDtype(Transform):
    """Scale intensities to [−1, 1] by the range of the file's type: ``x / 127.5 − 1`` for 8 bits, and so on.

    Args:
        intensity_range: (low, high) that become −1 and 1, beyond which values are clipped. Needed for floats and
            signed integers, which say nothing about their range, and useful where a 16-bit file holds fewer bits
            (12 bits: 0 and 4095). ``None`` takes the full range of the type.
    """

    def __init__(self, intensity_range: Sequence[float] | None = None) -> None:
        if intensity_range is not None and not (_is_pair(intensity_range) and intensity_range[0] < intensity_range[1]):
            raise UserError(
                f"intensity_range is {list(intensity_range)}: give [low, high] with low < high, both finite."
            )
        self.intensity_range = intensity_range

    def __call__(self, img: torch.Tensor, ranges: Sequence[Sequence[float]] | None = None) -> torch.Tensor:
        """Scale an image ``[C, *spatial]``: by ``ranges``, its channels' own (:func:`scale_to_range`), if given."""
        if ranges is not None:
            return scale_to_range(img, ranges)
        full_range = self.intensity_range or _FULL_RANGE.get(_file_dtype(img))
        if full_range is None:
            raise UserError(
                f"{file_name(img)} holds {_file_dtype(img)} values, whose range is not known: set intensity_range to "
                "[low, high], the values that become -1 and 1, where a network is trained; for one that is there, "
                "convert the image to 8 or 16 bits."
            )
        low, high = full_range
        scaled = img.to(torch.float32, copy=True)  # then in place: a large picture is in memory once
        scaled.sub_(low).div_((high - low) / 2).sub_(1)
        return scaled if self.intensity_range is None else scaled.clamp_(-1, 1)


class ScaleIntensityByDtyped(EachKey):
    """Dictionary version of :class:`ScaleIntensityByDtype`.

    Args:
        keys: keys of images.
        intensity_range: (low, high) that become −1 and 1; ``None``: the full range of the file's type.
        range_key: key of an entry's own [low, high] of each channel, which goes before ``intensity_range``;
            :func:`medmdm.data.slice_volumes` puts there the percentiles of the volume, and
            :class:`medmdm.data.PercentileRanged` those of a picture.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensity_range: Sequence[float] | None = None,
        range_key: str = "intensity_range",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ScaleIntensityByDtype(intensity_range), allow_missing_keys, range_key)
