"""Segment a whole-slide image: tissue first, then tile by tile, in memory that does not grow with the slide."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmdm.data.files.slides import Grid, Slide, slide_hash, tissue_mask
from medmdm.data.pyramid_writer import blocks, halved, new_array, open_store, write_pyramid
from medmdm.data.reading import CaseReader, Example, LoadedCase
from medmdm.data.transforms.intensity import ScaleByPercentiles, ScaleIntensityByDtype
from medmdm.data.transforms.spatial import as_spacing
from medmdm.errors import UserError, refuse_full_disk, warn_once
from medmdm.heads.predictor import Predictor
from medmdm.segment.evaluation import Outputs, Predicted
from medmdm.segment.formats.base import CaseFormat, Origin, Segmented, Traced
from medmdm.segment.postprocessing import PostProcess, Postprocessing

logger = logging.getLogger(__name__)

_OVERLAY = 1024  # pixels along the longer side of what is drawn and compared, less than twice that
_OUTLINED = 8192  # pixels along the longer side of a mask that outlines are traced on, at most
_MOST_EDGES = 1_000_000  # between its pixels: each takes about a kilobyte when it is traced
_SCRATCH = ".slide_scratch"  # in the folder of the masks; one that a killed run left is made anew


@dataclass(frozen=True)
class SegmentedSlide:
    """What was made of a slide.

    Args:
        case: the slide at a low resolution, as networks read it; its spacing is that of the masks.
        tissue: the same, but only the pixels with tissue, ``[3, 1, n]``: what is compared with what was learnt from.
        found: the files, and the coarsest level of the mask.
        facts: for the record: size, µm per pixel and level that were read, share of tissue, how intensities are scaled,
            µm per pixel of the outlines.
        outlined: the level of the mask that outlines are traced on, and how it lies on the slide; None where no format
            asks for it.
    """

    case: LoadedCase
    tissue: LoadedCase
    found: Predicted
    facts: Mapping[str, Any]
    outlined: tuple[np.ndarray, Traced] | None = None

    def written(self, outputs: Outputs, origin: Origin) -> SegmentedSlide:
        """Write the files for other programs, and name them among those found."""
        if self.outlined is None:
            return self
        mask, traced = self.outlined
        made = Segmented(Path(outputs.folder), self.case, mask, None, None, origin, traced)
        files = dict(self.found.files)
        for form in outputs.formats:
            if isinstance(form, CaseFormat) and form.for_slides:
                files |= form.write(made)
        return dataclasses.replace(self, found=dataclasses.replace(self.found, files=files))


def segment_slide(
    entry: Mapping[str, Any],
    reader: CaseReader,
    predictor: Predictor,
    postprocess: Postprocessing,
    outputs: Outputs,
) -> SegmentedSlide:
    """Write the mask of a slide, and its probabilities if asked for, as pyramidal OME-TIFF at the plan's spacing.

    The slide is read at the spacing of the backbone's plan (without one at its finest level). Windows that have no
    tissue are not read: what no window covers is background. The others are blended as those of pictures are, with the
    same result. Where the plan scales by percentiles, they are those of the tissue at a low resolution. Small objects
    and holes are those of the whole slide; their sizes in pixels are pixels of the mask.

    Args:
        entry: of :func:`medmdm.data.select_cases`.
        reader: its plan says how the backbone reads.
        predictor: reads sliding windows.
        postprocess: a :class:`PostProcess`; it finds no instances here.
        outputs: the folder, and whether probabilities are written.

    Raises:
        UserError: the slide cannot be read, its pixel size is not known, the segmenter reads pictures whole or of
            another number of channels, or the post-processing is of another kind.
    """
    name, chosen = str(entry["case"]), _checked(entry, reader, postprocess, outputs)
    folder = Path(outputs.folder) / "predictions"
    with Slide(entry["image"], entry.get("spacing")) as slide:
        target = as_spacing(reader.plan.get("spacing"))
        grid = slide.grid(slide.mpp if target is None else [side * 1000 for side in target])
        overview = slide.overview()
        tissue = tissue_mask(overview)
        scale, how = _scaling(reader, overview, tissue)
        logger.info(
            "%s: %d x %d pixels of %.4g µm (level %d), %.0f %% of the slide is tissue", name, grid.height, grid.width,
            grid.mpp[0], grid.level, 100 * tissue.mean(),
        )  # fmt: skip

        def read(rows: slice, columns: slice) -> Tensor:
            size = rows.stop - rows.start, columns.stop - columns.start
            return scale(torch.from_numpy(slide.region(rows.start, columns.start, *size, grid.mpp)))

        with _scratch(folder) as store:
            made = _predict(predictor, chosen, read, _on_tissue(tissue, grid), grid, outputs.probabilities, store)
            files = {"prediction": f"predictions/{name}.ome.tif"}
            masks = halved(store, "mask", _finished(store, made["mask"], chosen, grid))
            write_pyramid(Path(outputs.folder) / files["prediction"], masks, grid.mpp)
            if "probabilities" in made:
                files["probabilities"] = f"predictions/{name}_probabilities.ome.tif"
                shares = halved(store, "probabilities", made["probabilities"])
                write_pyramid(Path(outputs.folder) / files["probabilities"], shares, grid.mpp)
            mask = masks[-1][:]
            digest = slide_hash(entry["image"], slide)
            outlined = _outlined(masks, slide) if any(form.for_slides for form in outputs.formats) else None
    step = max(1, max(tissue.shape) // _OVERLAY)
    overview, tissue_there = (np.ascontiguousarray(one[..., ::step, ::step]) for one in (overview, tissue))
    small = scale(torch.from_numpy(overview))
    spacing, shape = (grid.mpp[0] / 1000, grid.mpp[1] / 1000), (grid.height, grid.width)
    case = LoadedCase(entry, [_example(small, name)], (), None, None, shape, (digest, digest), spacing, overview)
    seen = small[:, torch.from_numpy(tissue_there)][:, None] if tissue_there.any() else small
    facts = {
        "size": list(shape), "mpp": list(grid.mpp), "level": grid.level, "tissue": round(float(tissue.mean()), 4),
        "intensities": how,
    }  # fmt: skip
    if outlined is not None:
        facts["outlines_mpp"] = list(outlined[1].mpp)
    found = Predicted(mask, None, {}, files)
    return SegmentedSlide(case, dataclasses.replace(case, examples=[_example(seen, name)]), found, facts, outlined)


def _outlined(masks: Sequence[Any], slide: Slide) -> tuple[np.ndarray, Traced]:
    """Return the finest level of a mask whose outlines are found in little memory, and how it lies on the slide."""
    finest = slide.levels[0]
    number = next((n for n, level in enumerate(masks) if max(level.shape) <= _OUTLINED), len(masks) - 1)
    mask = masks[number][:]
    while number < len(masks) - 1 and sum(np.count_nonzero(np.diff(mask, axis=a)) for a in (0, 1)) > _MOST_EDGES:
        number += 1
        mask = masks[number][:]
    # Edges of the image stay in place when it is resampled, and a coarser level has every second pixel.
    sizes = zip((finest.height, finest.width), masks[0].shape, strict=True)
    down, across = (n / pixels * 2**number for n, pixels in sizes)
    mpp = finest.mpp[0] * down, finest.mpp[1] * across
    return mask, Traced((down, across), (finest.height, finest.width), mpp)


def _checked(
    entry: Mapping[str, Any], reader: CaseReader, postprocess: Postprocessing, outputs: Outputs
) -> PostProcess:
    """Refuse what is not done with slides; return the post-processing without its search for instances."""
    path = entry["image"]
    if reader.whole:
        raise UserError(f"{path} is a slide, but the network reads volumes whole: give it volumes.")
    if entry.get("region") is not None:
        raise UserError(f"{path} is a slide, of which the data list names a region: slides are segmented whole.")
    if (channels := reader.plan.get("channels", 3)) not in (None, 3):
        raise UserError(f"{path} is a slide, which has 3 channels, but the backbone takes {channels}.")
    if type(postprocess) is not PostProcess:
        raise UserError(
            f"{path} is a slide, which only medmdm's own PostProcess can process part by part: set postprocess."
        )
    if postprocess.keep_largest is True:
        raise UserError(f"{path} is a slide, whose largest parts are not looked for: set keep_largest to false.")
    left_out = [
        what
        for what, asked in (
            ("instances", postprocess.instances not in (None, "auto")),
            ("maps of uncertainty", outputs.uncertainty),
            ("maps of surprise", outputs.reconstruction_error is not None),
        )
        if asked
    ]
    if left_out:
        warn_once(f"of slides only masks and probabilities are written, no {' and no '.join(left_out)}")
    return dataclasses.replace(postprocess, instances=None)


def _scaling(reader: CaseReader, overview: np.ndarray, tissue: np.ndarray) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return what scales pixels to [-1, 1] by the plan, and how it does in words."""
    scale = ScaleIntensityByDtype(reader.plan.get("intensity_range"))
    if reader.percentiles is None:
        return scale, "the range of the plan" if reader.plan.get("intensity_range") else "the range of 8 bits"
    pixels = torch.from_numpy(overview[:, tissue] if tissue.any() else overview)
    ranges = ScaleByPercentiles(*reader.percentiles, reader.nonzero).ranges(pixels)
    lower, upper = reader.percentiles
    return lambda image: scale(image, ranges), f"percentiles {lower:g} and {upper:g} of its tissue at low resolution"


def _on_tissue(tissue: np.ndarray, grid: Grid) -> Callable[[slice, slice], bool]:
    """Return whether there is tissue at some rows and columns of the grid."""
    scales = tissue.shape[0] / grid.height, tissue.shape[1] / grid.width

    def wanted(rows: slice, columns: slice) -> bool:
        places = (
            slice(math.floor(part.start * scale), math.ceil(part.stop * scale))
            for part, scale in zip((rows, columns), scales, strict=True)
        )
        return bool(tissue[tuple(places)].any())

    return wanted


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Any]:
    """Give a store that is gone afterwards; what a killed run left of it goes before."""
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    try:
        with refuse_full_disk(folder):
            yield open_store(folder / _SCRATCH)
    finally:
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)


def _predict(
    predictor: Predictor,
    postprocess: PostProcess,
    read: Callable[[slice, slice], Tensor],
    wanted: Callable[[slice, slice], bool],
    grid: Grid,
    probabilities: bool,
    store: Any,
) -> dict[str, Any]:
    """Return the arrays of what was predicted, ``mask`` before objects are looked at."""
    size, background = (grid.height, grid.width), postprocess.background
    made = {"mask": new_array(store, "mask", size, "uint8", background)}
    shares = None
    for row, column, values in predictor.parts(read, size, wanted):
        known = ~np.isnan(values[0])
        rows, columns = slice(row, row + values.shape[1]), slice(column, column + values.shape[2])
        classes = postprocess.classes(np.nan_to_num(values))
        made["mask"][rows, columns] = np.where(known, classes, background).astype(np.uint8)
        if probabilities:
            if shares is None:
                shares = new_array(store, "probabilities", (len(values), *size), "float32", math.nan)
            shares[:, rows, columns] = values
    if shares is not None:
        made["probabilities"] = _Shares(shares, background)
    elif probabilities:
        warn_once("of slides without tissue no probabilities are written")
    return made


@dataclass(frozen=True)
class _Shares:
    """Probabilities ``[K, H, W]`` in a store, those of pixels that no window covers being 1 for background."""

    array: Any
    background: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        return 3

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __getitem__(self, place: tuple[int, slice, slice]) -> np.ndarray:
        values = np.asarray(self.array[place])
        return np.where(np.isnan(values), np.float32(place[0] == self.background), values)


def _finished(store: Any, mask: Any, postprocess: PostProcess, grid: Grid) -> Any:
    """Return the mask without small objects and holes, to the bit as they are found in the whole.

    Parts are looked at with what surrounds them: an object that reaches from a part to the end of a margin as wide as
    the least size in pixels is no smaller than that, and so are holes.
    """
    spacing = grid.mpp[0] / 1000, grid.mpp[1] / 1000
    least = 0.0 if isinstance(postprocess.remove_small_objects, str) else postprocess.remove_small_objects
    if not (least or postprocess.fill_holes_below):
        return mask
    pixel = math.prod(spacing) if postprocess.in_mm else 1.0
    margin = math.ceil(least / pixel) + math.ceil(postprocess.fill_holes_below / pixel) + 2
    result = new_array(store, "finished", mask.shape, "uint8", postprocess.background)
    for rows, columns in blocks(mask.shape):
        top, left = max(0, rows.start - margin), max(0, columns.start - margin)
        part = mask[top : rows.stop + margin, left : columns.stop + margin]
        if (part == postprocess.background).all():
            continue
        done = postprocess.finished(part, spacing)["mask"]
        assert done is not None
        result[rows, columns] = done[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return result


def _example(image: Tensor, name: str) -> Example:
    return Example(image, torch.zeros(image.shape[1:], dtype=torch.long), name)
