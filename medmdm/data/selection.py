"""Choosing the images to pre-train on: a folder, a data list, or the images that come with scikit-image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.data.folders import FolderImages, find_images
from medmdm.data.images import image_size
from medmdm.data.lists import LIST_NAMES, SECTIONS, DataList, load_data_list, shipped_data_lists
from medmdm.data.volumes import is_volume
from medmdm.errors import UserError

__all__ = ["DEMO", "Selection", "find_data_list", "select_training_images"]

DEMO = "demo"
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
    :func:`find_data_list`). Without a list all images of the folder are used, masks left out.

    Args:
        dataset_dir: folder, or ``"demo"`` for the images in scikit-image's wheel (``"./demo"`` for a folder so named).
        data_list: JSON file, name of a list that comes with medmdm, or its content; ``None``: look for one;
            ``"none"``: use all images whatever lists there are.
        transductive: train on the validation and test images of the list as well.

    Raises:
        UserError: the folder or the list is missing or wrong, or images that it names are missing.
    """
    if str(dataset_dir) == DEMO:
        folder, data_list = _demo_folder(), DEMO if data_list is None else data_list
    else:
        folder = Path(dataset_dir).expanduser()
    warnings: list[str] = []
    chosen: DataList | None
    if data_list is None:
        chosen, warnings = find_data_list(folder)
    elif isinstance(data_list, str) and data_list.lower() == "none":
        chosen = None
    else:
        chosen = load_data_list(data_list)
    if chosen is None:
        return _everything(folder, transductive, warnings)
    return _listed(folder, chosen, transductive, warnings)


def find_data_list(dataset_dir: str | os.PathLike[str]) -> tuple[DataList | None, list[str]]:
    """Find the data list that belongs to a folder.

    First ``dataset.json`` and ``datalist.json`` in it. Then the lists that come with medmdm: one matches when at least
    half of its training images are somewhere in the folder (by file name without suffix, so converted and
    rearranged copies match), most of these have a size that the set has (``image_sizes``, where the set's names are
    ones that others use too) and at least half of the folder's images are in the list.

    Returns:
        (list or ``None``, warnings).

    Raises:
        UserError: the folder has no images, or its own data list is wrong.
    """
    folder = Path(dataset_dir)
    for name in LIST_NAMES:
        if (folder / name).is_file():
            return load_data_list(folder / name), []
    images = find_images(folder)
    warnings: list[str] = []
    for candidate in shipped_data_lists():
        if candidate.name == DEMO:
            continue
        found = {section: _resolve(candidate, section, images) for section in SECTIONS}
        training = [path for path in found["training"] if path is not None]
        if len(training) < len(found["training"]) / 2:
            continue
        if not _sizes_fit(candidate, training):
            warnings.append(
                f"{folder} holds images named as in {candidate.name} but of other sizes, so its split is not applied: "
                f"pass --data_list {candidate.name} if they are its images"
            )
            continue
        listed = {path for paths in found.values() for path in paths if path is not None}
        if len(listed) >= len(images.images) / 2:
            return candidate, warnings
        warnings.append(
            f"{folder} holds {len(training)} training images of {candidate.name} among many others: the split of "
            f"{candidate.title} is not applied, so its test images train too"
        )
    return None, warnings


def _sizes_fit(data_list: DataList, paths: Sequence[Path]) -> bool:
    sizes = {tuple(size) for size in data_list.information.get("image_sizes", [])}
    return not sizes or sum(image_size(path) in sizes for path in paths) >= len(paths) / 2


def _demo_folder() -> Path:
    import skimage  # slow to import, and only the demo needs it

    folder = Path(skimage.__file__).parent / "data"
    if not (folder / "ihc.png").is_file():
        raise UserError("scikit-image is installed without its pictures (ihc.png): install scikit-image from PyPI")
    return folder


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
        paths = _resolve(data_list, section, images)
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


def _resolve(data_list: DataList, section: str, images: FolderImages) -> list[Any]:
    """Return the file of each entry of a section (a list of files for several sequences), ``None`` where it is missing.

    A user's list says exactly where its images are. A list that comes with medmdm knows the names its publisher gave;
    they are found anywhere in the folder and in any format, unless two files share the name.
    """
    by_stem: dict[str, list[Path]] = {}
    if data_list.shipped:
        for path in images.images:
            by_stem.setdefault(path.stem, []).append(path)
    found: list[Any] = []
    for entry in getattr(data_list, section):
        if isinstance(entry["image"], list):
            sequences = [images.folder / name for name in entry["image"]]
            found.append(sequences if all(path.exists() for path in sequences) else None)
            continue
        exact = images.folder / entry["image"]
        same_name = by_stem.get(exact.stem, [])
        if exact.is_file() or (exact.is_dir() and is_volume(exact)):
            found.append(exact)
        else:
            found.append(same_name[0] if len(same_name) == 1 else None)
    return found


def _entry(entry: Mapping[str, Any], path: Path | list[Path]) -> dict[str, Any]:
    image = [str(one) for one in path] if isinstance(path, list) else str(path)
    return {"image": image, **{key: entry[key] for key in _ENTRY_KEYS if key in entry}}


def _names(image: str | list[str]) -> list[str]:
    return image if isinstance(image, list) else [image]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
