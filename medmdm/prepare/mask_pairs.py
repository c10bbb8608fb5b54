"""Which mask belongs to which image, by the names of files and folders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medmdm.data.mask_names import common_name, mask_name, names_before_mask_word, names_it_begins_with
from medmdm.errors import UserError, counted
from medmdm.prepare.release import SourceFile

_MEANT = {"classes": "classes", "instances": "objects"}  # by label type
_MOST_FOLDERS = 6
_OUTLINES = (".json", ".geojson", ".xml")


@dataclass(frozen=True)
class Pairs:
    """The masks of images.

    Args:
        masks: the mask to read, by image.
        classes: a mask of classes beside one of objects, by image.
        notices: what was left out, and why.
    """

    masks: Mapping[SourceFile, SourceFile]
    classes: Mapping[SourceFile, SourceFile]
    notices: tuple[str, ...]


def pair_masks(images: Sequence[SourceFile], masks: Sequence[SourceFile], label_type: str) -> Pairs:
    """Find the mask of each image.

    Of masks in folders that say what they hold, as VOC's ``SegmentationClass`` and ``SegmentationObject``, those of
    ``label_type`` are taken; drawings of masks are left out.

    Args:
        images: of a release.
        masks: of the release.
        label_type: ``classes`` or ``instances``.

    Raises:
        UserError: an image has two masks, or masks of another kind than ``label_type`` only.
    """
    owned, lonely, other = _owners(images, masks)
    notices = []
    if other:
        notices.append(
            f"{counted(len(other), 'file')}{_in_folders(other)} left out, as drawings for the eye or parts of masks "
            f"(first: {other[0].path})"
        )
    chosen: dict[SourceFile, SourceFile] = {}
    classes: dict[SourceFile, SourceFile] = {}
    unused: list[SourceFile] = []
    meant = _MEANT[label_type]
    for image, candidates in owned.items():
        by_content = defaultdict(list)
        for mask in candidates:
            by_content[_content(mask)].append(mask)
        wanted = by_content[meant] or by_content["any"]
        unwanted = [mask for mask in candidates if mask not in wanted]
        if not wanted:
            _refuse_content(unwanted[0], label_type)
        if by_content[meant] and by_content["any"]:
            wanted, unwanted = candidates, []  # `labels/x.png` may be anything: do not choose
        if len(wanted) > 1:
            wanted = sorted(wanted, key=lambda mask: mask.path.as_posix())
            raise UserError(
                f"{image.shown} has two masks, {wanted[0].shown} and {wanted[1].shown}: keep one, or make one of them "
                "(parts of one truth); the masks of a second annotator belong into a folder and data list of their own."
            )
        chosen[image] = wanted[0]
        unused += unwanted
        if by_content["classes"] and meant == "objects":
            classes[image] = by_content["classes"][0]
    if unused:
        option = "instances" if label_type == "classes" else "classes"
        notices.append(f"{counted(len(unused), 'mask')}{_in_folders(unused)} left out, for --label-type {option}")
    if lonely:
        notices.append(
            f"{counted(len(lonely), 'mask', 'belongs', 'belong')} to no image, left out (first: {lonely[0].path})"
        )
    return Pairs(chosen, classes, tuple(notices))


def unread_outlines(files: Iterable[SourceFile]) -> list[str]:
    """Return a notice on files of outlines or boxes, which masks do not come from."""
    found = [file for file in files if file.suffix in _OUTLINES]
    if not found:
        return []
    names = f"{counted(len(found), 'file')} of outlines, boxes or settings{_in_folders(found, every=True)}"
    return [
        f"{names} {'is' if len(found) == 1 else 'are'} not read (first: {found[0].path}): export masks for the images "
        "without one; COCO's JSON is read by python -m medmdm prepare coco"
    ]


def _owners(
    images: Sequence[SourceFile], masks: Sequence[SourceFile]
) -> tuple[dict[SourceFile, list[SourceFile]], list[SourceFile], list[SourceFile]]:
    """Return the masks of each image, those of none, and those that nothing can be learnt from."""
    by_name = {common_name(image.path): image for image in reversed(images)}  # the first image of a name
    owned: dict[SourceFile, list[SourceFile]] = defaultdict(list)
    lonely, other = [], []
    for mask in masks:
        if _content(mask) == "other":
            other.append(mask)
            continue
        names = (common_name(mask.path), *names_before_mask_word(mask.path))
        owner = next((by_name[name] for name in names if name in by_name), None)
        if owner is None:
            lonely.append(mask)
        else:
            owned[owner].append(mask)
    for mask in [*lonely]:  # `x_left_mask.png` beside `x_mask.png`, which may be a part of the truth
        owner = next((by_name[name] for name in names_it_begins_with(mask.path) if name in by_name), None)
        if owner in owned:
            owned[owner].append(mask)
            lonely.remove(mask)
    return owned, lonely, other


def _content(mask: SourceFile) -> str:
    name = mask_name(mask.path)
    return "any" if name is None else name.content


def _refuse_content(mask: SourceFile, label_type: str) -> None:
    name = mask_name(mask.path)
    folder = "" if name is None else name.folder
    if label_type == "classes":
        raise UserError(f"{mask.shown} numbers objects, as the folder {folder!r} says: give --label-type instances.")
    raise UserError(
        f"{mask.shown} holds classes, as the folder {folder!r} says, so objects cannot be told apart: export masks of "
        "objects too (SegmentationObject), or leave --label-type instances out."
    )


def _in_folders(files: Sequence[SourceFile], every: bool = False) -> str:
    """Return ``" in SegmentationClass"``, the folders that say what the files are; ``every``: that they are in."""
    names = [mask_name(file.path) for file in files]
    parents = [file.path.parent.name for file in files]
    folders = parents if every else [name.folder for name in names if name is not None]
    found = list(Counter(folder for folder in folders if folder))
    return f" in {', '.join(found[:_MOST_FOLDERS])}{', …' if len(found) > _MOST_FOLDERS else ''}" if found else ""
