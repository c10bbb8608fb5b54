"""The image and the label of a case as they are decoded, and labels as class numbers: MONAI transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medmdm.data.files.decoding import decode_label
from medmdm.data.meaning import WhiteMasks, with_ones
from medmdm.data.slices import LoadSliced
from medmdm.data.transforms.intensity import PercentileRanged, as_monai_loads
from medmdm.data.transforms.spatial import CutRegiond, EachKey, file_name, plain_tensor
from medmdm.data.validity import MOST_OBJECTS, ImageGrid, check_known, check_same_grid, label_numbers
from medmdm.errors import UserError, nearest
from medmdm.labels import IGNORE, LABEL_TYPES


class LoadCased(MapTransform):
    """Load the image and the label of a case of :func:`medmdm.data.select_cases`, and cut both to its region.

    Images and labels are pictures, or the slice of a volume that an entry of :func:`medmdm.data.slice_entries` names;
    labels may also be outlines in Aperio XML, which become an instance map of the size of the image. Results are
    ``[C, rows, columns]`` in the file's type (labels of 16 and 32 bits wider, bilevel ones as uint8).

    Args:
        keys: keys of the image and of the label, or of the image alone.
        context_slices: neighbours on each side that a slice of the image is read with.
        percentiles: of the whole picture, noted for the scaling: see :class:`medmdm.data.PercentileRanged`.
        nonzero: whether pixels of value 0 are left out of them.
        allow_missing_keys: don't raise where a case has no label.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        context_slices: int = 0,
        percentiles: Sequence[float] | None = None,
        nonzero: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 1 <= len(self.keys) <= 2:
            raise UserError(f"LoadCased: keys is {list(self.keys)}, expected the image's and the label's.")
        self.load_image = LoadSliced(self.keys[0], context_slices)
        self.note_range = PercentileRanged(self.keys[0], percentiles, nonzero)
        self.load_slice = LoadSliced(self.keys[-1])
        self.cut = CutRegiond(self.keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d: dict[Hashable, Any] = self.note_range(self.load_image(data))
        image = d[self.keys[0]]
        for key in self.keys[1:]:
            if key not in d:
                if self.allow_missing_keys:
                    continue
                raise UserError(f"{data.get('name', data[self.keys[0]])} has no label: add it to the data list.")
            d[key] = _load_label(d, key, image, data[self.keys[0]], self.load_slice)
        return self.cut(d)


def _load_label(
    d: Mapping[Hashable, Any], key: Hashable, image: torch.Tensor, image_name: Any, load_slice: LoadSliced
) -> MetaTensor:
    """Return the label of an image ``[C, *spatial]`` that was loaded whole, as its file has it."""
    if key in d.get("stored", {}):
        loaded: MetaTensor = load_slice(d)[key]
        return loaded
    name, grid = str(d[key]), ImageGrid(tuple(image.shape[1:]))
    label = decode_label(Path(name), grid)
    check_same_grid(label.grid, grid, name, f"its image {image_name}")
    return MetaTensor(as_monai_loads(label.array), meta={"filename_or_obj": name})


class LoadObjectsd(MapTransform):
    """Load the label of an image that is loaded already as numbers of its objects: ``[1, *spatial]`` int32, 0 for none.

    Of a label that numbers objects they are its own. Of one that holds classes they are the connected parts of each
    class (neighbours by edge or corner; of a slice those in the slice); pixels to ignore belong to none. Entries that
    have no label pass.

    Args:
        keys: key of the label, of :func:`medmdm.data.with_labels`.
        image_key: of the image, whole.
        classes_key: of the numbers that the entry's label may have; an entry without them has a label of objects.

    Raises:
        UserError: when called: the label does not fit its image or cannot be understood, or the image is a slide.
    """

    def __init__(
        self, keys: KeysCollection = "label", image_key: str = "image", classes_key: str = "label_classes"
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key, self.classes_key = image_key, classes_key
        self.load_slice = LoadSliced(self.keys)
        self.white_masks: WhiteMasks | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            name, image = str(d[key]), d[self.image_key]
            if "slide" in d:
                raise UserError(f"{file_name(image)} is a slide, whose labels cannot be given: leave label_as null.")
            label = np.asarray(_load_label(d, key, image, file_name(image), self.load_slice))
            classes = d.get(self.classes_key)
            objects = label_numbers(label, name, MOST_OBJECTS) if classes is None else self._parts(label, classes, name)
            d[key] = MetaTensor(torch.from_numpy(objects.astype(np.int32)), meta={"filename_or_obj": name})
        return d

    def _parts(self, label: np.ndarray, classes: Sequence[int], name: str) -> np.ndarray:
        from skimage.measure import label as connected  # slow to import

        if self.white_masks is None:  # of one data list, all entries of which have the same classes
            self.white_masks = WhiteMasks(classes)
        numbers = label_numbers(with_ones(label, self.white_masks.whites([label], name)), name)
        check_known(numbers, classes, IGNORE, name)
        numbers = np.where(numbers == IGNORE, 0, numbers)
        parts: np.ndarray = connected(numbers[0], background=0, connectivity=numbers.ndim - 1)
        return parts[None]


class LabelToClassesd(EachKey):
    """Turn labels into class numbers: ``[1, *spatial]`` uint8.

    Objects of an instance label become 1. Of a label with classes every number must be declared, or be ``ignore``; the
    ignored pixels keep it.

    Args:
        keys: keys of labels.
        label_type: ``"classes"`` or ``"instances"``.
        classes: numbers that labels may have, all below 255; ``None``: any.
        ignore: number of pixels to leave out, for ``"classes"`` (among objects it is one of their numbers).
        allow_missing_keys: don't raise if a key is missing.

    Raises:
        UserError: when called: a label has several channels, values that are no whole numbers or negative, or a class
            that is not declared; the sentence names its file.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        label_type: str = "classes",
        classes: Sequence[int] | None = None,
        ignore: int = IGNORE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, self._to_classes, allow_missing_keys)
        if label_type not in LABEL_TYPES:
            close = nearest(label_type, LABEL_TYPES)
            raise UserError(f"label_type is {label_type!r}{close}: use classes or instances.")
        self.label_type = label_type
        self.classes = None if classes is None else sorted(classes)
        self.ignore = ignore

    def _to_classes(self, label: torch.Tensor) -> MetaTensor:
        name = file_name(label, "the label")
        numbers = label_numbers(plain_tensor(label).numpy(), name)
        if self.label_type == "instances":
            numbers = numbers > 0
        else:
            check_known(numbers, self.classes, self.ignore, name)
        meta = dict(label.meta) if isinstance(label, MetaTensor) else {}
        return MetaTensor(torch.from_numpy(numbers.astype(np.uint8)), meta=meta)
