"""Searching a folder for images, and telling masks from images by the names that people give them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from medmdm.data.files.dicom import is_dicom
from medmdm.data.files.pictures import IMAGE_SUFFIXES
from medmdm.data.files.volumes import VOLUME_SUFFIXES
from medmdm.errors import UserError

__all__ = ["FolderImages", "find_files", "find_images", "is_mask"]

# `x_anno.bmp`, `x_annotation_2.png`, `x-mask.png`, `mask.png`, `x_mask_3.tif`; not `x_masked.png`.
_MASK_ANYWHERE = re.compile(r"(?:^|[_\-. ])(?:anno|masks?(?![a-z]))")
# `x_label.png`, `x_gt.png`, `x-seg2.png`: words that may begin an image's name too, so they must end it.
_MASK_AT_END = re.compile(
    r"(?:^|[_\-. ])(?:labels?|gt|ground[_\- ]?truth|instances?|inst|seg|segmentations?)[_\- ]?\d*$"
)
_LABEL_WORDS = {
    "anno", "annos", "annotation", "annotations", "gt", "gts", "groundtruth", "groundtruths", "instance", "instances",
    "label", "labels", "labelstr", "labelsts", "labelsval", "mask", "masks", "seg", "segs", "segmentation",
    "segmentations",
}  # fmt: skip


@dataclass(frozen=True)
class FolderImages:
    """What a folder holds.

    Args:
        folder: where the search started.
        images: pictures, volumes and folders of DICOM files that are not masks, in string order of their path below
            ``folder`` ("a/10" before "a/2").
        masks: images left out because their name or folder says that they are masks, in the same order.
        others: number of other files by suffix; hidden ones are not counted.
    """

    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    others: dict[str, int]


def is_mask(path: PurePath) -> bool:
    """Whether the name of a file, or of a folder in ``path``, says that it holds labels rather than an image.

    Args:
        path: path *below* the data set's folder, so that a data set kept in ``/data/labels`` is not taken for masks.
    """
    stem = path.stem.lower().removesuffix(".nii")  # of .nii.gz
    if _MASK_ANYWHERE.search(stem) or _MASK_AT_END.search(stem):
        return True
    return any(_is_label_folder(part) for part in path.parent.parts)


def _is_label_folder(name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    # `Ground_Truth`, `masks`, `train_masks`, `masks_train`; a first word in the singular (`seg_study`) says too little.
    return bool(words) and (
        "".join(words) in _LABEL_WORDS
        or words[-1] in _LABEL_WORDS
        or words[0] in ("annotations", "labels", "masks")
        or words[-2:] == ["ground", "truth"]
    )


def find_images(folder: str | os.PathLike[str], may_be_empty: bool = False) -> FolderImages:
    """Search ``folder`` and everything below it for pictures and volumes, leaving masks out.

    A folder that directly holds DICOM files counts as one volume.

    Hidden files and folders and ``__MACOSX`` are skipped; links are followed, each folder being visited once.

    Args:
        folder: where to search.
        may_be_empty: don't raise if there is no image.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image; the sentence says what it holds instead.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"the folder {root} does not exist: check the path")
    if not root.is_dir():
        raise UserError(f"{root} is a file: give the folder that holds the images")
    images, masks, others = [], [], Counter[str]()
    series: set[Path] = set()
    for path in _walk(root):
        if is_dicom(path):
            if path.parent in series:
                continue
            path = path.parent
            series.add(path)
        elif not path.name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)):
            others[path.suffix.lower() or "no suffix"] += 1
            continue
        relative = path.relative_to(root)
        if is_mask(relative):
            masks.append(path)
        else:
            images.append(path)
    if not images and not may_be_empty:
        raise UserError(f"{root} holds no image: {_instead(len(masks), others)}")

    def order(path: Path) -> str:
        return path.relative_to(root).as_posix()

    return FolderImages(root, tuple(sorted(images, key=order)), tuple(sorted(masks, key=order)), dict(others))


def find_files(folder: str | os.PathLike[str], suffixes: Sequence[str]) -> list[Path]:
    """Return the files below ``folder`` that have one of ``suffixes`` (".xml"), searched as by :func:`find_images`."""
    return sorted(path for path in _walk(Path(folder)) if path.suffix.lower() in suffixes)


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}): check its permissions")

    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to a folder above, or two links to one folder
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _instead(masks: int, others: Counter[str]) -> str:
    suffixes = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, "DICOM"))
    if masks:
        return (
            f"all {masks} image files in it have names of masks (such as *_mask.png, or a folder named labels); rename "
            "them if they are images, or name them in a data list"
        )
    if others:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(4))
        return f"it was searched for {suffixes} and has {found} instead"
    return f"it is empty; it was searched for {suffixes}"
