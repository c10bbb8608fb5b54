"""MoNuSeg 2018, nuclei of several organs (MICCAI 2018): TIFF images with Aperio XML, from The Cancer Genome Atlas."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from skimage.segmentation import relabel_sequential

from medmdm.data.files.aperio import draw_regions, read_aperio
from medmdm.data.lists import load_data_list
from medmdm.data.mask_names import is_mask
from medmdm.errors import UserError, counted
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile, by_stem

# The data list that also trains on the images which the later release added to the 30 of the paper.
LATER_LIST = "dataset_with_later_images.json"
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
    bare = images.keys() - outlines.keys()
    found = by_stem(f for f in release.images if is_mask(f.path) and _MASK_WORDS.sub("", f.stem) in bare)
    masks = {_MASK_WORDS.sub("", stem): file for stem, file in found.items()}
    cases = []
    for section in ("training", "test", None):  # as in the published list, which is in string order; then later images
        for stem in sorted(stem for stem in images if sections.get(stem) == section):
            truths = [truth[stem] for truth in (outlines, masks) if stem in truth]
            row, columns = section or "later images", {"patient_id": stem[:12]}
            cases.append(picture_case(stem, section, images[stem], truths, _nuclei, row=row, columns=columns))
    notices = [*release.notices, *_notices(sections, images, outlines, masks)]
    later = [case for case in cases if case.section is None]
    other_lists: dict[str, Any] = {}
    if later:
        notices.append(
            f"{counted(len(later), 'training image')} of the later release not among the paper's 30: dataset.json "
            f"leaves them out, {LATER_LIST} trains on them too"
        )
        text = f"{published.information['description']} This list adds the images of the later release."
        other_lists[LATER_LIST] = ({"description": text}, "training")
    scale = {"objective": "40x", "spacing": [0.00025, 0.00025]}  # mm, for images whose XML states none
    information = {"name": published.name, **published.information, **scale}
    return Preparation(information, tuple(cases), tuple(notices), other_lists)


def _nuclei(image: SourceFile, shape: tuple[int, ...], truth: SourceFile) -> Label:
    if truth.suffix != ".xml":
        return Label(relabel_sequential(read_label(truth, shape, image))[0])
    with truth.local() as path:
        annotation = read_aperio(path)
        drawing = draw_regions(annotation.regions, shape)
    columns = {}
    if annotation.microns_per_pixel is not None:
        columns["spacing"] = [round(annotation.microns_per_pixel / 1000, 9)] * 2  # mm
    notes = []  # on regions that did not become an instance
    for regions, what in (
        (drawing.unfilled, "region(s) of fewer than three vertices not filled"),
        (drawing.outside, "region(s) cover no pixel of the image"),
        (drawing.overpainted, "region(s) wholly covered by later ones"),
        (drawing.holes, "negative region(s) cut out"),
    ):
        if regions:
            shown = ", ".join(region.identifier for region in regions[:10]) + (", ..." if len(regions) > 10 else "")
            notes.append(f"{truth.path.name}: {len(regions)} {what} (Id {shown})")
    return Label(drawing.mask, {"regions": len(annotation.regions)}, columns, tuple(notes))


def _notices(
    sections: Mapping[str, str], images: Mapping[str, Any], outlines: Container[str], masks: Container[str]
) -> Iterator[str]:
    for section in ("training", "test"):
        stems = [stem for stem, own in sections.items() if own == section]
        absent = sum(stem not in images for stem in stems)
        if absent:
            yield f"{section}: {absent} of {len(stems)} images are not in the source"
    from_masks = [stem for stem in images if stem not in outlines and stem in masks]
    if from_masks:
        yield f"{counted(len(from_masks), 'image', 'has', 'have')} no XML: instance masks are used"
    without = [stem for stem in images if stem not in outlines and stem not in masks]
    if without:
        lacking = counted(len(without), "image", "has", "have")
        yield f"{lacking} neither XML nor instance mask, so there is no label: {', '.join(without)}"
