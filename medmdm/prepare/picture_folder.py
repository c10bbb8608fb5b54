"""Any folder of images, with or without masks: all of them training."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from posixpath import commonpath
from typing import Any

import numpy as np
from skimage.segmentation import relabel_sequential
from tqdm import tqdm

from medmdm.data.files.pictures import image_size
from medmdm.data.folders import is_mask
from medmdm.data.meaning import Meaning, meaning_of, with_ones
from medmdm.errors import UserError
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile

# What tells masks from images in names, beyond which `train_masks/x_mask.png` and `train_images/x.png` are the same.
_WORDS = re.compile(
    r"(?:^|[_\-. ])(?:anno|annos|annotations?|masks?|labels?|gts?|ground[_\- ]?truths?|instances?|inst|segs?"
    r"|segmentations?|images?|imgs?)(?=$|[_\-. ])"
    r"|^(?:images|labels)(?=(?:tr|ts|val)$)",
    re.IGNORECASE,
)


def plan(release: Release, label_type: str = "classes") -> Preparation:
    """Plan a folder of images.

    A mask belongs to the image of the same name beside it (``x_mask.png``, ``x_anno.bmp``) or in a parallel folder
    (``images/x.png`` and ``labels/x.png``); see ``medmdm.data.is_mask`` for the names that masks have.

    Args:
        release: the images.
        label_type: ``classes``: values are class numbers, kept as they are, 255 meaning "ignore"; where the whole
            folder has one number besides 0, such as 255, it becomes 1 (see :func:`medmdm.data.meaning.meaning_of`).
            ``instances``: values number objects of one class.
    """
    images = [file for file in release.images if not is_mask(file.path)]
    if not images:
        raise UserError(
            f"{release.source} holds no image among {len(release.files)} files ({len(release.images)} have names of "
            "masks): give a folder of PNG, TIFF, BMP or JPEG images."
        )
    masks, notices = _pairs(images, [file for file in release.images if is_mask(file.path)])
    instances = label_type == "instances"
    information: dict[str, Any] = {
        "name": release.source.resolve().stem,
        "description": "Prepared from a folder by medmdm; all images train.",
        "label_type": label_type,
    }
    whites: tuple[int, ...] = ()
    if masks and instances:
        information["labels"] = {"background": 0, "object": 1}
    elif masks:
        meaning = _classes(masks)
        information["labels"], whites = dict(meaning.classes), meaning.whites
        notices += meaning.notices

    def label_of(image: SourceFile, shape: tuple[int, ...], mask: SourceFile) -> Label:
        label = read_label(mask, shape, image)
        if instances:
            return Label(relabel_sequential(label)[0])
        return Label(with_ones(label, whites))

    shared = commonpath(image.path.parent for image in images)
    cases = []
    for image in images:
        name = image.path.relative_to(shared).with_suffix("").as_posix()
        own = [masks[image]] if image in masks else []
        recipe = f"{label_type} {whites}"
        cases.append(picture_case(name, "training", image, own, label_of, instances, recipe=recipe))
    if masks and len(masks) < len(images):
        notices.append(f"{len(images) - len(masks)} of {len(images)} images have no mask and get no label")
    return Preparation(information, tuple(cases), tuple(notices))


def _pairs(images: list[SourceFile], masks: list[SourceFile]) -> tuple[dict[SourceFile, SourceFile], list[str]]:
    """Find the mask of each image, and say which masks have none."""
    by_key = {_key(image.path): image for image in reversed(images)}  # the first image of a key
    pairs: dict[SourceFile, SourceFile] = {}
    lonely: list[SourceFile] = []
    for mask in masks:
        owner = by_key.get(_key(mask.path))
        if owner is None:
            lonely.append(mask)
        elif owner in pairs:
            raise UserError(f"{owner.shown} has two masks, {pairs[owner].shown} and {mask.shown}: keep one.")
        else:
            pairs[owner] = mask
    notices = [f"{len(lonely)} masks belong to no image and are left out (first: {lonely[0].path})"] if lonely else []
    return pairs, notices


def _key(path: PurePosixPath) -> str:
    """Return what the paths of an image and of its mask have in common."""
    parts = [_WORDS.sub("", part).strip("_-. ") for part in (*path.parent.parts, path.stem)]
    return "/".join(part for part in parts if part)


def _classes(masks: dict[SourceFile, SourceFile]) -> Meaning:
    """Find out what the numbers of all masks mean together."""
    values: dict[str, dict[int, int]] = {}
    for image, mask in tqdm(masks.items(), desc="values of the masks", unit="mask", disable=None):
        with image.local() as path:
            shape = image_size(path)
        found, counts = np.unique(read_label(mask, shape, image), return_counts=True)
        values[mask.shown] = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return meaning_of(values)
