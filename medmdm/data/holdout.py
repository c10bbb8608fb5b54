"""Fixed crops for previews: from the list's validation images, from strips no training crop touches, or seen ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from medmdm.data.files.pictures import image_size
from medmdm.data.given_labels import given_map
from medmdm.data.lists import REGION_AXES, regions_overlap
from medmdm.data.selection import Selection
from medmdm.data.slices import LoadSliced, is_whole, open_slices
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped
from medmdm.data.transforms.spatial import CutRegiond, PadToSized, plain_tensor, target_shape
from medmdm.data.validity import size_text
from medmdm.errors import UserError, counted, find_user_error
from medmdm.files import pixel_hash


@dataclass(frozen=True)
class HeldOut:
    """A training set and the preview crops taken from beside it.

    Args:
        training: entries to train on, for :class:`medmdm.data.CropDataset`; all images of the selection are in it.
        crops: one entry per crop, whose ``region`` is the crop.
        crop_size: (rows, columns), of whole volumes (slices, rows, columns).
        seen: whether the network trains on the crops.
        sentence: what to tell the user about them.
    """

    # Entries hold patient ids, so they stay out of what is printed.
    training: tuple[dict[str, Any], ...] = field(repr=False)
    crops: tuple[dict[str, Any], ...] = field(repr=False)
    crop_size: tuple[int, ...]
    seen: bool
    sentence: str

    def hashes(self) -> list[str]:
        """Return the SHA-256 of each crop's pixels, as they are in its file."""
        load = Compose([LoadSliced("image"), CutRegiond("image")])
        return [pixel_hash(np.asarray(load(dict(entry))["image"])) for entry in self.crops]

    def images(self, transform: Callable | None = None, channels: int | None = None) -> torch.Tensor:
        """Load the crops.

        Args:
            transform: MONAI dictionary transforms, none random, from a path to a float tensor in [−1, 1] under
                "image"; ``None``: load, cut, pad, and scale by the file's type.
            channels: channels the network takes, checked if given.

        Returns:
            ``[N, C, h, w]``, of whole volumes ``[N, C, d, h, w]``, float32, in [−1, 1].

        Raises:
            UserError: an image cannot be read or has another number of channels.
        """
        pad = PadToSized("image", self.crop_size)
        transform = transform or Compose(
            [LoadSliced("image"), CutRegiond("image"), pad, ScaleIntensityByDtyped("image")]
        )
        images: list[torch.Tensor] = []
        for entry in self.crops:
            try:
                image = plain_tensor(transform(dict(entry))["image"])
            except Exception as error:
                raise find_user_error(error) or error from None
            expected = channels or (len(images[0]) if images else len(image))
            if len(image) != expected:
                raise UserError(
                    f"{entry['image']} has {counted(len(image), 'channel')}, but {expected} are expected: convert it "
                    f"or pass --channels {len(image)} if all images are like it."
                )
            images.append(image.to(torch.float32))
        return torch.stack(images)

    def given(self, transform: Callable, label_as: str | None = None) -> dict[str, torch.Tensor]:
        """Return what the corruption is given of the crops, ``{label_as: [N, 1, h, w]}``; nothing without it.

        Args:
            transform: as for :meth:`images`, which moves "label" as well.
            label_as: see :func:`medmdm.data.given_labels.given_map`.
        """
        if label_as is None:
            return {}
        return {label_as: torch.stack([given_map(transform(dict(entry)), label_as) for entry in self.crops])}


def hold_out(
    selection: Selection,
    crop_size: Sequence[int] | int,
    num_crops: int = 4,
    seed: int = 0,
    spacing: Sequence[float] | None = None,
) -> HeldOut:
    """Choose preview crops, and take what they show out of training where that is possible.

    Crops of slides are drawn on tissue.

    1. From the validation images of the data list, if it has any.
    2. Else ``num_crops`` images, chosen by seed among those at least two crops wide (or high), give up a strip one
       crop wide at their right (or lower) end; training uses the rest of them, so every image still trains. Of whole
       volumes it may be slices at the upper end, too.
    3. Where all images are too small, the crops are ones that train, and ``seen`` says so.

    Args:
        selection: what :func:`medmdm.data.select_training_images` returned.
        crop_size: pixels, (rows, columns) or one number for both; (slices, rows, columns) where volumes are read whole.
        num_crops: 1 … 16.
        seed: chooses images and positions.
        spacing: mm between the pixels of a crop, as ``crop_size``, where images are resampled, else ``None``. The
            region of a crop is in pixels of its file, and may be a pixel larger than the crop once it is resampled.

    Raises:
        UserError: a number is out of range, or an image whose size is needed cannot be read.
    """
    axes = REGION_AXES if any(map(is_whole, selection.training)) else REGION_AXES[1:]
    sizes = [crop_size] * len(axes) if isinstance(crop_size, int) else list(crop_size)
    if len(sizes) != len(axes) or not all(isinstance(n, int) and n > 0 for n in sizes):
        given = ", ".join(axes[:-1]) + f" and {axes[-1]}, whole numbers of 1 or more"
        cut = "; three are for volumes that are read whole (slice_axis none)" if len(sizes) == 3 != len(axes) else ""
        raise UserError(f"crop_size is {crop_size}: give {given}{cut}.")
    whole = tuple(sizes)
    if not 1 <= num_crops <= 16:
        raise UserError(f"the number of preview crops is {num_crops}: give 1 to 16.")
    rng = np.random.default_rng([seed, 1])

    def size(entry: dict[str, Any]) -> tuple[int, ...]:
        if spacing is None or "spacing" not in entry:
            return whole
        return tuple(_size_before(*side) for side in zip(whole, spacing, entry["spacing"], strict=True))

    training, seen = [dict(entry) for entry in selection.training], False
    if selection.validation:
        chosen = (selection.validation[i] for i in rng.permutation(len(selection.validation))[:num_crops])
        boxes = [(entry, _box(entry)) for entry in chosen]
        origin = "of held-out validation images, not seen in training"
    else:
        order = rng.permutation(len(training))
        boxes = _take_strips(training, order, size, num_crops)
        origin = (
            f"of strips at the edge of {len(boxes)} of {len(training)} images; training leaves out the strips, so "
            "they are not seen in training"
        )
        if not boxes:
            boxes, seen = [(training[i], _box(training[i])) for i in order[:num_crops]], True
            origin = (
                "that are seen in training, because every image is smaller than two crops of "
                f"{size_text(whole)}; name validation images in a data list for unseen ones"
            )
    crops = _spread(boxes, size, num_crops, rng)
    sentence = f"previews: {counted(num_crops, 'crop')} {origin}"
    return HeldOut(tuple(training), tuple(crops), whole, seen, sentence)


_Box = Sequence[Sequence[int]]  # (first row, end row), (first column, end column); of whole volumes slices before


def _take_strips(
    training: list[dict[str, Any]], order: np.ndarray, size: Callable[[dict[str, Any]], tuple[int, ...]], most: int
) -> list[tuple[dict[str, Any], _Box]]:
    """Take strips from the first entries in ``order`` that can spare one; ``training`` keeps the rest of them."""
    strips: list[tuple[dict[str, Any], _Box]] = []
    for i in order:
        if len(strips) == most:
            break
        entry = training[i]
        if "slide" in entry:  # its edge is glass; `tile_slides` holds out tissue where there are slides only
            continue
        cut = _split(_box(entry), size(entry))
        if cut is None:
            continue
        kept, strip = cut
        others = (other for j, other in enumerate(training) if j != i and other["image"] == entry["image"])
        if not any(regions_overlap(_region(strip), other.get("region")) for other in others):
            training[i] = {**entry, "region": _region(kept), "case_region": entry.get("region")}
            strips.append((entry, strip))
    return strips


def _box(entry: dict[str, Any]) -> _Box:
    region = entry.get("region") or {}
    if "slide" in entry:
        return entry["slide"].region
    if "stored" in entry:
        slices, _, *shape = open_slices(entry["stored"]["image"]).shape
        shape = [slices, *shape] if is_whole(entry) else shape
    else:
        shape = list(image_size(entry["image"]))
    keys = REGION_AXES[-len(shape) :]
    box = [region.get(key, (0, n)) for key, n in zip(keys, shape, strict=True)]
    if any(end > n for (_, end), n in zip(box, shape, strict=True)):
        raise UserError(
            f"{entry['image']} is {size_text(shape)} pixels ({' x '.join(keys)}), but its region in the data list ends "
            f"at {size_text(end for _, end in box)}: correct the region."
        )
    return box


def _size_before(size: int, spacing: float, source: float) -> int:
    """Return the least number of pixels at ``source`` mm that give ``size`` or more at ``spacing`` mm."""
    least = max(1, int(size * spacing / source) - 1)
    while target_shape((least, 1), (source, 1.0), (spacing, 1.0))[0] < size:
        least += 1
    return least


def _region(box: _Box) -> dict[str, list[int]]:
    return {key: list(side) for key, side in zip(REGION_AXES[-len(box) :], box, strict=True)}


def _split(box: _Box, size: tuple[int, ...]) -> tuple[_Box, _Box] | None:
    """Return (what is left, the strip), or ``None`` if the box is less than two crops wide and high."""
    for axis in reversed(range(len(box))):
        (first, end), n = box[axis], size[axis]
        if end - first >= 2 * n:
            kept, strip = list(box), list(box)
            kept[axis], strip[axis] = (first, end - n), (end - n, end)
            return kept, strip
    return None


def _spread(
    boxes: Sequence[tuple[dict[str, Any], _Box]],
    size: Callable[[dict[str, Any]], tuple[int, ...]],
    num_crops: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return ``num_crops`` crops, from each box in turn; those of one box do not overlap while there is room."""
    each = -(-num_crops // len(boxes))
    places = [[] if "slide" in entry else _positions(box, size(entry), each, rng) for entry, box in boxes]
    crops = []
    for i in range(num_crops):
        (entry, box), turn = boxes[i % len(boxes)], i // len(boxes)
        own = {key: value for key, value in entry.items() if key not in ("patient_id", "case_region")}
        if "slide" in entry:
            crops.append({**own, "tile": entry["slide"].draw(rng)})
            continue
        corner = zip(places[i % len(boxes)][turn], size(entry), box, strict=True)
        crop = [(at, min(at + n, end)) for at, n, (_, end) in corner]
        crops.append({**own, "region": _region(crop)})
    return crops


def _positions(box: _Box, size: Sequence[int], count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return ``count`` corners: of a grid of crops shifted at random, in random order, then anywhere in the box."""
    corners, last = [], []
    for (first, end), step in zip(box, size, strict=True):
        fitting = max(1, (end - first) // step)
        slack = max(0, (end - first) - fitting * step)
        corners.append([first + int(rng.integers(slack + 1)) + i * step for i in range(fitting)])
        last.append(max(first, end - step))
    grid: list[tuple[int, ...]] = list(product(*corners))
    places = [grid[i] for i in rng.permutation(len(grid))[:count]]
    while len(places) < count:
        places.append(tuple(int(rng.integers(side[0], end + 1)) for side, end in zip(box, last, strict=True)))
    return places
