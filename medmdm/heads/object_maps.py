"""Maps that tell objects apart, beside the classes: what they are, and how they are made of numbered objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import ComputeHoVerMaps
from scipy import ndimage
from torch import Tensor

from medmdm.errors import UserError, nearest

#: Channels of each map.
#:
#: ``boundary``: probability that a pixel of an object has a neighbour, across faces or corners, that is not of it.
#: ``distance``: from a pixel of an object to the nearest that is not of it, divided by the object's largest.
#: ``hv``: horizontal and vertical distance to the object's centre of mass, in [-1, 1] (HoVer-Net, arXiv 1812.06499).
#: ``centres``: a Gaussian of height 1 at each object's centre of mass; where several overlap, the highest.
MAPS = {"boundary": 1, "distance": 1, "hv": 2, "centres": 1}


def check_maps(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of maps as a tuple.

    Raises:
        UserError: there is none, one is unknown, or one is named twice.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"maps is {names!r}: give a list of some of {', '.join(MAPS)}.")
    for name in names:
        if name not in MAPS:
            raise UserError(f"maps names {name!r}{nearest(str(name), MAPS)}: use some of {', '.join(MAPS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"maps names one twice: {', '.join(names)}.")
    return tuple(names)


def channels(names: Sequence[str]) -> int:
    """Return how many channels maps have together."""
    return sum(MAPS[name] for name in names)


def places(names: Sequence[str]) -> dict[str, slice]:
    """Return where the channels of each map are among those of all."""
    ends = np.cumsum([MAPS[name] for name in names]).tolist()
    return {name: slice(end - MAPS[name], end) for name, end in zip(names, ends, strict=True)}


def by_name(values: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each map ``[channels, *spatial]`` of all, ``[M, *spatial]``."""
    return {name: values[place] for name, place in places(names).items()}


def mirrored(values: Tensor, axes: Sequence[int], names: Sequence[str]) -> Tensor:
    """Mirror logits and the maps behind them; distances along a mirrored axis change their sign.

    Args:
        values: ``[B, K + M, *spatial]``.
        axes: of ``values``, from 2.
        names: of the maps.
    """
    values = values.flip(list(axes))
    if "hv" not in names:
        return values
    count, first = channels(names), places(names)["hv"].start
    # The horizontal map follows the last axis, the vertical one the axis before.
    turned = [first + values.ndim - 1 - axis for axis in axes]
    signs = torch.tensor([-1.0 if number in turned else 1.0 for number in range(count)], device=values.device)
    maps = values[:, -count:] * signs.to(values.dtype).view(-1, *[1] * (values.ndim - 2))
    return torch.cat([values[:, :-count], maps], dim=1)


def activated(values: Tensor, names: Sequence[str]) -> Tensor:
    """Return maps ``[M, *spatial]`` with probabilities where networks give logits."""
    if "boundary" not in names:
        return values
    place = places(names)["boundary"]
    return torch.cat([values[: place.start], values[place].sigmoid(), values[place.stop :]])


def targets(objects: Tensor | np.ndarray, names: Sequence[str], centre_sigma: float = 2.0) -> Tensor:
    """Return what maps are of a crop, ``[M, *spatial]`` float32; 0 where there is no object.

    Parts of an object that do not touch are objects of their own: augmentation mirrors what lies at the edge of a crop.
    The edge of the crop is no edge of an object, so that an object that is cut off keeps its distances to its border.

    Args:
        objects: numbers of objects ``[*spatial]``, 0 for none; of two dimensions for ``hv``.
        names: of the maps.
        centre_sigma: standard deviation of the Gaussians of ``centres``, in pixels.

    Raises:
        UserError: ``hv`` of a volume.
    """
    from skimage.measure import label  # slow to import
    from skimage.segmentation import find_boundaries

    numbers = np.asarray(objects)
    numbers = label(numbers, background=0, connectivity=numbers.ndim).astype(np.int32)
    maps: list[np.ndarray] = []
    for name in names:
        if name == "boundary":
            maps.append(find_boundaries(numbers, connectivity=numbers.ndim, mode="inner")[None])
        elif name == "distance":
            maps.append(_distances(numbers)[None])
        elif name == "centres":
            maps.append(_centres(numbers, centre_sigma)[None])
        elif numbers.ndim != 2:
            raise UserError("the map 'hv' is for pictures, or slices, and not for volumes that are read as such.")
        else:
            maps.append(np.asarray(ComputeHoVerMaps()(numbers[None])))
    return torch.from_numpy(np.concatenate(maps).astype(np.float32))


def _distances(numbers: np.ndarray) -> np.ndarray:
    found = np.zeros(numbers.shape, np.float32)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        wide = tuple(slice(max(0, one.start - 1), one.stop + 1) for one in place)
        own = numbers[wide] == number
        # An object that fills the crop has no border in it.
        distance = ndimage.distance_transform_edt(own) if not own.all() else np.ones(own.shape)
        found[wide][own] = (distance / distance.max())[own]
    return found


def _centres(numbers: np.ndarray, sigma: float) -> np.ndarray:
    found = np.zeros(numbers.shape, np.float32)
    count = int(numbers.max(initial=0))
    radius = int(np.ceil(4 * sigma))
    for centre in ndimage.center_of_mass(numbers > 0, numbers, range(1, count + 1)):
        near = tuple(slice(max(0, int(c) - radius), int(c) + radius + 2) for c in centre)
        grid = np.ogrid[tuple(slice(one.start, min(one.stop, n)) for one, n in zip(near, numbers.shape, strict=True))]
        squares = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        found[near] = np.maximum(found[near], np.exp(-squares / (2 * sigma**2)))
    return found
