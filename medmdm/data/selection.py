"""Choosing the images to pre-train on: a folder, a data list, or the images that come with scikit-image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.data.files.volumes import is_volume
from medmdm.data.folders import find_images
from medmdm.data.lists import SECTIONS, DataList
from medmdm.data.lookup import choose_data_list, image_files
from medmdm.errors import UserError

__all__ = ["Selection", "select_training_images"]

_ENTRY_KEYS = ("region", "patient_id", "axis", "series_uid", "spacing", "magnification")


@dataclass(frozen=True)
class Selection:
    """The images of one pre-training.

    Args:
        dataset_dir: folder they are in.
        training: entries ``{"image": path, "region": ..., "patient_id": ...}``, with the keys of the list's entry that
            say how to read it.
        validation: entries held out by the data list, in the same form.
        data_list: the list that was used, or ``None``.
        transductive: whether the list's validation and test images train too.
        sentences: what to tell the user, one thing each.
        warnings: what the user should act on.
        test: the list's test entries whose images were found, in the same form; never trained on unless transductive.
    """

    dataset_dir: Path
    # Entries hold patient ids, so they stay out of what is printed.
    training: tuple[dict[str, Any], ...] = field(repr=False)
    validation: tuple[dict[str, Any], ...] = field(repr=False)
    data_list: DataList | None
    transductive: bool
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    test: tuple[dict[str, Any], ...] = field(default=(), repr=False)


def select_training_images(
    dataset_dir: str | os.PathLike[str],
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    transductive: bool = False,
) -> Selection:
    """Choose the images to pre-train on.

    Where there is a data list only its training images are used. It is the one given; else ``dataset.json`` or
    ``datalist.json`` in the folder; else one that comes with medmdm and matches the folder's files (see
    :func:`medmdm.data.find_data_list`). Without a list all images of the folder are used, masks left out.

    Args:
        dataset_dir: folder, or ``"demo"`` for the images in scikit-image's wheel (``"./demo"`` for a folder so named).
        data_list: JSON file, name of a list that comes with medmdm, or its content; ``None``: look for one;
            ``"none"``: use all images whatever lists there are.
        transductive: train on the validation and test images of the list as well.

    Raises:
        UserError: the folder or the list is missing or wrong, or images that it names are missing.
    """
    folder, chosen, warnings = choose_data_list(dataset_dir, data_list)
    if chosen is None:
        return _everything(folder, transductive, warnings)
    return _listed(folder, chosen, transductive, warnings)


def _everything(folder: Path, transductive: bool, warnings: Sequence[str]) -> Selection:
    images = find_images(folder)
    volumes = sum(is_volume(path) for path in images.images)
    found = [_count(len(images.images) - volumes, "image")] if volumes < len(images.images) else []
    found += [_count(volumes, "volume")] if volumes else []
    sentences = [f"{folder}: {', '.join(found)}, {_count(len(images.masks), 'mask')} left out"]
    if transductive:
        sentences.append("without a data list all images train, so transductive changes nothing")
    training = tuple({"image": str(path)} for path in images.images)
    return Selection(folder, training, (), None, transductive, tuple(sentences), tuple(warnings))


def _listed(folder: Path, data_list: DataList, transductive: bool, warnings: Sequence[str]) -> Selection:
    images = find_images(folder, may_be_empty=True)  # the list may name images whose names look like masks
    warnings = list(warnings)
    kept: dict[str, list[dict[str, Any]]] = {}
    for section in SECTIONS:
        entries = getattr(data_list, section)
        paths = image_files(data_list, section, images)
        missing = [entry["image"] for entry, path in zip(entries, paths, strict=True) if path is None]
        if missing and section != "test":  # test images are often kept elsewhere, or back
            sentence = f"{data_list.title}: {len(missing)} of {len(entries)} {section} images are not in {folder}"
            if not data_list.shipped or len(missing) == len(entries):
                raise UserError(f"{sentence} (first: {missing[0]}): correct dataset_dir or the list")
            warnings.append(f"{sentence} (first: {missing[0]}); the others are used")
        kept[section] = [_entry(entry, path) for entry, path in zip(entries, paths, strict=True) if path is not None]
    sentences = [f"{folder}: data list {data_list.title}, {_count(len(kept['training']), 'training image')}"]
    training, validation = kept["training"], kept["validation"]
    extra = [*kept["validation"], *kept["test"]]
    if transductive:
        training, validation = [*training, *extra], []
        sentences.append(
            f"transductive: {_count(len(kept['validation']), 'validation image')} and "
            f"{_count(len(kept['test']), 'test image')} of the list train too"
        )
    else:
        sentences.append(
            f"{_count(len(kept['validation']), 'validation image')} held out, "
            f"{_count(len(kept['test']), 'test image')} left out"
        )
    listed = {name for section in SECTIONS for entry in kept[section] for name in _names(entry["image"])}
    unlisted = sum(str(path) not in listed for path in images.images)
    sentences.append(
        f"{_count(len(images.masks), 'mask')} and {_count(unlisted, 'image')} that the list does not name left out"
    )
    return Selection(
        folder,
        tuple(training),
        tuple(validation),
        data_list,
        transductive,
        tuple(sentences),
        tuple(warnings),
        tuple(kept["test"]),
    )


def _entry(entry: Mapping[str, Any], path: Path | list[Path]) -> dict[str, Any]:
    image = [str(one) for one in path] if isinstance(path, list) else str(path)
    return {"image": image, **{key: entry[key] for key in _ENTRY_KEYS if key in entry}}


def _names(image: str | list[str]) -> list[str]:
    return image if isinstance(image, list) else [image]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
