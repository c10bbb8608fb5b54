"""Which label file belongs to which volume, and which patient a volume is of: by the names of files and folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from itertools import zip_longest
from pathlib import PurePosixPath

from medmdm.data.files.formats import volume_stem
from medmdm.data.mask_names import without_mask_word
from medmdm.data.patients import find_subject
from medmdm.errors import UserError, counted
from medmdm.prepare.release import SourceFile

_LABEL_BEGINNING = re.compile(r"^(?:labels?|seg|segmentations?|masks?)[_\-. ]", re.IGNORECASE)
# Words that say what a file is rather than whose.
_WHAT = {
    *("anno", "annotation", "annotations", "dseg", "gt", "label", "labels", "mask", "masks", "seg", "segmentation"),
    *("segmentations", "truth", "image", "images", "imaging", "img", "imgs", "scan", "scans", "vol", "volume"),
    *("volumes", "data", "orig", "raw", "nii", "dicom", "anat", "ct", "mr", "mri", "pet", "us", "flair", "t1", "t1w"),
    *("t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "adc", "dwi", "pd", "pdw", "derivatives", "derivative"),
    *("imagestr", "imagests", "labelstr", "labelsts", "train", "training", "val", "validation", "test", "testing"),
}
_BIDS_ENTITY = re.compile(r"[_\-. ](?:space|desc|res|den|label|atlas)-[A-Za-z0-9]+", re.IGNORECASE)
_BIDS_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+")
_PATIENT_FOLDER = re.compile(r"(?:sub(?:j(?:ect)?)?|pat(?:ient)?|pt?|case)[_\- ]?[a-z]*\d+", re.IGNORECASE)


def pair_labels(
    labels: Sequence[SourceFile],
    images: Mapping[PurePosixPath, SourceFile],
    named: Mapping[PurePosixPath, PurePosixPath],
) -> tuple[dict[PurePosixPath, SourceFile], list[str]]:
    """Pair label volumes with images.

    A label is the one that the publisher's list names, or has its image's name (``labels/a.nii.gz``,
    ``a_seg.nii.gz``). Else, what is left of their names without the words that say what a file is must be the same:
    ``volume-0`` and ``segmentation-0``, ``img0001`` and ``label0001``, or, where nothing is left, the folder
    (``case_00000/imaging``, ``case_00000/segmentation``).

    Args:
        labels: the label files.
        images: first file by place: the folder and the name without suffix; for a DICOM series its folder.
        named: path of the label by path of the image, where a published list has them; a label that is not there does
            not count.

    Returns:
        (label by place, sentences on what was paired by number or folder and on what belongs to no image).

    Raises:
        UserError: two labels fit an image equally well, one label fits several, or labels are there and none fits.
    """
    by_name: dict[str, list[SourceFile]] = defaultdict(list)
    for file in labels:
        for name in label_names_of(file):
            by_name[name].append(file)
    by_path = {file.path: file for file in labels}
    found: dict[PurePosixPath, SourceFile] = {}
    for place, image in images.items():
        listed = by_path.get(named.get(image.path, place))
        near = [listed] if listed is not None else _nearest(place, by_name.get(place.name, []))
        if len(near) > 1:
            raise UserError(f"{near[0].shown} and {near[1].shown} could both label {image.shown}: keep one.")
        if near:
            found[place] = near[0]
    taken = {*found.values()}
    others = _pair_by_number([file for file in labels if file not in taken], images, found)
    notices = []
    for place, file in list(others.items())[:1]:
        pairs = f"{counted(len(others), 'label')} paired by number or folder"
        notices.append(f"{pairs} (first: {file.path} with {images[place].path})")
    found |= others
    taken |= {*others.values()}
    unused = [file for file in labels if file not in taken]
    if unused and images and not found:
        raise UserError(
            f"{counted(len(unused), 'label file')} (first: {unused[0].shown}) and no volume of such a name (first: "
            f"{next(iter(images.values())).shown}): name each as its volume (labels/x.nii.gz or x_seg.nii.gz for "
            "x.nii.gz), or take the labels out."
        )
    if unused:
        notices.append(f"{len(unused)} label files belong to no volume and are left out (first: {unused[0].path})")
    return found, notices


def label_names_of(file: SourceFile) -> set[str]:
    """Return the names that an image of a label file may have."""
    stem = volume_stem(file.path)
    return {stem, without_mask_word(stem), _LABEL_BEGINNING.sub("", stem)}


def _pair_by_number(
    labels: Sequence[SourceFile], images: Mapping[PurePosixPath, SourceFile], found: Container[PurePosixPath]
) -> dict[PurePosixPath, SourceFile]:
    """Pair what has no label by name: each label with one image and each image with one label, or not at all."""
    by_owner: dict[tuple[str, ...], list[SourceFile]] = defaultdict(list)
    for file in labels:
        by_owner[_whose(file.path.with_name(volume_stem(file.path)))].append(file)
    pairs: dict[PurePosixPath, SourceFile] = {}
    taken: dict[SourceFile, PurePosixPath] = {}
    for place, image in images.items():
        near = [] if place in found else _nearest(place, by_owner.get(_whose(place), []))
        if len(near) > 1:
            raise UserError(f"{near[0].shown} and {near[1].shown} could both label {image.shown}: keep one.")
        if not near:
            continue
        other = taken.setdefault(near[0], place)
        if other != place:
            raise UserError(
                f"{near[0].shown} could label {images[other].shown} and {image.shown}: give it the name of its volume "
                "(sequences of one patient are named x_0000, x_0001)."
            )
        pairs[place] = near[0]
    return pairs


def patients(
    places: Mapping[PurePosixPath, PurePosixPath], pattern: re.Pattern[str] | None
) -> tuple[list[str | None], list[str]]:
    """Return the patient of each volume, ``None`` where nothing names it, and a sentence where folders had to say it.

    Args:
        places: path of the file by place: its folder and name without suffix.
        pattern: finds the patient in a path, see :func:`medmdm.data.patients.find_subject`; ``None``: a folder or name
            ``sub-…`` (BIDS), else a folder such as ``case_00000`` or ``patient7``; where several volumes have one name,
            the highest folder in which they differ, for them and for others that lie beside them.

    Raises:
        UserError: the pattern finds nothing.
    """
    named: dict[str, list[PurePosixPath]] = defaultdict(list)
    for place in places:
        named[place.name.lower()].append(place)
    if pattern is not None:
        return [find_subject(path.as_posix(), pattern) for path in places.values()], []
    found: list[str | None] = []
    by_folder: dict[PurePosixPath, str] = {}
    from_folder = ""
    for place in places:
        match = next(filter(None, map(_BIDS_SUBJECT.match, place.parts)), None)
        match = match or next(filter(None, map(_PATIENT_FOLDER.fullmatch, place.parent.parts)), None)
        alike = named[place.name.lower()]
        if match is not None:
            found.append(match.group(0))
        elif len(alike) > 1:
            found.append(by_folder.setdefault(place.parent, _differing_folder(place, alike)))
            from_folder = from_folder or f"{found[-1]} for {place}"
        else:
            found.append(None)
    found = [patient or by_folder.get(place.parent) for place, patient in zip(places, found, strict=True)]
    sentence = f"patients are taken from folders ({from_folder}): give --subject where that is not right"
    return found, [sentence] if from_folder else []


def _differing_folder(place: PurePosixPath, alike: Sequence[PurePosixPath]) -> str:
    levels = zip_longest(*([part for part in other.parent.parts if part.lower() not in _WHAT] for other in alike))
    own = alike.index(place)
    return next((level[own] or place.name for level in levels if len(set(level)) > 1), place.parent.as_posix())


def _whose(place: PurePosixPath) -> tuple[str, ...]:
    """Return the words and numbers of the name that say whose the file is, else of the folder above, and so on."""
    for part in reversed(place.parts):
        words = [word for word in re.split(r"[^a-z0-9]+", _BIDS_ENTITY.sub("", part).lower()) if word not in _WHAT]
        split = [piece for word in words for piece in re.findall("[a-z]+|[0-9]+", word) if piece not in _WHAT]
        if split:
            return tuple(str(int(piece)) if piece.isdigit() else piece for piece in split)
    return ()


def _nearest(place: PurePosixPath, labels: Sequence[SourceFile]) -> list[SourceFile]:
    """Return those of the labels that share most folders with an image, by name and then by place."""
    by_depth: dict[tuple[int, int], list[SourceFile]] = defaultdict(list)
    for file in labels:
        names = {*file.path.parent.parts} & {*place.parent.parts}
        by_depth[len(names), len({*file.path.parents} & {*place.parents})].append(file)
    return by_depth[max(by_depth)] if by_depth else []
