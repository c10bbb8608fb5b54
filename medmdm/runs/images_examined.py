"""What a config's images look like before a run: a few are read, the others are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.check.sharing import quick_check, shared_patients
from medmdm.data.cases import select_cases
from medmdm.data.files.decoding import decode
from medmdm.data.files.formats import is_volume
from medmdm.data.files.pictures import image_size
from medmdm.data.files.slides import Slide, is_slide
from medmdm.data.files.volumes import WHOLE
from medmdm.data.lists import image_names
from medmdm.data.mask_names import is_mask
from medmdm.data.reading import CaseReader
from medmdm.data.selection import Selection, require_scaling
from medmdm.data.time_series import TIME, check_time_series
from medmdm.errors import counted
from medmdm.runs.examination import Examination

_READ = 3  # images that are decoded, of those with labels to learn from or to score, and of the others
_LARGEST = 256 * 2**20  # bytes of a file that is: a larger one takes longer than an examination may


def look_at_training_images(x: Examination) -> int:
    """Look at the images of a pre-training; return about how many bytes they take once decoded."""
    selection = x.part("selection")
    if selection is None:
        return 0
    for sentence in selection.warnings:
        x.warning("images", sentence)
    chosen = (x.part("labelled") if "labelled" in x.parser else None) or selection
    if _files(x, [*chosen.training, *chosen.validation]):
        return 0
    with x.noting("images"):
        for sentence in quick_check(selection):
            x.warning("patients", sentence)
    if selection.data_list is not None:
        masks = [name for entry in selection.training for name in image_names(entry) if is_mask(Path(name))]
        if masks:
            said = f"{counted(len(masks), 'training image', 'is', 'are')} named as masks are (first: {masks[0]})"
            x.warning("labels", f"{said}: a pre-training learns from images, so take labels out of 'training'")
    x.info("images", "; ".join(selection.sentences[:1]))
    entries = selection.training
    volumes = [entry for entry in entries if isinstance(entry["image"], list) or is_volume(entry["image"])]
    if volumes:
        with x.noting("range"):
            require_scaling(selection, x.given("percentiles"), x.part("scaled_range"))
        _axes(x, volumes)
        return sum(os.path.getsize(name) for entry in volumes for name in image_names(entry) if os.path.isfile(name))
    return _pictures(x)


def _axes(x: Examination, volumes: Sequence[Mapping[str, Any]]) -> None:
    """See whether volumes, their slices or their frames go with the crops."""
    axis, crop = x.given("slice_axis"), x.given("crop_size")
    if len(crop) != (3 if axis == WHOLE else 2):
        kind = "whole volumes are read, with three" if axis == WHOLE else "slices are read, with two"
        x.error("size", f"crop_size is {crop}, but by slice_axis {axis!r} {kind} axes: give as many numbers")
    if axis == WHOLE and x.given("context_slices"):
        x.error("size", "context_slices is not 0, but by slice_axis 'none' volumes are read whole: set it to 0")
    for entry in volumes[:_READ] if axis == TIME else ():
        with x.noting("images"):
            check_time_series(entry["image"])


def look_at_probe(x: Examination) -> None:
    """Look for the labelled images of a pre-training's probe."""
    if x.given("probe_data_list") is not None:
        with x.noting("files"):
            cases = select_cases(x.given("probe_dataset_dir"), x.given("probe_data_list"), ("training", "validation"))
            _files(x, [*cases.training, *cases.validation])


def _pictures(x: Examination) -> int:
    slices, steps = x.part("slices"), x.part("preview_preprocessing")  # pictures pass both unread
    if slices is None or steps is None:
        return 0
    crop, channels, size = x.given("crop_size"), x.given("channels"), 0
    crops, small = 0, []
    chosen = _spread(slices.training)
    for entry in chosen:
        name = image_names(entry)[0]
        with x.noting("images", name):
            rows, columns = image_size(name)
            crops += max(1, rows // crop[0]) * max(1, columns // crop[-1])
            small += [name] if rows < crop[0] or columns < crop[-1] else []
            image = np.asarray(steps(dict(entry))["image"])
            if len(image) != channels:
                x.error("channels", f"{name} has {counted(len(image), 'channel')}, but channels is {channels}", name)
            size = max(size, rows * columns * len(image))
            _clipped(x, name)
    if small and len(small) == len(chosen) and x.given("spacing") is None and x.given("magnification") is None:
        x.warning("size", f"{small[0]} and others are smaller than crop_size {crop}, so that crops are padded", *small)
    count, batch = len(slices.training), x.given("batch_size")
    if chosen and batch > crops / len(chosen) * count:
        holds = f"{counted(count, 'image')} of about {crops / len(chosen):.0f} crops"
        x.warning("batch", f"batch_size {batch} is more than {holds}: a batch shows the same pixels several times")
    return size * count


def _clipped(x: Examination, name: str) -> None:
    """Say where most of an image lies outside the values that become -1 and 1."""
    stored = x.part("scaled_range")
    if stored is None:
        return
    values = decode(Path(name)).array
    outside = float(((values < stored[0]) | (values > stored[1])).mean())
    if outside > 0.5:
        said = f"{outside:.0%} of {name} lie outside the values that become -1 and 1, {list(stored)}"
        x.error("range", f"{said}: correct intensity_range or window", name)


def look_at_cases(x: Examination, cases: Selection, reader: CaseReader | None) -> None:
    """Look at labelled cases, or at images to be segmented; without a reader only whether they are there."""
    for sentence in cases.warnings:
        x.warning("images", sentence)
    x.info("images", "; ".join(cases.sentences[:1]))
    listed = [*cases.training, *cases.validation, *cases.test], cases.unlabeled
    if _files(x, [entry for entries in listed for entry in entries]):
        return
    if cases.data_list is not None:
        for finding in shared_patients(cases.data_list):
            x.warning("patients", finding.message, *finding.files)
    if reader is not None:
        for entries in listed:
            _read_a_few(x, entries, reader)


def _read_a_few(x: Examination, entries: Sequence[Mapping[str, Any]], reader: CaseReader) -> None:
    """Read pictures, open slides, and see whether volumes can be read."""
    kinds: dict[str, list[Mapping[str, Any]]] = {"slide": [], "volume": [], "picture": []}
    for entry in entries:
        name = image_names(entry)[0]
        kinds["slide" if is_slide(name) else "volume" if is_volume(name) else "picture"].append(entry)
    for entry in kinds["slide"][:_READ]:
        with x.noting("images"), Slide(entry["image"], entry.get("spacing")):
            pass  # says how large its pixels are
    for entry in kinds["volume"][:1]:
        with x.noting("images"):
            reader.refuse_volume(entry)
    wanted = reader.plan.get("channels")
    for entry in _spread(kinds["picture"]):
        with x.noting("images", str(entry["image"])):
            case = reader.read(entry)
            found = len(case.examples[0].image)
            if wanted is not None and found != wanted:
                x.error("channels", f"{entry['image']} has {counted(found, 'channel')}, but {wanted} are read")


def _spread(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a few entries, from the first to the last, whose files are not very large."""
    fit = [entry for entry in entries if all(_size(name) <= _LARGEST for name in image_names(entry))]
    if not fit:
        return []
    return [fit[i] for i in sorted({round(i) for i in np.linspace(0, len(fit) - 1, _READ)})]


def _files(x: Examination, entries: Iterable[Mapping[str, Any]]) -> int:
    """Note files that cannot be opened; return how many."""
    names = dict.fromkeys(
        name for entry in entries for name in (*image_names(entry), *([entry["label"]] if entry.get("label") else []))
    )
    wrong = 0
    for name in names:
        reason = _unusable(Path(name))
        if reason:
            wrong += 1
            x.error("files", f"{name} {reason}", name)
    return wrong


def _unusable(path: Path) -> str:
    if not path.exists():
        return "does not exist: restore it, or correct the data list"
    if not os.access(path, os.R_OK):
        return "may not be read: check its permissions"
    return "is empty: restore it" if path.is_file() and not path.stat().st_size else ""


def _size(name: str) -> int:
    return os.path.getsize(name) if os.path.isfile(name) else 0
