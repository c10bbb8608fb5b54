"""Reading labelled cases the way a backbone was trained: spacing, intensities and slices from its plan."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from medmdm.data.files.formats import is_volume
from medmdm.data.files.pictures import image_size
from medmdm.data.files.volumes import WHOLE, Slicing
from medmdm.data.lists import image_names
from medmdm.data.loading import LabelToClassesd, LoadCased
from medmdm.data.meaning import WhiteMasks, with_ones
from medmdm.data.selection import Selection
from medmdm.data.slices import VolumeStore, slice_entries
from medmdm.data.time_series import TIME
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped, as_monai_loads, file_dtype_tensor, is_flat
from medmdm.data.transforms.spatial import CutRegiond, ResampleToSpacingd, file_name, plain_tensor
from medmdm.data.validity import MOST_OBJECTS, label_numbers, turned_onto, voxel_sides
from medmdm.errors import UserError, counted, find_user_error, warn_once
from medmdm.files import pixel_hash
from medmdm.labels import IGNORE


@dataclass(frozen=True)
class Example:
    """A labelled image as a head sees it.

    Args:
        image: ``[C, *spatial]`` in [-1, 1], at the spacing of the backbone.
        label: ``[*spatial]`` class numbers, :data:`medmdm.labels.IGNORE` where nothing is known.
        case: id of the case it is of.
        group: what is left out together when cases are left out in turn: the volume of a slice; "" for the image alone.
        objects: ``[*spatial]`` numbers of objects, 0 for none, where labels number them; None elsewhere.
    """

    image: Tensor = field(repr=False)
    label: Tensor = field(repr=False)
    case: str = ""
    group: str = ""
    objects: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # MONAI's metadata would travel through every operation of a network, and into the files of the cache.
        object.__setattr__(self, "image", self.image.as_subclass(Tensor))
        object.__setattr__(self, "label", self.label.as_subclass(Tensor))

    @property
    def known(self) -> Tensor:
        """Which pixels are labelled, ``[*spatial]``."""
        return self.label != IGNORE


@dataclass(frozen=True)
class PictureInParts(Sequence[Example]):
    """The one example of a picture, in memory as its file stores it: scaled when, and where, it is asked for.

    A large picture as 32-bit floats takes four times the memory of its 8 bits.

    Args:
        pixels: ``[C, H, W]`` in the file's own type.
        scale: such pixels, or some of them, ``[C, ...]`` -> float32 in [-1, 1], each by itself.
        whole: makes the example.
    """

    pixels: np.ndarray
    scale: Callable[[np.ndarray], Tensor]
    whole: Callable[[], Example]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        chosen = range(1)[index]  # raises beyond the end, before anything is scaled
        return [self.whole() for _ in chosen] if isinstance(chosen, range) else self.whole()

    def is_flat(self) -> bool:
        """Whether it has one value everywhere once it is scaled."""
        first = self.scale(self.pixels[:, :1, :1]).flatten()[:1]
        rows = (self.scale(self.pixels[:, row : row + 1]) for row in range(self.pixels.shape[1]))
        return bool(first.numel()) and all(bool((row == first).all()) for row in rows)


@dataclass(frozen=True)
class LoadedCase:
    """A case as networks read it.

    Args:
        entry: of :func:`medmdm.data.select_cases`; holds the patient id.
        examples: one for a picture or a whole volume, else one per slice; see :meth:`rows` for a picture's parts.
        slices: for a volume that is read in slices their numbers, else empty.
        slicing: how the slices go back into the volume; None for pictures.
        truth: class numbers on the file's own grid, ``[*spatial]`` (a picture's region); None without a label.
        shape: of the file's own grid.
        hashes: SHA-256 of the case's pixels and of the whole image's.
        spacing: mm between pixels of the file's own grid, where it is known.
        original: the image as its file holds it, ``[C, *spatial]``, or where a volume lies decoded; see :meth:`pixels`.
        instances: numbers of objects on the file's own grid where labels number them, ``[*spatial]``.
        window: stored values that networks see as −1 and 1, a pair for all channels or one for each; None where that is
            the full range of the file's type, and of pictures that are scaled by their own percentiles.
        label_affine: of a volume's label as ``truth`` has it, array index → mm in RAS.
    """

    entry: Mapping[str, Any] = field(repr=False)
    examples: Sequence[Example] = field(repr=False)
    slices: tuple[int, ...]
    slicing: Slicing | None = field(repr=False)
    truth: np.ndarray | None = field(repr=False)
    shape: tuple[int, ...]
    hashes: tuple[str, str]
    spacing: tuple[float, ...] | None = None
    original: np.ndarray | Path | None = field(default=None, repr=False)
    instances: np.ndarray | None = field(default=None, repr=False)
    label_affine: np.ndarray | None = field(default=None, repr=False)
    window: tuple[tuple[float, float], ...] | None = None

    def pixels(self) -> np.ndarray | None:
        """Return the image as its file holds it, ``[C, *spatial]`` not scaled; a volume's is mapped, not read."""
        if isinstance(self.original, Path) and self.slicing is not None:
            return self.slicing.to_volume(np.load(self.original, mmap_mode="r"))
        return self.original  # type: ignore[return-value]

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of a picture as networks read it."""
        parts = self.examples
        rows, columns = (parts.pixels if isinstance(parts, PictureInParts) else parts[0].image).shape[1:]
        return int(rows), int(columns)

    def rows(self, first: int, end: int) -> Tensor:
        """Return rows ``[first, end)`` of a picture as networks read it, ``[C, end - first, W]``."""
        if isinstance(self.examples, PictureInParts):
            return self.examples.scale(self.examples.pixels[:, first:end])
        return self.examples[0].image[:, first:end]

    def in_place(self, values: np.ndarray) -> np.ndarray:
        """Return values of the case's region, ``[..., rows, columns]``, in the whole picture, 0 around it."""
        region = self.entry.get("region")
        if region is None:
            return values
        whole = np.zeros((*values.shape[:-2], *image_size(self.entry["image"])), values.dtype)
        rows = slice(*region.get("rows", (0, whole.shape[-2])))
        columns = slice(*region.get("columns", (0, whole.shape[-1])))
        whole[..., rows, columns] = values
        return whole

    @property
    def name(self) -> str:
        """The case's id."""
        return str(self.entry["case"])


class CaseReader:
    """Read the cases of a data set by the plan of a backbone.

    Args:
        cases: what labels mean.
        plan: of the backbone: ``spacing``, ``intensity_range``, ``percentiles``, ``slice_axis``, ``context_slices`` and
            ``channels`` are read.
        store: folder of decoded volumes; None for the user's cache folder.

    Raises:
        UserError: later, from :meth:`read`: one sentence naming the file.
    """

    def __init__(self, cases: Selection, plan: Mapping[str, Any], store: str | os.PathLike[str] | None = None) -> None:
        self.cases = cases
        self.plan = plan
        known = plan.get("channels")  # else those of the first image that is read
        self._channels: tuple[str, int] | None = None if known is None else ("the backbone takes", known)
        self.slice_cache = store
        found = plan.get("percentiles")
        self.percentiles = None if found is None else (found["lower"], found["upper"])
        self.nonzero = bool(found and found["nonzero"])
        keys, context = ("image", "label"), int(plan.get("context_slices") or 0)
        declares = cases.data_list is not None and cases.label_type != "instances"
        self.decode = LoadCased(keys, context, self.percentiles, self.nonzero, allow_missing_keys=True)
        self.cut = CutRegiond(keys, allow_missing_keys=True)
        self.to_classes = LabelToClassesd(
            "label", cases.label_type, cases.classes if declares else None, cases.ignore, allow_missing_keys=True
        )
        self.white_masks = WhiteMasks(cases.declared if declares else None)
        self.resample = ResampleToSpacingd(
            keys, plan.get("spacing"), mode=("bilinear", "nearest"), allow_missing_keys=True
        )
        self.whole = plan.get("slice_axis") == WHOLE
        self.scale = ScaleIntensityByDtyped("image", plan.get("intensity_range"))
        self.prepare = Compose([self.resample, self.scale])

    @functools.cached_property
    def store(self) -> VolumeStore:
        """Where decoded volumes are kept; pictures need none."""
        return VolumeStore(self.slice_cache)

    def read_all(self, entries: Sequence[Mapping[str, Any]]) -> Iterator[LoadedCase]:
        """Read one case after the other."""
        return map(self.read, entries)

    def read(self, entry: Mapping[str, Any], in_parts: bool = False) -> LoadedCase:
        """Read a case.

        Args:
            entry: of the selection.
            in_parts: leave a picture as its file stores it until parts of it are asked for, where it need not be
                resampled; see :class:`PictureInParts`. For cases to predict: learning asks again and again.

        Raises:
            UserError: a file cannot be read, does not fit its label, or has another number of channels.
        """
        try:
            case = self._volume(entry) if is_volume(image_names(entry)[0]) else self._picture(entry, in_parts)
        except Exception as error:
            raise find_user_error(error) or error from None
        parts = case.examples
        flat = parts.is_flat() if isinstance(parts, PictureInParts) else all(is_flat(one.image) for one in parts)
        if flat:
            advice = "check the image, and percentiles or the window if they are set"
            warn_once(f"{image_names(entry)[0]} has one value everywhere once it is scaled: {advice}")
        return case

    def _picture(self, entry: Mapping[str, Any], in_parts: bool) -> LoadedCase:
        if self.whole:
            raise UserError(f"{entry['image']} is a picture, but the network reads volumes whole: give it volumes.")
        whole = self.decode({key: value for key, value in entry.items() if key != "region"})
        cut = self.cut({**whole, "region": entry.get("region")})
        pixels, whole_pixels = (file_dtype_tensor(one["image"]).numpy() for one in (cut, whole))
        digest = pixel_hash(pixels)
        hashes = digest, digest if entry.get("region") is None else pixel_hash(whole_pixels)
        (cut,) = self._with_ones([cut], [whole], entry)
        loaded = self.to_classes(cut)
        truth = plain_tensor(loaded["label"]).numpy()[0].copy() if "label" in loaded else None
        instances = self._instances([cut])
        spacing = tuple(entry["spacing"]) if entry.get("spacing") else None
        original = np.ascontiguousarray(pixels)
        examples: Sequence[Example]
        if in_parts and self.resample.has_no_target:
            examples = self._in_parts(original, loaded, entry)
        else:
            examples = [self._example(loaded, entry, None if instances is None else instances[0])]
        return LoadedCase(
            entry, examples, (), None, truth, pixels.shape[1:], hashes, spacing, original,
            None if instances is None else instances[0, 0],
            window=self._window(self.plan.get("intensity_range")),
        )  # fmt: skip

    def _in_parts(self, pixels: np.ndarray, loaded: Mapping[Any, Any], entry: Mapping[str, Any]) -> PictureInParts:
        self._check_channels(len(pixels), entry)
        meta = {key: loaded["image"].meta[key] for key in ("filename_or_obj", "original_dtype")}
        rest = {key: value for key, value in loaded.items() if key != "image"}

        def image(part: np.ndarray) -> dict[Any, Any]:
            return {**rest, "image": MetaTensor(as_monai_loads(part), meta=dict(meta))}

        def scale(part: np.ndarray) -> Tensor:
            return torch.as_tensor(self.scale(image(part))["image"]).float().as_subclass(Tensor)

        scale(pixels[:, :1, :1])  # what cannot be scaled is refused now
        return PictureInParts(pixels, scale, lambda: self._example(image(pixels), entry))

    def refuse_volume(self, entry: Mapping[str, Any]) -> None:
        """Refuse a volume where only pictures can be read, before it is decoded.

        Raises:
            UserError: the plan does not say how volumes are scaled, or is of time series.
        """
        if self.plan.get("slice_axis") == TIME:
            raise UserError(
                f"{entry['image']} is a volume, but the backbone reads frames of time series, which are not segmented: "
                "set preprocessing#slice_axis to axial to read slices and their neighbours."
            )
        if self.percentiles is None and self.plan.get("intensity_range") is None:
            raise UserError(
                f"{entry['image']} is a volume, but the backbone was trained on pictures: its plan does not say which "
                "intensities become -1 and 1, so pre-train on volumes first."
            )

    def _volume(self, entry: Mapping[str, Any]) -> LoadedCase:
        axis = WHOLE if self.whole else entry.get("axis") or self.plan.get("slice_axis") or "axial"
        self.refuse_volume(entry)
        slices = slice_entries({**entry, "axis": axis}, self.store, axis, self.percentiles, self.nonzero)
        decoded = [self.decode(one) for one in slices]  # type: ignore[arg-type]
        decoded = self._with_ones(decoded, decoded, entry)
        loaded = [self.to_classes(one) for one in decoded]
        volume = self.store.get(entry["image"], axis, entry.get("series_uid"))
        slicing, truth, instances, label_affine = volume.slicing, None, None, None
        objects: Sequence[np.ndarray | None] = [None] * len(loaded)
        if "label" in entry:
            label_affine = turned_onto(self.store.get(entry["label"], axis).grid, volume.grid)[0].affine
            truth = slicing.assembled([np.asarray(one["label"]) for one in loaded])[0]
            numbers = self._instances(decoded)
            if numbers is not None:
                instances, objects = slicing.assembled(list(numbers))[0], list(numbers)
        examples = [self._example(one, entry, own) for one, own in zip(loaded, objects, strict=True)]
        spacing = voxel_sides(slicing.affine)
        return LoadedCase(
            entry, examples, () if self.whole else tuple(range(len(slices))), slicing, truth, slicing.shape,
            (volume.digest, volume.digest), spacing, volume.path, instances, label_affine,
            self._window(*slices[0].get("intensity_range", [self.plan.get("intensity_range")])),
        )  # fmt: skip

    @staticmethod
    def _window(*ranges: Sequence[float] | None) -> tuple[tuple[float, float], ...] | None:
        return tuple((float(pair[0]), float(pair[1])) for pair in ranges if pair is not None) or None

    def _with_ones(
        self, parts: list[dict[Hashable, Any]], whole: Sequence[Mapping[Hashable, Any]], entry: Mapping[str, Any]
    ) -> list[dict[Hashable, Any]]:
        """Return parts of a case with 1 where its label, seen as a whole, has a white."""
        if "label" not in entry:
            return parts
        found = self.white_masks.whites([np.asarray(one["label"]) for one in whole], str(entry["label"]))
        for one in parts if found else ():
            label = one["label"]
            one["label"] = MetaTensor(torch.from_numpy(with_ones(label.numpy(), found)), meta=dict(label.meta))
        return parts

    def _instances(self, decoded: Sequence[Mapping[Hashable, Any]]) -> np.ndarray | None:
        """Return the numbers of objects of pictures or slices, ``[N, 1, *spatial]``, where labels number them."""
        if self.cases.label_type != "instances" or "label" not in decoded[0]:
            return None
        labels = [(np.asarray(one["label"]), file_name(one["label"])) for one in decoded]
        return np.stack([label_numbers(label, name, MOST_OBJECTS).astype(np.int32) for label, name in labels])

    def _example(
        self, loaded: dict[Any, Any], entry: Mapping[str, Any], instances: np.ndarray | None = None
    ) -> Example:
        """Make an example; ``instances`` are the numbers of its objects, ``[1, *spatial]``."""
        prepared = self.prepare(loaded)
        image = torch.as_tensor(prepared["image"]).float().contiguous()
        self._check_channels(len(image), entry)
        if "label" in prepared:
            label = torch.as_tensor(prepared["label"])[0].long().contiguous()
        else:
            label = torch.zeros(image.shape[1:], dtype=torch.long)
        objects = None
        if instances is not None:
            numbers = MetaTensor(torch.from_numpy(instances), meta=dict(loaded["label"].meta))
            alone = {**{k: v for k, v in loaded.items() if k != "image"}, "label": numbers}
            objects = torch.as_tensor(self.resample(alone)["label"])[0].as_subclass(Tensor).int().contiguous()
        name = str(entry["case"])
        if "slice" not in loaded:
            return Example(image, label, name, objects=objects)
        # Slices are left out together.
        return Example(image, label, f"{name}_{loaded['slice']:04d}", name, objects)

    def _check_channels(self, count: int, entry: Mapping[str, Any]) -> None:
        whose, known = self._channels = self._channels or (f"{entry['image']} has", count)
        if count != known:
            have = f"{entry['image']} has {counted(count, 'channel')}, but {whose} {known}"
            raise UserError(f"{have}: use images, or a backbone that was trained on such images, of one kind.")
