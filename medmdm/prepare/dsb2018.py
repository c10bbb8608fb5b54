"""Data Science Bowl 2018, nuclei in mixed microscopy: a folder for each image, and in it a PNG for every nucleus."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
from skimage.segmentation import relabel_sequential

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.errors import UserError, counted
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile, by_stem

_TRAINING_IMAGES = 670
_TEST = re.compile(r"stage\d_test", re.IGNORECASE)
_INFORMATION = {
    "name": "dsb2018",
    "description": "2018 Data Science Bowl, stage 1: nuclei in fluorescence, H&E and other microscopy at several "
    "magnifications, images of many sizes. Labels number the nuclei 1..n in the order of their masks' names, 0 is "
    "background. There is no patient id. The test images of stage 1 have no masks.",
    "split": "official",
    "licence": "CC0 1.0",
    "citation": "Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature "
    "Methods 16:1247-1253, 2019, https://doi.org/10.1038/s41592-019-0612-7",
    "channels": {"0": "red", "1": "green", "2": "blue"},
    "labels": {"background": 0, "nucleus": 1},
    "label_type": "instances",
}


def plan(release: Release) -> Preparation:
    """Plan stage 1 of the Data Science Bowl 2018: ``<id>/images/<id>.png`` and ``<id>/masks/*.png``."""
    files = [file for file in release.images if len(file.path.parts) >= 2]
    images = by_stem(file for file in files if file.path.parent.name == "images")
    if not images:
        raise UserError(
            f"{release.source} holds no <id>/images/<id>.png of the Data Science Bowl 2018: give stage1_train, its "
            "zip file, or the folder that both stages are in."
        )
    masks: dict[PurePosixPath, list[SourceFile]] = {}
    for file in files:
        if file.path.parent.name == "masks":
            masks.setdefault(file.path.parent.parent, []).append(file)
    cases, empty = [], []
    for stem, image in images.items():
        own = masks.get(image.path.parent.parent, [])
        # The folder's name tells the stage; SOURCE may be that folder itself, or its zip file.
        is_test = not own and any(_TEST.match(part) for part in (release.name, *image.path.parts))
        if not own and not is_test:
            empty.append(stem)
        section = "test" if is_test else "training"
        cases.append(picture_case(stem, section, image, own, _nuclei))
    training = sum(case.section == "training" for case in cases)
    notices = list(release.notices)
    if training < _TRAINING_IMAGES:
        notices.append(f"training: {_TRAINING_IMAGES - training} of {_TRAINING_IMAGES} images are not in the source")
    if empty:
        notices.append(
            f"{counted(len(empty), 'training image', 'has', 'have')} no masks, so no label: {', '.join(empty[:5])}"
        )
    return Preparation(_INFORMATION, tuple(cases), tuple(notices))


def _nuclei(image: SourceFile, shape: tuple[int, ...], *masks: SourceFile) -> Label:
    """Draw one nucleus after the other; later ones win where they overlap, which official masks do not."""
    if len(masks) > MAX_INSTANCES:
        raise UserError(f"{image.shown} has {len(masks)} masks, more than a 16-bit mask can number.")
    label = np.zeros(shape, np.uint16)
    number, overlap, blank = 0, 0, 0
    for mask in masks:
        nucleus = read_label(mask, shape, image) > 0
        if not nucleus.any():
            blank += 1
            continue
        number += 1
        overlap += int(np.count_nonzero(label[nucleus]))
        label[nucleus] = number
    notes = []
    if blank:
        notes.append(f"{image.stem[:12]}: {counted(blank, 'mask', 'is', 'are')} empty")
    if overlap:
        notes.append(f"{image.stem[:12]}: {overlap} pixels belong to several masks and were given to the last")
    return Label(relabel_sequential(label)[0], notes=tuple(notes))
