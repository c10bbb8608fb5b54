"""MoNuSeg 2018, nuclei of several organs (MICCAI 2018): TIFF images with Aperio XML, from The Cancer Genome Atlas."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from skimage.segmentation import relabel_sequential

from medmdm.data.files.aperio import Drawing, Region, draw_regions, read_aperio
from medmdm.data.folders import is_mask
from medmdm.data.lists import DataList, load_data_list
from medmdm.errors import UserError
from medmdm.prepare.preparation import Label, Preparation, SourceCase, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile, by_stem

# The data list that also trains on the images which the later release added to the 30 of the paper.
LATER_LIST = "dataset_with_later_images.json"
_LATER = "later images"
_TCGA = re.compile(r"TCGA-..-....-")
_MASK_WORDS = re.compile(r"[_\-](?:instances?|inst|masks?|labels?)$")


def plan(release: Release) -> Preparation:
    """Plan MoNuSeg: TIFF images, and for each the Aperio XML or else an instance mask of the same name."""
    published = load_data_list("monuseg")
    sections = {
        PurePosixPath(entry["image"]).stem: section
        for section in ("training", "test")
        for entry in getattr(published, section)
    }
    images = by_stem(
        file for file in release.images if not is_mask(file.path) and (file.stem in sections or _TCGA.match(file.stem))
    )
    if not images:
        raise UserError(f"{release.source} holds no MoNuSeg image (TCGA-*.tif): give the release's folder.")
    outlines = by_stem(file for file in release.files if file.suffix == ".xml" and file.stem in images)
    masks = {_MASK_WORDS.sub("", stem): file for stem, file in by_stem(_masks(release, images, outlines)).items()}
    groups = ("training", "test", None)  # as in the published list, which is in string order; then later images
    cases = [
        _case(stem, section, images[stem], outlines.get(stem) or masks.get(stem))
        for section in groups
        for stem in sorted(images)
        if sections.get(stem) == section
    ]
    notices = [*release.notices, *_missing(published, images), *_truths(images, outlines, masks)]
    later = [case for case in cases if case.section is None]
    other_lists: dict[str, Any] = {}
    if later:
        notices.append(
            f"{len(later)} training images of the later release are not among the paper's 30: dataset.json leaves them "
            f"out, {LATER_LIST} trains on them too"
        )
        other_lists[LATER_LIST] = (
            {"description": f"{published.information['description']} This list adds the images of the later release."},
            "training",
        )
    information = {
        "name": published.name,
        **published.information,
        "objective": "40x",
        "spacing": [0.00025, 0.00025],  # mm, for images whose XML states none
    }
    return Preparation(information, tuple(cases), tuple(notices), other_lists)


def _masks(release: Release, images: Container[str], outlines: Container[str]) -> Iterator[SourceFile]:
    """Give the instance masks of images that have no XML."""
    for file in release.images:
        stem = _MASK_WORDS.sub("", file.stem)
        if is_mask(file.path) and stem in images and stem not in outlines:
            yield file


def _case(stem: str, section: str | None, image: SourceFile, truth: SourceFile | None) -> SourceCase:
    truths = () if truth is None else (truth,)
    nuclei, columns = partial(_nuclei, image), {"patient_id": stem[:12]}
    return picture_case(stem, section, image, truths, nuclei, row=section or _LATER, columns=columns)


def _nuclei(image: SourceFile, shape: tuple[int, ...], truth: SourceFile) -> Label:
    if truth.suffix != ".xml":
        return Label(relabel_sequential(read_label(truth, shape, image))[0])
    with truth.local() as path:
        annotation = read_aperio(path)
        drawing = draw_regions(annotation.regions, shape)
    columns = {}
    if annotation.microns_per_pixel is not None:
        columns["spacing"] = [round(annotation.microns_per_pixel / 1000, 9)] * 2  # mm
    return Label(drawing.mask, {"regions": len(annotation.regions)}, columns, _oddities(truth, drawing))


def _oddities(truth: SourceFile, drawing: Drawing) -> tuple[str, ...]:
    """Say which regions did not become an instance."""

    def sentence(regions: Sequence[Region], what: str) -> list[str]:
        if not regions:
            return []
        shown = ", ".join(region.identifier for region in regions[:10]) + (", ..." if len(regions) > 10 else "")
        return [f"{truth.path.name}: {len(regions)} {what} (Id {shown})"]

    return (
        *sentence(drawing.unfilled, "region(s) of fewer than three vertices not filled"),
        *sentence(drawing.outside, "region(s) cover no pixel of the image"),
        *sentence(drawing.overpainted, "region(s) wholly covered by later ones"),
        *sentence(drawing.holes, "negative region(s) cut out"),
    )


def _missing(published: DataList, images: dict[str, SourceFile]) -> list[str]:
    sentences = []
    for section in ("training", "test"):
        entries = getattr(published, section)
        absent = sum(PurePosixPath(entry["image"]).stem not in images for entry in entries)
        if absent:
            sentences.append(f"{section}: {absent} of {len(entries)} images are not in the source")
    return sentences


def _truths(images: Iterable[str], outlines: dict[str, SourceFile], masks: dict[str, SourceFile]) -> list[str]:
    from_masks = [stem for stem in images if stem not in outlines and stem in masks]
    without = [stem for stem in images if stem not in outlines and stem not in masks]
    sentences = []
    if from_masks:
        sentences.append(f"{len(from_masks)} images have no XML: their instance masks are used")
    if without:
        sentences.append(
            f"{len(without)} images have neither XML nor instance mask and get no label: {', '.join(without)}"
        )
    return sentences
