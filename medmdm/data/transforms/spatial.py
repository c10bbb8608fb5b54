"""Where the pixels are: cut to a region, padded to a size, resampled to a spacing in mm or to a magnification."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch.nn.functional import interpolate

from medmdm.data.files.units import picture_spacing
from medmdm.data.lists import REGION_AXES, image_names
from medmdm.data.validity import check_pixel_sizes
from medmdm.errors import UserError, warn_once

# An objective of magnification m on the common scanners gives 10 / m micrometres per pixel (40x: 0.25).
_MM_TIMES_MAGNIFICATION = 0.01
_DIFFERENCE = 0.1  # between list and header that is worth a word


class EachKey(MapTransform):
    """Dictionary version of an array transform: the image under each key is changed alike.

    Args:
        keys: keys of images ``[C, *spatial]``.
        transform: from one image to another, given as well what stands under ``beside``.
        allow_missing_keys: don't raise if a key is missing.
        beside: key of what an entry says of all its images, such as its region; the transform gets None where it is
            missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[..., torch.Tensor],
        allow_missing_keys: bool = False,
        beside: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform
        self.beside = beside

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        own = [] if self.beside is None else [d.get(self.beside)]
        for key in self.key_iterator(d):
            d[key] = self.transform(d[key], *own)
        return d


def plain_tensor(image: torch.Tensor) -> torch.Tensor:
    """Return an image without MONAI's metadata."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def file_name(image: Any, unknown: str = "the image") -> str:
    """Return the file that an image was read from, for sentences."""
    return str(image.meta.get("filename_or_obj", unknown)) if isinstance(image, MetaTensor) else unknown


def as_spacing(
    spacing: float | Sequence[float] | None = None,
    magnification: float | None = None,
    name: str = "the config",
    axes: int = 2,
) -> tuple[float, ...] | None:
    """Return (mm between rows, mm between columns) of a spacing or a magnification; ``None`` where neither is given.

    Args:
        spacing: mm, one number or (rows, columns), of whole volumes (slices, rows, columns).
        magnification: of the objective; 40 stands for 0.25 µm, in general 10 / magnification µm.
        name: whose it is, for the error.
        axes: 2, or 3 for whole volumes.

    Raises:
        UserError: both are given, or a number is not above 0.
    """
    if spacing is None and magnification is None:
        return None
    if spacing is not None and magnification is not None:
        raise UserError(f"{name} gives both spacing and magnification: keep one.")
    if magnification is not None:
        numbers = [_MM_TIMES_MAGNIFICATION / magnification if _positive(magnification) else 0.0]
    else:
        numbers = list(ensure_tuple(spacing))
    if len(numbers) not in (1, axes) or not all(_positive(number) for number in numbers):
        several = "" if axes == 2 else f", or {axes} of them"
        raise UserError(
            f"{name} gives {'spacing' if magnification is None else 'magnification'} "
            f"{spacing if magnification is None else magnification!r}: give a number above 0{several} (spacing in mm)."
        )
    return tuple(float(number) for number in (numbers if len(numbers) == axes else numbers * axes))


def listed_spacing(entry: Mapping[str, Any], information: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return (mm between rows, mm between columns) as an entry or else its list gives them; ``None``: neither does.

    Args:
        entry: of a data list, with ``"image"``.
        information: of the list.

    Raises:
        UserError: a number is not above 0.
    """
    for source, name in ((entry, str(entry["image"])), (information, "the data list")):
        for key in ("spacing", "magnification"):  # a spacing is more exact than the objective's number
            if source.get(key) is not None:
                return as_spacing(**{key: source[key]}, name=name)
    return None


def with_spacing(entry: Mapping[str, Any], information: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture's entry with its spacing as the entry, its list or its file's header gives it.

    Args:
        entry: of a data list, with ``"image"``.
        information: of the list.

    Returns:
        The entry with ``"spacing"`` as [rows, columns] in mm, where known, and without ``"magnification"``.

    Raises:
        UserError: a number is not above 0, or the header has a unit that is not known.
    """
    if "slide" in entry:  # it knows its levels
        return dict(entry)
    spacing, image = listed_spacing(entry, information), image_names(entry)[0]
    if spacing is None:
        spacing = picture_spacing(image)
    elif (stated := _stated(image)) is not None and not np.allclose(stated, spacing, rtol=_DIFFERENCE):
        sizes = [" x ".join(f"{side:g}" for side in pair) for pair in (stated, spacing)]
        warn_once(f"{image} says that its pixels are {sizes[0]} mm, the data list says {sizes[1]} mm, which is taken")
    plain = {key: value for key, value in entry.items() if key not in ("spacing", "magnification")}
    return plain if spacing is None else {**plain, "spacing": list(spacing)}


def _stated(image: str) -> tuple[float, float] | None:
    try:
        return picture_spacing(image)
    except UserError:  # the list has the say
        return None


def _positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf


def target_shape(shape: Sequence[int], source: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the (rows, columns) that an image has after resampling from one spacing to another."""
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, source, target, strict=True))


def resample_to_shape(img: torch.Tensor, shape: Sequence[int], mode: str = "bilinear") -> torch.Tensor:
    """Resample ``[C, H, W]``, or a volume ``[C, slices, H, W]``, so that its edges stay where they are.

    Args:
        img: any type.
        shape: (rows, columns) of the result, of a volume (slices, rows, columns).
        mode: ``"bilinear"``, low-pass filtered where the image shrinks, gives float32 (of volumes linear along all
            three axes); ``"nearest"`` keeps the type.
    """
    if tuple(img.shape[1:]) == tuple(shape):
        return img
    plain = plain_tensor(img)
    if mode == "nearest":
        result = plain
        for axis, (new, old) in enumerate(zip(shape, img.shape[1:], strict=True), start=1):
            result = result.index_select(axis, ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long())
    elif img.ndim == 4:  # linear interpolation and its filter take one axis after the other
        planes = _linear(plain.float(), shape[1:])
        result = _linear(planes.flatten(2)[None], (shape[0], planes[0, 0].numel()))[0].unflatten(2, tuple(shape[1:]))
    else:
        result = _linear(plain.float()[None], shape)[0]
    return MetaTensor(result, meta=img.meta) if isinstance(img, MetaTensor) else result


def _linear(images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    size = [int(n) for n in shape]
    return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class ResampleToSpacing(Transform):
    """Resample images ``[C, H, W]`` to one pixel spacing, or whole volumes ``[C, slices, H, W]``.

    The number of pixels is rounded and the image's edges stay in place, so that the spacing reached may differ from
    the one asked for by half a pixel over the whole image.

    Args:
        spacing: mm between pixels of the result, one number or (rows, columns), of whole volumes (slices, rows,
            columns); ``None``: nothing is resampled, unless a magnification is given.
        magnification: of the result, instead of a spacing.
        mode: ``"bilinear"``, or ``"nearest"`` for labels.
    """

    def __init__(
        self, spacing: float | Sequence[float] | None = None, magnification: float | None = None, mode: str = "bilinear"
    ) -> None:
        if mode not in ("bilinear", "nearest"):
            raise UserError(f"the resampling mode is {mode!r}: use 'bilinear', or 'nearest' for labels.")
        volume = isinstance(spacing, Sequence) and len(spacing) == 3
        self.target = as_spacing(spacing, magnification, axes=3 if volume else 2)
        self.mode = mode

    def __call__(self, img: torch.Tensor, spacing: Sequence[float] | None = None) -> torch.Tensor:
        """Resample.

        Args:
            img: ``[C, H, W]`` or ``[C, slices, H, W]``.
            spacing: (rows, columns) in mm of the image as it is; ``None``: its metadata's ``"spacing"``.

        Raises:
            UserError: the image's spacing is not known, or the one asked for is of another number of axes, or more
                than a hundred times as large or as small.
        """
        if self.target is None:
            return img
        if spacing is None and isinstance(img, MetaTensor):
            spacing = img.meta.get("spacing")
        if spacing is None:
            raise UserError(
                f"the pixel spacing of {file_name(img)} is not known, so it cannot be "
                "resampled: give 'spacing' (mm) or 'magnification' in the data list, for the list or for the entry "
                "(mdm_infer.json: or --image_spacing)."
            )
        if len(self.target) != img.ndim - 1:
            given = f"but spacing is {list(self.target)}"
            raise UserError(f"{file_name(img)} is read with {img.ndim - 1} axes, {given}: give as many numbers.")
        shape = target_shape(img.shape[1:], spacing, self.target)
        check_pixel_sizes(file_name(img), (img.shape[1:], spacing), (shape, self.target))
        return resample_to_shape(img, shape, self.mode)


class ResampleToSpacingd(MapTransform):
    """Dictionary version of :class:`ResampleToSpacing`, which finds each image's spacing beside it.

    Args:
        keys: keys of images ``[C, H, W]``.
        spacing: mm between pixels of the result; ``None`` with no magnification: nothing is resampled.
        magnification: of the result, instead of a spacing.
        mode: ``"bilinear"``, or ``"nearest"`` for labels; one for each key or one for all.
        spacing_key: key of the entry's own (rows, columns) in mm.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: float | Sequence[float] | None = None,
        magnification: float | None = None,
        mode: str | Sequence[str] = "bilinear",
        spacing_key: str = "spacing",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resample = [ResampleToSpacing(spacing, magnification, m) for m in ensure_tuple_rep(mode, len(self.keys))]
        self.spacing_key = spacing_key

    @property
    def has_no_target(self) -> bool:
        """Whether it leaves every image as it is."""
        return all(resample.target is None for resample in self.resample)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, resample in self.key_iterator(d, self.resample):
            own = as_spacing(d.get(self.spacing_key), name=file_name(d[key]), axes=d[key].ndim - 1)
            d[key] = resample(d[key], own)
        return d


def cut_region(image: Any, region: Mapping[str, Sequence[int]] | None, name: str | None = None) -> Any:
    """Return the part of ``image`` that ``region`` names.

    Args:
        image: array or tensor ``[C, H, W]``, or of a whole volume ``[C, slices, H, W]``.
        region: ``{"rows": [first, end], "columns": [first, end]}`` in pixels, ``end`` excluded, of whole volumes with
            ``"slices"``; a key that is left out means all; ``None`` means the whole image.
        name: file name for the error; ``None``: the one in the image's metadata.

    Raises:
        UserError: the region reaches outside the image.
    """
    if region is None:
        return image
    slices = [slice(None)]
    for size, key in zip(image.shape[1:], REGION_AXES[1 - image.ndim :], strict=True):
        first, end = region.get(key, (0, size))
        if not 0 <= first < end <= size:
            raise UserError(
                f"{name or file_name(image)} has {size} {key}, but its region asks for {key} {first} to {end}: correct "
                "the region."
            )
        slices.append(slice(first, end))
    return image[tuple(slices)]


class CutRegion(Transform):
    """Cut an image ``[C, H, W]`` to a region; see :func:`cut_region`."""

    def __call__(self, img: Any, region: Mapping[str, Sequence[int]] | None = None) -> Any:
        return cut_region(img, region)


class CutRegiond(EachKey):
    """Dictionary version of :class:`CutRegion`: the region is the data-list entry's; entries without one stay whole.

    Args:
        keys: keys of images ``[C, H, W]``.
        region_key: key of the region, ``{"rows": [first, end], "columns": [first, end]}``.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, region_key: str = "region", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, CutRegion(), allow_missing_keys, region_key)


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
        if len(wanted) != len(shape):
            size = f"the size of crops or windows is {list(wanted)}: give as many numbers"
            raise UserError(f"{file_name(img)} is read with {len(shape)} axes, but {size}.")
        missing = [max(0, want - size) for want, size in zip(wanted, shape, strict=True)]
        if not any(missing):
            return img
        both = [(m // 2, m - m // 2) for m in missing]
        reflected = [(min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(both, shape, strict=True)]
        rest = [(a - ra, b - rb) for (a, b), (ra, rb) in zip(both, reflected, strict=True)]
        array = np.pad(plain_tensor(img).numpy(), [(0, 0), *reflected], mode="reflect")
        padded = torch.from_numpy(np.pad(array, [(0, 0), *rest], mode="edge"))
        return MetaTensor(padded, meta=img.meta) if isinstance(img, MetaTensor) else padded


class PadToSized(EachKey):
    """Dictionary version of :class:`PadToSize`."""

    def __init__(
        self, keys: KeysCollection, spatial_size: Sequence[int] | int, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, PadToSize(spatial_size), allow_missing_keys)
