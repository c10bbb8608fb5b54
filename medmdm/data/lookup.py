"""Finding the data list of a folder, and the files that its entries name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmdm.data.files.pictures import IMAGE_SUFFIXES, image_size
from medmdm.data.files.volumes import VOLUME_SUFFIXES, is_volume
from medmdm.data.folders import FolderImages, find_files, find_images
from medmdm.data.lists import LIST_NAMES, SECTIONS, DataList, load_data_list, shipped_data_lists
from medmdm.errors import UserError

__all__ = ["DEMO", "DEMO_LABELLED", "choose_data_list", "demo_folder", "find_data_list", "image_files", "label_files"]

DEMO = "demo"
DEMO_LABELLED = "demo_labelled"


def choose_data_list(
    dataset_dir: str | os.PathLike[str],
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    demo_list: str = DEMO,
) -> tuple[Path, DataList | None, list[str]]:
    """Return the folder that ``dataset_dir`` stands for and the data list to use with it.

    Args:
        dataset_dir: folder, or ``"demo"`` for the images in scikit-image's wheel (``"./demo"`` for a folder so named).
        data_list: JSON file, name of a list that comes with medmdm, or its content; ``None``: look for one;
            ``"none"``: no list.
        demo_list: list of ``dataset_dir="demo"`` where none is given.

    Returns:
        (folder, list or ``None``, warnings).

    Raises:
        UserError: the list is missing or wrong, or it had to be looked for and the folder is missing or has no images.
    """
    if str(dataset_dir) == DEMO:
        folder, data_list = demo_folder(), demo_list if data_list is None else data_list
    else:
        folder = Path(dataset_dir).expanduser()
    if data_list is None:
        return (folder, *find_data_list(folder))
    if isinstance(data_list, str) and data_list.lower() == "none":
        return folder, None, []
    return folder, load_data_list(data_list), []


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
        if candidate.name in (DEMO, DEMO_LABELLED):
            continue
        found = {section: image_files(candidate, section, images) for section in SECTIONS}
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


def image_files(data_list: DataList, section: str, images: FolderImages) -> list[Any]:
    """Return the file of each entry of a section (a list of files for several sequences), ``None`` where it is missing.

    A user's list says exactly where its images are. A list that comes with medmdm knows the names its publisher gave;
    they are found anywhere in the folder and in any format, unless two files share the name.
    """
    by_stem = _by_stem(images.images) if data_list.shipped else {}
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


def label_files(
    data_list: DataList, section: str, images: FolderImages, folder: Path | None = None
) -> list[Path | None]:
    """Return the label of each entry of a section, ``None`` where the entry has none or its file is missing.

    As with :func:`image_files`, labels of a list that comes with medmdm are found by name among the folder's masks, and
    among its outlines where the list names outlines; a file of the list's own format goes before others of its name.

    Args:
        data_list: the list.
        section: of the list.
        images: what the data set's folder holds.
        folder: where labels are looked for first.
    """
    entries = getattr(data_list, section)
    candidates = list(images.masks) if data_list.shipped else []
    others = {Path(entry["label"]).suffix for entry in entries if "label" in entry} - {*IMAGE_SUFFIXES}
    if data_list.shipped and others:
        candidates += find_files(images.folder, sorted(others - {*VOLUME_SUFFIXES}))
    by_stem = _by_stem(candidates)
    found: list[Path | None] = []
    for entry in entries:
        if "label" not in entry:
            found.append(None)
            continue
        exact = [parent / entry["label"] for parent in (folder, images.folder) if parent is not None]
        same_name = by_stem.get(exact[0].stem, [])
        same_suffix = [path for path in same_name if path.suffix.lower() == exact[0].suffix.lower()]
        same_name = same_suffix or same_name
        existing = [path for path in exact if path.exists()]
        found.append(existing[0] if existing else same_name[0] if len(same_name) == 1 else None)
    return found


def demo_folder() -> Path:
    """Return the folder of the pictures in scikit-image's wheel.

    Raises:
        UserError: it does not hold them.
    """
    import skimage  # slow to import, and only the demo needs it

    folder = Path(skimage.__file__).parent / "data"
    if not (folder / "ihc.png").is_file():
        raise UserError("scikit-image is installed without its pictures (ihc.png): install scikit-image from PyPI")
    return folder


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem, []).append(path)
    return found


def _sizes_fit(data_list: DataList, paths: Sequence[Path]) -> bool:
    sizes = {tuple(size) for size in data_list.information.get("image_sizes", [])}
    return not sizes or sum(image_size(path) in sizes for path in paths) >= len(paths) / 2
