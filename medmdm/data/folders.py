"""Finding the files of a folder: images told from masks by their names, its data list, and what the list names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmdm.data.files.formats import IMAGE_SUFFIXES, SLIDE_SUFFIXES, VOLUME_SUFFIXES, is_dicom, is_special, is_volume
from medmdm.data.files.pictures import image_size
from medmdm.data.lists import LIST_NAMES, SECTIONS, DataList, image_names, load_data_list, shipped_data_lists
from medmdm.data.mask_names import is_mask, mask_name
from medmdm.errors import UserError, counted, warn_once
from medmdm.files import OUTPUTS_MARK, expanded

DEMO = "demo"
DEMO_LABELLED = "demo_labelled"
_SHOWN = 6  # folders of masks named in a sentence


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

    @property
    def masks_left_out(self) -> str:
        """A phrase on the masks, with the folders that say what they are."""
        return f"{counted(len(self.masks), 'mask')} left out{_in_folders(self.folder, self.masks)}"


def find_images(folder: str | os.PathLike[str], may_be_empty: bool = False) -> FolderImages:
    """Search ``folder`` and everything below it for pictures, volumes and slides, leaving masks out.

    A folder that directly holds DICOM files counts as one volume. Hidden files and folders, ``__MACOSX`` and masks that
    medmdm predicted are skipped; links are followed, each folder being visited once.

    Args:
        folder: where to search.
        may_be_empty: don't raise if there is no image.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image; the sentence says what it holds instead.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"the folder {root} does not exist: check the path.")
    if not root.is_dir():
        raise UserError(f"{root} is a file: give the folder that holds the images.")
    found: set[Path] = set()
    others = Counter[str]()
    without_pixels: list[Path] = []
    for path in walk_files(root):
        if is_dicom(path):
            found.add(path.parent)
        elif path.name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *SLIDE_SUFFIXES)):
            found.add(path)
        elif is_dicom(path, pixels=False):
            without_pixels.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if without_pixels:
        files = f"{counted(len(without_pixels), 'DICOM file')} without pixels"
        warn_once(f"{root}: {files} left out, such as structures or reports (first: {min(without_pixels)})")
    ordered = sorted(found, key=lambda path: path.relative_to(root).as_posix())
    masks = tuple(path for path in ordered if is_mask(path.relative_to(root)))
    images = tuple(path for path in ordered if not is_mask(path.relative_to(root)))
    if not images and not may_be_empty:
        raise UserError(f"{root} holds no image: {_instead(root, masks, others)}.")
    return FolderImages(root, images, masks, dict(others))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that an operating system leaves everywhere."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def walk_files(root: Path) -> Iterator[Path]:
    """Give all files below a folder but hidden ones and what medmdm wrote there; links are followed, each folder once.

    Pipes, sockets and devices, from which reading may never end, are no files.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}): check its permissions.")

    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to a folder above, or two links to one folder
            folders.clear()
            continue
        if OUTPUTS_MARK in files and Path(folder) != root:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (path for name in files if not is_hidden(name) and not is_special(path := Path(folder, name)))


def _in_folders(root: Path, masks: Iterable[Path]) -> str:
    """Return ``" (in labels, SegmentationClass)"``, the folders that say that files are masks."""
    names = [mask_name(path.relative_to(root)) for path in masks]
    folders = sorted({name.folder for name in names if name is not None and name.folder})
    return f" (in {', '.join(folders[:_SHOWN])}{', …' if len(folders) > _SHOWN else ''})" if folders else ""


def _instead(root: Path, masks: Sequence[Path], others: Counter[str]) -> str:
    suffixes = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *SLIDE_SUFFIXES, "DICOM"))
    if masks:
        return (
            f"all {len(masks)} image files in it have names of masks (such as *_mask.png, or a folder named labels)"
            f"{_in_folders(root, masks)}; rename them if they are images, or name them in a data list"
        )
    if others:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(4))
        return f"it was searched for {suffixes} and has {found} instead"
    return f"it is empty; it was searched for {suffixes}"


def choose_data_list(
    dataset_dir: str | os.PathLike[str],
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    demo_list: str = DEMO,
) -> tuple[Path, DataList | None, list[str]]:
    """Return the folder that ``dataset_dir`` stands for, the data list to use with it (or ``None``), and warnings.

    Arguments as in :func:`medmdm.data.select_training_images`; ``demo_list`` is the demo's list where none is given.

    Raises:
        UserError: the list is missing or wrong, or it had to be looked for and the folder is missing or has no images.
    """
    if str(dataset_dir) == DEMO:
        folder, data_list = demo_folder(), demo_list if data_list is None else data_list
    else:
        folder = expanded(dataset_dir)
    if data_list is None:
        return (folder, *find_data_list(folder))
    if isinstance(data_list, str) and data_list.lower() == "none":
        return folder, None, []
    return folder, load_data_list(data_list), []


def list_file(folder: Path) -> Path | None:
    """Return the data list in a folder, ``dataset.json`` before ``datalist.json``; ``None`` where there is none."""
    return next((folder / name for name in LIST_NAMES if (folder / name).is_file()), None)


def named_list(name: str | os.PathLike[str]) -> Path:
    """Return the data list that a command line names: a file, or the one in a folder.

    Raises:
        UserError: the folder holds none.
    """
    path = expanded(name)
    found = list_file(path) if path.is_dir() else path
    if found is None:
        raise UserError(
            f"{path} holds no data list ({' or '.join(LIST_NAMES)}): give the file, or make one of a folder as "
            "downloaded or exported with python -m medmdm prepare."
        )
    return found


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
    own = list_file(folder)
    if own is not None:
        return load_data_list(own), []
    images = find_images(folder)
    warnings: list[str] = []
    for candidate in shipped_data_lists():
        if candidate.name in (DEMO, DEMO_LABELLED):
            continue
        found = {section: image_files(candidate, section, images) for section in SECTIONS}
        training = [path for path in found["training"] if path is not None]
        if len(training) < len(found["training"]) / 2:
            continue
        sizes = {tuple(size) for size in candidate.information.get("image_sizes", [])}
        if sizes and sum(image_size(path) in sizes for path in training) < len(training) / 2:
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
    by_stem, names = _by_stem(images.images) if data_list.shipped else {}, _Names()
    found: list[Any] = []
    for entry in getattr(data_list, section):
        exact = [names.there(images.folder, name) for name in image_names(entry)]
        if isinstance(entry["image"], list):
            found.append(exact if all(path.exists() for path in exact) else None)
        elif exact[0].is_file() or (exact[0].is_dir() and is_volume(exact[0])):
            found.append(exact[0])
        else:
            found.append(_only(by_stem.get(exact[0].stem, [])))
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
    suffixes = {Path(entry["label"]).suffix for entry in entries if "label" in entry}
    if data_list.shipped and (outlines := suffixes - {*IMAGE_SUFFIXES, *VOLUME_SUFFIXES}):
        candidates += sorted(path for path in walk_files(images.folder) if path.suffix.lower() in outlines)
    by_stem, names = _by_stem(candidates), _Names()

    def label(entry: Mapping[str, Any]) -> Path | None:
        if "label" not in entry:
            return None
        exact = [names.there(parent, entry["label"]) for parent in (folder, images.folder) if parent is not None]
        same_name = by_stem.get(exact[0].stem, [])
        same_suffix = [path for path in same_name if path.suffix.lower() == exact[0].suffix.lower()]
        return next((path for path in exact if path.exists()), _only(same_suffix or same_name))

    return [label(entry) for entry in entries]


def demo_folder() -> Path:
    """Return the folder of the pictures in scikit-image's wheel.

    Raises:
        UserError: it does not hold them.
    """
    import skimage  # slow to import, and only the demo needs it

    folder = Path(skimage.__file__).parent / "data"
    if not (folder / "ihc.png").is_file():
        raise UserError("scikit-image is installed without its pictures (ihc.png): install scikit-image from PyPI.")
    return folder


class _Names:
    """Files by names in any Unicode form: macOS decomposes letters with accents, other systems compose them."""

    def __init__(self) -> None:
        self.by_folder: dict[Path, dict[str, str]] = {}

    def there(self, folder: Path, name: str) -> Path:
        """Return the path of a name below a folder; where only its other form is there, that one."""
        if name.isascii() or os.path.lexists(folder / name):
            return folder / name
        found = folder
        for part in Path(name).parts:
            if not os.path.lexists(found / part):
                if found not in self.by_folder:
                    listed = os.listdir(found) if found.is_dir() else []
                    self.by_folder[found] = {unicodedata.normalize("NFC", one): one for one in listed}
                part = self.by_folder[found].get(unicodedata.normalize("NFC", part), part)
            found /= part
        return found


def _only(paths: Sequence[Path]) -> Path | None:
    return paths[0] if len(paths) == 1 else None


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[path.stem].append(path)
    return found
