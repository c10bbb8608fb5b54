"""Transforms that MONAI does not have: cut a region, pad by reflection then edge, scale by the file's type."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from medmdm.data.transforms.intensity import scale_to_range
from medmdm.errors import UserError

__all__ = [
    "CutRegion",
    "CutRegiond",
    "PadToSize",
    "PadToSized",
    "ScaleIntensityByDtype",
    "ScaleIntensityByDtyped",
    "cut_region",
    "file_dtype_tensor",
]

# Values that stand for black and white in each type that has only one sensible answer.
_FULL_RANGE = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


def cut_region(image: Any, region: Mapping[str, Sequence[int]] | None, name: str = "the image") -> Any:
    """Return the part of ``image`` that ``region`` names.

    Args:
        image: array or tensor ``[C, H, W]``.
        region: ``{"rows": [first, end], "columns": [first, end]}`` in pixels, ``end`` excluded; a key that is left
            out means all; ``None`` means the whole image.
        name: file name for the error.

    Raises:
        UserError: the region reaches outside the image.
    """
    if region is None:
        return image
    slices = []
    for axis, key in ((1, "rows"), (2, "columns")):
        size = image.shape[axis]
        first, end = region.get(key, (0, size))
        if not 0 <= first < end <= size:
            raise UserError(
                f"{name} has {size} {key}, but its region asks for {key} {first} to {end}: correct the region"
            )
        slices.append(slice(first, end))
    return image[:, slices[0], slices[1]]


def file_dtype_tensor(image: torch.Tensor) -> torch.Tensor:
    """Return ``image`` as a plain tensor in its file's own type where that loses nothing.

    MONAI widens types on loading (16-bit values become 32-bit integers, or all becomes float by default); the reader's
    metadata entry ``original_dtype`` says what the file has.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    target = getattr(torch, _file_dtype(image), None)
    if target is None or plain.dtype == target:
        return plain
    narrow = plain.to(target)
    return narrow if torch.equal(narrow.to(plain.dtype), plain) else plain


def _file_dtype(image: torch.Tensor) -> str:
    own = str(image.dtype).removeprefix("torch.")
    return str(image.meta.get("original_dtype", own)) if isinstance(image, MetaTensor) else own


def _file_name(image: Any) -> str:
    return str(image.meta.get("filename_or_obj", "the image")) if isinstance(image, MetaTensor) else "the image"


class CutRegion(Transform):
    """Cut an image ``[C, H, W]`` to a region; see :func:`cut_region`."""

    def __call__(self, img: Any, region: Mapping[str, Sequence[int]] | None = None) -> Any:
        return cut_region(img, region, _file_name(img))


class CutRegiond(MapTransform):
    """Cut images to the region their data-list entry names; entries without one stay whole.

    Args:
        keys: keys of images ``[C, H, W]``.
        region_key: key of the region, ``{"rows": [first, end], "columns": [first, end]}``.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, region_key: str = "region", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.region_key = region_key
        self.cut = CutRegion()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.cut(d[key], d.get(self.region_key))
        return d


class PadToSize(Transform):
    """Pad images smaller than ``spatial_size`` on both sides: by reflection as far as it reaches, then by the edge.

    A side of n pixels can be reflected by n − 1. MONAI's ``SpatialPad(mode="reflect")`` fails beyond that, and images
    of one or two pixels have nothing to reflect.

    Args:
        spatial_size: least number of pixels along each spatial axis; larger images are left as they are.
    """

    def __init__(self, spatial_size: Sequence[int] | int) -> None:
        self.spatial_size = spatial_size

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        shape = img.shape[1:]
        wanted = [self.spatial_size] * len(shape) if isinstance(self.spatial_size, int) else self.spatial_size
        missing = [max(0, want - size) for want, size in zip(wanted, shape, strict=True)]
        if not any(missing):
            return img
        both = [(m // 2, m - m // 2) for m in missing]
        reflected = [(min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(both, shape, strict=True)]
        rest = [(a - ra, b - rb) for (a, b), (ra, rb) in zip(both, reflected, strict=True)]
        array = img.numpy() if not isinstance(img, MetaTensor) else img.as_tensor().numpy()
        array = np.pad(array, [(0, 0), *reflected], mode="reflect")
        array = np.pad(array, [(0, 0), *rest], mode="edge")
        padded = torch.from_numpy(array)
        return MetaTensor(padded, meta=img.meta) if isinstance(img, MetaTensor) else padded


class PadToSized(MapTransform):
    """Dictionary version of :class:`PadToSize`.

    Args:
        keys: keys of images ``[C, *spatial]``.
        spatial_size: least number of pixels along each spatial axis.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, spatial_size: Sequence[int] | int, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pad = PadToSize(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.pad(d[key])
        return d


class ScaleIntensityByDtype(Transform):
    """Scale intensities to [−1, 1] by the range of the file's type: ``x / 127.5 − 1`` for 8 bits, and so on.

    Args:
        intensity_range: (low, high) that become −1 and 1, beyond which values are clipped. Needed for floats and
            signed integers, which say nothing about their range, and useful where a 16-bit file holds fewer bits
            (12 bits: 0 and 4095). ``None`` takes the full range of the type.
    """

    def __init__(self, intensity_range: Sequence[float] | None = None) -> None:
        if intensity_range is not None and not (len(intensity_range) == 2 and intensity_range[0] < intensity_range[1]):
            raise UserError(f"intensity_range is {list(intensity_range)}: give [low, high] with low < high")
        self.intensity_range = intensity_range

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        full_range = self.intensity_range or _FULL_RANGE.get(_file_dtype(img))
        if full_range is None:
            raise UserError(
                f"{_file_name(img)} holds {_file_dtype(img)} values, whose range is not known: set intensity_range to "
                "[low, high], the values that become -1 and 1"
            )
        low, high = full_range
        scaled = (img.to(torch.float32) - low) / ((high - low) / 2) - 1
        return scaled if self.intensity_range is None else scaled.clamp(-1, 1)


class ScaleIntensityByDtyped(MapTransform):
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
        super().__init__(keys, allow_missing_keys)
        self.scale = ScaleIntensityByDtype(intensity_range)
        self.range_key = range_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            own = d.get(self.range_key)
            d[key] = self.scale(d[key]) if own is None else scale_to_range(d[key], own)
        return d
