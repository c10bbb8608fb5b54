"""Choosing labelled cases: what a data list says of each, where its files are, and what its labels mean."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

import medmdm.data.folders as folders
from medmdm.data.demo import SILVER_STANDARD, demo_labels
from medmdm.data.files.formats import is_volume, volume_stem
from medmdm.data.folders import DEMO, DEMO_LABELLED
from medmdm.data.lists import IMAGE_SECTIONS, SECTIONS, DataList, image_name, image_names
from medmdm.data.selection import Selection, note_missing
from medmdm.data.transforms.spatial import as_spacing, with_spacing
from medmdm.errors import UserError, counted, nearest

_ENTRY_KEYS = ("region", "patient_id", "axis", "series_uid")
_KNOWN_KEYS = ("image", "label", "spacing", "magnification", *_ENTRY_KEYS)


def select_cases(
    dataset_dir: str | os.PathLike[str],
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    sections: Sequence[str] = IMAGE_SECTIONS,
    labelled: bool = True,
    image_spacing: float | Sequence[float] | None = None,
) -> Selection:
    """Choose the cases of a data set by its data list; volumes stay one case each.

    The list is found as by :func:`medmdm.data.select_training_images`, and images and labels of a list that comes with
    medmdm are found by file name anywhere in the folder.

    - Of the user's own list every image must be there; where *all* of its test images are missing (often they are kept
      elsewhere, or back) a warning says so. Of a list that comes with medmdm those images are used that are there.
    - Every case of a labelled section must have its label. A validation or test section without any label, as the
      Decathlon's, is left out with a warning. Where some training cases have one and ``unlabeled`` is asked for, the
      others are among those, with a warning.

    Args:
        dataset_dir: folder, or ``"demo"`` for the image in scikit-image's wheel with labels made by colour
            deconvolution (a silver standard).
        data_list: JSON file, name of a list that comes with medmdm, or its content; ``None``: look for one.
        sections: those to use, among training, validation, test and unlabeled; the others stay empty.
        labelled: whether labels are needed. ``False`` takes them where they are, and a folder without a list (or with
            ``data_list="none"``) as test cases.
        image_spacing: mm between pixels, one number or (rows, columns), of pictures for which the list gives none.

    Returns:
        The cases.

    Raises:
        UserError: one sentence: the folder or the list is missing or wrong, images or labels that it names are missing,
            it does not say what its labels mean, a spacing is not above 0, or no case is left.
    """
    spacing = as_spacing(image_spacing, name="image_spacing")
    if unknown := [section for section in sections if section not in IMAGE_SECTIONS]:
        close = nearest(unknown[0], IMAGE_SECTIONS)
        raise UserError(f"the section {unknown[0]!r} is unknown{close}: use {', '.join(IMAGE_SECTIONS)}.")
    folder, chosen, warnings = folders.choose_data_list(dataset_dir, data_list, DEMO_LABELLED)
    images = folders.find_images(folder, may_be_empty=chosen is not None)
    if chosen is None:
        if labelled:
            raise UserError(
                f"{folder} has no data list, so its labels are not known: write dataset.json there, as python -m "
                "medmdm prepare does, or pass --data_list."
            )
        return _all_of(folder, images, spacing, warnings)
    if all(chosen.information.get(key) is None for key in ("spacing", "magnification")):
        chosen = dataclasses.replace(chosen, information={**chosen.information, "spacing": spacing})
    chosen = _few_labelled(chosen, labelled and "unlabeled" in sections, warnings)
    is_demo = str(dataset_dir) == DEMO and chosen.name == DEMO_LABELLED
    names = iter(case_names([e for section in IMAGE_SECTIONS for e in getattr(chosen, section)], folder))
    kept: dict[str, tuple[dict[str, Any], ...]] = {}
    for section in IMAGE_SECTIONS:
        entries = getattr(chosen, section)
        own_names = [next(names) for _ in entries]
        kept[section] = ()
        if entries and section in sections:
            labels = folders.label_files(chosen, section, images, demo_labels() if is_demo else None)
            files = list(zip(entries, own_names, folders.image_files(chosen, section, images), labels, strict=True))
            kept[section] = _section(chosen, section, files, folder, labelled and section in SECTIONS, warnings)
    counts = [f"{len(kept[section])} {section}" for section in IMAGE_SECTIONS if kept[section]]
    if not counts:
        nothing = f"{chosen.title}: no case is left in {', '.join(sections)}"
        others = [section for section in SECTIONS if getattr(chosen, section) and section not in sections]
        remedy = f"choose a section that has cases ({', '.join(others)}) or " if others else ""
        raise UserError(f"{'; '.join([nothing, *warnings])}: {remedy}correct dataset_dir or the list.")
    sentences = [f"{folder}: data list {chosen.title}, cases: {', '.join(counts)}"]
    training, validation, test, unlabeled = (kept[section] for section in IMAGE_SECTIONS)
    cases = Selection(folder, chosen, training, validation, test, (), tuple(warnings), unlabeled=unlabeled)
    if labelled:
        named_classes = ", ".join(f"{number} {cases.class_names[number]}" for number in cases.classes)
        sentences.append(f"classes: {named_classes}" + (" (instances)" if cases.label_type == "instances" else ""))
    if is_demo:
        sentences.append(SILVER_STANDARD)
    return dataclasses.replace(cases, sentences=tuple(sentences))


def _all_of(
    folder: Path, images: folders.FolderImages, spacing: tuple[float, ...] | None, warnings: list[str]
) -> Selection:
    """Take all images of a folder without a list."""
    entries = [{"image": path.relative_to(folder).as_posix()} for path in images.images]
    named = zip(entries, case_names(entries, folder), images.images, strict=True)
    test = tuple(_entry(entry, case, path, None, {"spacing": spacing}) for entry, case, path in named)
    if images.masks:
        left_out = f"{images.masks_left_out} (first: {images.masks[0].name})"
        warnings.append(f"{folder}: {left_out}: rename what is an image")
    sentence = f"{folder}: {counted(len(test), 'image')}, no data list"
    return Selection(folder, None, (), (), test, (sentence,), tuple(warnings))


def _few_labelled(chosen: DataList, both: bool, warnings: list[str]) -> DataList:
    """Take training cases without a label as unlabeled ones, where both are asked for and others have one; say so."""
    without = [entry for entry in chosen.training if "label" not in entry]
    if not both or len(without) in (0, len(chosen.training)):
        return chosen
    share = f"{len(without)} of {len(chosen.training)} training cases"
    warnings.append(f"{chosen.title}: {share} have no 'label' and are taken as 'unlabeled' ones")
    training = tuple(entry for entry in chosen.training if "label" in entry)
    return dataclasses.replace(chosen, training=training, unlabeled=(*without, *chosen.unlabeled))


def _section(
    data_list: DataList,
    section: str,
    files: Sequence[tuple[dict[str, Any], str, Any, Path | None]],
    folder: Path,
    labelled: bool,
    warnings: list[str],
) -> tuple[dict[str, Any], ...]:
    """Return the cases of a section whose images are there; add to ``warnings`` what is left out."""
    found = [one for one in files if one[2]]
    title, missing = data_list.title, [image_name(entry) for entry, _, image, _ in files if not image]
    note_missing(data_list, section, missing, len(files), folder, warnings)
    if labelled and found:
        without = [image_name(entry) for entry, *_ in found if "label" not in entry]
        if len(without) == len(found) and section != "training":
            warnings.append(f"{title}: no {section} case has a 'label', so {section} is left out")
            return ()
        if without:
            sentence = f"{title}: {len(without)} of {len(found)} {section} cases have no 'label' (first: {without[0]})"
            raise UserError(f"{sentence}: add it, or take them out of the list.")
        lost = [entry["label"] for entry, _, _, label in found if label is None]
        if lost:
            sentence = f"{title}: {len(lost)} of {len(found)} {section} labels are not in {folder} (first: {lost[0]})"
            raise UserError(f"{sentence}: correct dataset_dir or the list.")
    return tuple(_entry(entry, case, image, label, data_list.information) for entry, case, image, label in found)


def _entry(
    entry: Mapping[str, Any], case: str, image: Path | list[Path], label: Path | None, information: Mapping[str, Any]
) -> dict[str, Any]:
    paths = [str(one.absolute()) for one in (image if isinstance(image, list) else [image])]
    result: dict[str, Any] = {
        "case": case,
        "name": image_name(entry),
        "image": paths if isinstance(image, list) else paths[0],
        **({} if label is None else {"label": str(label.absolute())}),
        **{key: entry[key] for key in _ENTRY_KEYS if key in entry},
        "columns": {key: value for key, value in entry.items() if key not in _KNOWN_KEYS},
    }
    if any(is_volume(path) for path in paths):  # these know their spacing
        return result
    sizes = {key: entry[key] for key in ("spacing", "magnification") if key in entry}
    return with_spacing({**result, **sizes}, information)


def case_names(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Name each case by its image's file name without suffix.

    Where images in two folders have one name, the folders are put before it; where one image gives several cases, their
    regions behind it (``ihc_r0-128_c384-512``); what is still the same is numbered. Letters, digits, ``-``, ``_`` and
    ``.`` stay, anything else becomes ``_``; no two names differ in upper and lower case only.

    Args:
        entries: of a data list, all sections together: a name must not depend on which of them are used.
        folder: of the images.
    """
    images = [image_names(entry)[0] for entry in entries]
    stems = {image: _safe(volume_stem(folder / image)) for image in images}
    sharing: dict[str, set[str]] = defaultdict(set)
    for image, stem in stems.items():
        sharing[stem.casefold()].add(image)
    cases_of = Counter(images)
    names: list[str] = []
    taken: set[str] = set()
    for entry, image in zip(entries, images, strict=True):
        name = stems[image]
        if len(sharing[name.casefold()]) > 1:
            name = _safe("_".join((*PurePosixPath(image).parent.parts, name)))
        if cases_of[image] > 1:
            region = entry.get("region") or {}
            bounds = [(key[0], region[key]) for key in ("rows", "columns") if key in region]
            name += "".join(f"_{axis}{first}-{end}" for axis, (first, end) in bounds)
        numbered = chain([name], (f"{name}_{number}" for number in count(2)))
        names.append(next(candidate for candidate in numbered if candidate.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def _safe(text: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", text).strip(".") or "case"
