"""Any folder of images, with or without masks: all of them training."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from posixpath import commonpath
from typing import Any

import numpy as np
from skimage.segmentation import relabel_sequential

from medmdm.data.files.pictures import image_size
from medmdm.data.folders import is_mask
from medmdm.errors import UserError
from medmdm.labels import IGNORE
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile
from medmdm.progress import followed

# What tells masks from images in names, beyond which `train_masks/x_mask.png` and `train_images/x.png` are the same.
_WORDS = re.compile(
    r"(?:^|[_\-. ])(?:anno|annos|annotations?|masks?|labels?|gts?|ground[_\- ]?truths?|instances?|inst|segs?"
    r"|segmentations?|images?|imgs?)(?=$|[_\-. ])"
    r"|^(?:images|labels)(?=(?:tr|ts|val)$)",
    re.IGNORECASE,
)
_MANY_CLASSES = 32


def plan(release: Release, label_type: str = "classes") -> Preparation:
    """Plan a folder of images.

    A mask belongs to the image of the same name beside it (``x_mask.png``, ``x_anno.bmp``) or in a parallel folder
    (``images/x.png`` and ``labels/x.png``); see ``medmdm.data.is_mask`` for the names that masks have.

    Args:
        release: the images.
        label_type: ``classes``: values are class numbers, kept as they are, 255 meaning "ignore"; masks of nothing but
            0 and 255 in the whole folder become 0 and 1. ``instances``: values number objects of one class.
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
    binary = False
    if masks and instances:
        information["labels"] = {"background": 0, "object": 1}
    elif masks:
        information["labels"], binary, more = _classes(masks)
        notices += more

    def label_of(image: SourceFile, shape: tuple[int, ...], mask: SourceFile) -> Label:
        label = read_label(mask, shape, image)
        if instances:
            return Label(relabel_sequential(label)[0])
        return Label((label > 0).astype(np.uint16) if binary else label)

    shared = commonpath(image.path.parent for image in images)
    cases = []
    for image in images:
        name = image.path.relative_to(shared).with_suffix("").as_posix()
        own = [masks[image]] if image in masks else []
        recipe = f"{label_type} {binary}"
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


def _classes(masks: dict[SourceFile, SourceFile]) -> tuple[dict[str, int], bool, list[str]]:
    """Return the classes, whether 255 stands for 1, which shows only in all masks together, and notices."""
    values: set[int] = set()
    for image, mask in followed(masks.items(), "reading values of masks"):
        with image.local() as path:
            shape = image_size(path)
        values.update(np.unique(read_label(mask, shape, image)).tolist())
    if values in ({0, IGNORE}, {IGNORE}):
        return {"background": 0, "class 1": 1}, True, ["all masks are of 0 and 255, which became 0 and 1"]
    classes = sorted(values - {0, IGNORE})
    notices = []
    if IGNORE in values:
        notices.append(f"pixels of value {IGNORE} are ignored in training and evaluation")
    if len(classes) > _MANY_CLASSES:
        notices.append(f"the masks have {len(classes)} values: if they number objects, give --label-type instances")
    return {"background": 0, **{f"class {value}": value for value in classes}}, False, notices
