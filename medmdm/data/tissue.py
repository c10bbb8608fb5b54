"""Pre-training on whole-slide images: crops are drawn on tissue and read one by one, never the whole slide."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medmdm.data.files.slides import Grid, Slide, is_slide, slide_hash, tissue_mask
from medmdm.data.patients import for_previews
from medmdm.data.selection import Selection
from medmdm.data.threads import decoding_threads
from medmdm.data.transforms.intensity import ScaleByPercentiles, check_percentiles
from medmdm.data.transforms.spatial import listed_spacing
from medmdm.errors import UserError, counted
from medmdm.progress import followed

_MOST_PIXELS = 1024  # along the longer side of a mask of tissue: it is kept for every slide
_FINEST_MPP = 8.0  # of a mask
_MOST_OPEN = 8  # slides that a process keeps open; OpenSlide keeps decoded tiles of each
_OPENERS = 4  # threads
_PART_SHARE = 0.15  # of a slide's tissue

_open: OrderedDict[int, Slide] = OrderedDict()
_reading = threading.Lock()  # a slide serves one thread at a time


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where crops may be drawn on a slide, and how they are read.

    Args:
        slide: to read from; opened again in each process.
        mpp: µm per pixel (rows, columns) of crops.
        crop_size: (rows, columns) of crops.
        mask_shape: rows and columns of the mask of tissue, which covers the whole slide.
        bits: the mask, each row packed into bytes.
        region: rows and columns of the finest level, (first, end) each, that crops stay within.
    """

    slide: Slide
    mpp: tuple[float, float]
    crop_size: tuple[int, int]
    mask_shape: tuple[int, int]
    bits: np.ndarray = field(repr=False)
    region: tuple[tuple[int, int], tuple[int, int]]
    _ends: np.ndarray = field(init=False, repr=False)  # tissue in the rows down to each

    def __post_init__(self) -> None:
        counts = np.unpackbits(self.bits, axis=1, count=self.mask_shape[1]).sum(axis=1)
        object.__setattr__(self, "_ends", np.cumsum(counts, dtype=np.int64))

    @classmethod
    def of(
        cls,
        slide: Slide,
        mask: np.ndarray,
        mpp: tuple[float, float],
        crop_size: tuple[int, int],
        region: tuple[tuple[int, int], tuple[int, int]],
    ) -> Tissue:
        """Take the tissue of a mask ``[h, w]`` whose pixels' centres are in a region of the finest level."""
        sizes = slide.levels[0].height, slide.levels[0].width
        inside = []
        for n, size, (first, end) in zip(mask.shape, sizes, region, strict=True):
            centres = (np.arange(n) + 0.5) * size / n
            inside.append((first <= centres) & (centres < end))
        own = mask & inside[0][:, None] & inside[1]
        return cls(slide, mpp, crop_size, (mask.shape[0], mask.shape[1]), np.packbits(own, axis=1), region)

    @property
    def pixels(self) -> int:
        """Pixels of the mask that are tissue."""
        return int(self._ends[-1])

    @property
    def area(self) -> float:
        """Tissue in mm²."""
        level = self.slide.levels[0]
        whole = level.height * level.mpp[0] * level.width * level.mpp[1] / 1e6
        return whole * self.pixels / (self.mask_shape[0] * self.mask_shape[1])

    @property
    def mask(self) -> np.ndarray:
        """``[h, w]`` bool over the whole slide."""
        return np.unpackbits(self.bits, axis=1, count=self.mask_shape[1]).astype(bool)

    @property
    def grid(self) -> Grid:
        """The pixels of the slide that crops are cut from."""
        return self.slide.grid(self.mpp)

    def bounds(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the rows and columns of :attr:`grid` that lie wholly in the region, (first, end) each."""
        grid, level = self.grid, self.slide.levels[0]
        sides = []
        for n, size, (first, end) in zip(
            (grid.height, grid.width), (level.height, level.width), self.region, strict=True
        ):
            low, high = -(-first * n // size), end * n // size
            sides.append((low, max(low + 1, high)) if low < n else (n - 1, n))
        return sides[0], sides[1]

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a crop, its centre uniform over the tissue; at the edges of the region it is moved inside.

        Args:
            rng: decides.

        Returns:
            Row, column, height and width in :attr:`grid`; where the region is smaller than a crop, all of it.
        """
        number = int(rng.integers(self.pixels))
        row = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[row - 1]) if row else 0
        column = int(np.flatnonzero(np.unpackbits(self.bits[row], count=self.mask_shape[1]))[number - before])
        grid = self.grid
        corner, size = [], []
        sides = zip(
            (row, column), self.mask_shape, (grid.height, grid.width), self.crop_size, self.bounds(), strict=True
        )
        for at, cells, pixels, wanted, (first, end) in sides:
            centre = (at + rng.random()) * pixels / cells
            own = min(wanted, end - first)
            corner.append(min(max(round(centre - own / 2), first), end - own))
            size.append(own)
        return corner[0], corner[1], size[0], size[1]

    def read(self, tile: Sequence[int]) -> np.ndarray:
        """Return the ``[3, height, width]`` uint8 of a crop that :meth:`draw` gave."""
        return read_part(self.slide, tile, self.mpp)

    def load(self, data: Mapping[Hashable, Any], key: Hashable) -> dict[Hashable, Any]:
        """Return an entry with the crop that its ``"tile"`` names, whose region is cut and whose spacing is reached."""
        d = {name: value for name, value in data.items() if name != "region"}
        if "tile" not in d:
            raise UserError(f"{d[key]} is a slide, of which crops are read and never the whole: draw one first.")
        pixels = torch.from_numpy(self.read(d["tile"]))
        spacing = [side / 1000 for side in self.mpp]
        d[key] = MetaTensor(
            pixels, meta={"filename_or_obj": str(d[key]), "original_dtype": "uint8", "spacing": spacing}
        )
        return d | {"spacing": spacing}


def tile_slides(
    selection: Selection,
    crop_size: Sequence[int] | int,
    spacing: Sequence[float] | None = None,
    percentiles: Sequence[float] | None = None,
    nonzero: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Find the tissue of each slide of a selection; pictures and volumes pass.

    Of a slide the low-resolution levels are read, from which tissue and percentiles are found. Where the selection has
    slides only and no validation part, some (a tenth, at most four; all of a patient's) are held out for previews; of
    fewer than five, a part of one slide is, with about 15 % of its tissue, that no training crop touches.

    Args:
        selection: what :func:`medmdm.data.select_training_images` returned; entries may name a ``region`` (pixels of
            the finest level) and their own ``spacing`` or ``magnification``, of the finest level.
        crop_size: pixels, (rows, columns) or one number for both.
        spacing: mm between the pixels of crops (rows, columns); ``None``: those of each slide's finest level.
        percentiles: [lower, upper] percentages; what they are of the tissue at a low resolution (8 µm, coarser on
            slides of more than 4096 such pixels) becomes −1 and 1, as in inference.
        nonzero: whether pixels of value 0 are left out of the percentiles.
        seed: chooses what is held out.
        progress: log how far the reading has come.

    Returns:
        The selection, entries of slides having ``"slide"`` (a :class:`Tissue`), ``"slide_hash"`` and, with percentiles,
        ``"intensity_range"``.

    Raises:
        UserError: a slide cannot be read or does not say how large its pixels are, a region leaves it, or no slide has
            tissue.
    """
    size = (crop_size, crop_size) if isinstance(crop_size, int) else (crop_size[0], crop_size[-1])
    bounds = None if percentiles is None else check_percentiles(percentiles)
    information = {} if selection.data_list is None else selection.data_list.information
    entries, count = [*selection.training, *selection.validation], len(selection.training)
    which = [i for i, e in enumerate(entries) if isinstance(e["image"], str) and is_slide(e["image"])]
    if not which:
        return selection
    mpp = None if spacing is None else (spacing[0] * 1000, spacing[-1] * 1000)
    with decoding_threads(min(_OPENERS, len(which))) as pool:
        opened = pool.imap(lambda i: _open_entry(entries[i], information, size, mpp, bounds, nonzero), which)
        found = dict(zip(which, followed(opened, "finding tissue", len(which), progress), strict=True))
    empty = [entry["image"] for entry in found.values() if not entry["slide"].pixels]
    if len(empty) == len(found):
        raise UserError(f"no tissue is found on {empty[0]}" + (", nor on any other slide." if empty[1:] else "."))
    warnings = [*selection.warnings, *(f"no tissue is found on {image}: it is left out" for image in empty)]
    area = f"{sum(entry['slide'].area for entry in found.values()):.3g} mm² of tissue"
    at = "at their finest level" if mpp is None else f"at {' x '.join(f'{side:g}' for side in dict.fromkeys(mpp))} µm"
    sentences = [
        *selection.sentences,
        f"{counted(len(found), 'slide')} with {area}, from which crops are read {at} as they are drawn",
    ]
    kept = [(i, found.get(i, entry)) for i, entry in enumerate(entries) if i not in found or found[i]["slide"].pixels]
    training = [entry for i, entry in kept if i < count]
    validation = [entry for i, entry in kept if i >= count]
    if not selection.validation and len(which) == len(entries):
        training, validation, sentence = _hold_out_slides(training, seed)
        sentences.append(sentence)
    return dataclasses.replace(
        selection, training=tuple(training), validation=tuple(validation), sentences=tuple(sentences),
        warnings=tuple(warnings),
    )  # fmt: skip


def read_part(slide: Slide, part: Sequence[int], mpp: float | Sequence[float]) -> np.ndarray:
    """Return the ``[3, height, width]`` uint8 of a part of a slide, of which few stay open.

    Args:
        slide: any.
        part: row, column, height and width in ``slide.grid(mpp)``.
        mpp: µm, one number or (rows, columns).
    """
    row, column, height, width = part
    with _reading:
        _open.pop(id(slide), None)
        _open[id(slide)] = slide
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)[1].close()
        return slide.region(row, column, height, width, mpp)


def _open_entry(
    entry: Mapping[str, Any],
    information: Mapping[str, Any],
    crop_size: tuple[int, int],
    mpp: tuple[float, float] | None,
    percentiles: tuple[float, float] | None,
    nonzero: bool,
) -> dict[str, Any]:
    image = entry["image"]
    with Slide(image, listed_spacing(entry, information)) as slide:
        level = slide.levels[0]
        sides = level.height * level.mpp[0], level.width * level.mpp[1]
        coarse = max(_FINEST_MPP, *level.mpp, *(side / _MOST_PIXELS for side in sides))
        mask = slide.tissue(coarse)
        region = []
        for key, size in (("rows", level.height), ("columns", level.width)):
            first, end = (entry.get("region") or {}).get(key, (0, size))
            if end > size:
                raise UserError(f"{image} has {size} {key}, but its region asks for {first} to {end}: correct it.")
            region.append((int(first), int(end)))
        wanted = level.mpp if mpp is None else mpp
        tissue = Tissue.of(slide, mask, wanted, crop_size, (region[0], region[1]))
        kept = {key: value for key, value in entry.items() if key not in ("spacing", "magnification")}
        found: dict[str, Any] = {**kept, "slide": tissue, "slide_hash": slide_hash(image, slide)}
        if percentiles is not None:
            overview = slide.overview()
            shown = tissue_mask(overview)  # inference takes the percentiles of the same pixels
            pixels = torch.from_numpy(overview[:, shown] if shown.any() else overview)
            found["intensity_range"] = ScaleByPercentiles(*percentiles, nonzero).ranges(pixels)
    return found


def _hold_out_slides(
    training: Sequence[dict[str, Any]], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Take some slides, or where there are few a part of one, out of training."""
    rest, held_out = for_previews(training, lambda entry: entry, [seed, 5])
    if held_out:
        return rest, held_out, f"{counted(len(held_out), 'slide')} held out for previews"
    for which in sorted(range(len(training)), key=lambda i: -training[i]["slide"].pixels):
        parts = _split(training[which]["slide"])
        others = [one for i, one in enumerate(training) if i != which and one["image"] == training[which]["image"]]
        if parts is None or others:  # parts of one slide that the list names may touch each other
            continue
        entry = training[which]
        held, kept = ({**entry, "slide": part, "region": _as_region(part.region)} for part in parts)
        kept["case_region"] = entry.get("region")
        share = parts[0].pixels / (parts[0].pixels + parts[1].pixels)
        sentence = (
            f"{share:.0%} of the tissue of a slide held out for previews; the rest of it trains, so the previews "
            "flatter: name validation slides in a data list for fair ones"
        )
        return [kept if i == which else one for i, one in enumerate(training)], [held], sentence
    return list(training), [], "no part of a slide is held out: the slides are too small"


def _split(tissue: Tissue) -> tuple[Tissue, Tissue] | None:
    """Return (the part to hold out, the rest): the end of the slide, along its longer side, with enough tissue."""
    mask, level = tissue.mask, tissue.slide.levels[0]
    sizes = level.height, level.width
    axis = int(np.argmax([end - first for first, end in tissue.region]))
    along = mask.sum(axis=1 - axis)
    enough = np.flatnonzero(np.cumsum(along[::-1])[::-1] >= _PART_SHARE * along.sum())[-1]  # the last row with so much
    (first, end), factor = tissue.region[axis], tissue.mpp[axis] / level.mpp[axis]
    crop = int(np.ceil(tissue.crop_size[axis] * factor)) + 1
    gap = int(np.ceil(2 * factor))  # what a crop at the cut is low-pass filtered from
    cut = min(int(enough * sizes[axis] / len(along)), end - crop)
    if cut - gap - first < crop:
        return None
    parts = []
    for bounds in ((cut, end), (first, cut - gap)):
        region = (bounds, tissue.region[1]) if axis == 0 else (tissue.region[0], bounds)
        parts.append(Tissue.of(tissue.slide, mask, tissue.mpp, tissue.crop_size, region))
    return (parts[0], parts[1]) if parts[0].pixels and parts[1].pixels else None


def _as_region(region: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, list[int]]:
    return {"rows": list(region[0]), "columns": list(region[1])}
