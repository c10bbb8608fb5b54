"""Masks that a person drew or corrected become labels of a data list's cases."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medmdm.data.cases import case_names
from medmdm.data.files.decoding import decode, decode_label
from medmdm.data.files.formats import IMAGE_SUFFIXES, VOLUME_SUFFIXES, volume_stem
from medmdm.data.lists import IMAGE_SECTIONS, DataList, image_name, image_names, label_names, label_type
from medmdm.data.validity import check_known, check_same_grid, label_numbers
from medmdm.errors import UserError, counted
from medmdm.files import OUTPUTS_MARK, atomic_write
from medmdm.labels import IGNORE

LABEL_FOLDER = "labels_added"
HISTORY = "labels_added"  # key of the list: what each call added, by the images' names
#: What medmdm writes of a case beside its mask.
_BESIDE = ("_instances", "_probabilities", "_uncertainty", "_disagreement", "_surprise")
_NAMED = 3


@dataclass(frozen=True)
class AddedLabels:
    """A data list with more labels, not written yet.

    Args:
        content: of the new list.
        files: where each label goes, relative to the data set's folder, and the mask that it is copied from.
        added: images that had no label, by their names in the list.
        replaced: images that had another one.
        sentences: what to tell the user, one thing each.
    """

    content: dict[str, Any]
    files: Mapping[str, Path]
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The content as the file has it."""
        return json.dumps(self.content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path, dataset_dir: Path) -> None:
        """Copy the masks into the data set's folder, then write the list; each file whole or not at all."""
        for name, source in self.files.items():
            atomic_write(dataset_dir / name, source.read_bytes())
        atomic_write(path, self.text)


def add_labels(data_list: DataList, folder: str | os.PathLike[str], dataset_dir: str | os.PathLike[str]) -> AddedLabels:
    """Pair the masks of a folder with the cases of a list, and make these cases training cases with labels.

    A mask has the name that ``mdm_segment`` writes: the case's, ``x.png`` for ``images/x.tif``; where labels number
    objects ``x_instances.png``, or ``x.png`` where it does. Cases of ``unlabeled`` go to ``training``, those of
    ``training`` get the new label. Nothing is written.

    Args:
        data_list: the list.
        folder: of the masks; what is below it is not looked at.
        dataset_dir: folder of the images.

    Raises:
        UserError: one sentence naming the file: no mask is of a case, two are of one, or one does not fit its image or
            holds numbers that are no class.
    """
    masks, root = Path(folder), Path(dataset_dir)
    if not masks.is_dir():
        raise UserError(f"{masks} is no folder: give the folder of the corrected masks.")
    is_numbered = label_type(data_list.information) == "instances"
    entries = [(section, entry) for section in IMAGE_SECTIONS for entry in getattr(data_list, section)]
    names = case_names([entry for _, entry in entries], root)
    found, others = _paired(masks, names, [volume_stem(Path(image_name(entry))) for _, entry in entries], is_numbered)
    of_others = [path.name for name, path in found.items() if entries[names.index(name)][0] in ("validation", "test")]
    files: dict[str, Path] = {}
    sections: dict[str, list[dict[str, Any]]] = {section: [] for section in IMAGE_SECTIONS}
    added: list[str] = []
    replaced: list[str] = []
    same: list[str] = []
    for (section, entry), name in zip(entries, names, strict=True):
        path = found.get(name)
        if path is None or section in ("validation", "test"):
            sections[section].append(entry)
            continue
        _check(path, entry, root, data_list, is_numbered)
        old = entry.get("label")
        if old is not None and (root / old).is_file() and (root / old).read_bytes() == path.read_bytes():
            same.append(name)
            sections[section].append(entry)
            continue
        label = _free_name(root, name, path, files)
        files[label] = path
        sections["training"].append({**entry, "label": label})
        (added if old is None else replaced).append(image_name(entry))
    if not (added or replaced or same):
        what = "an unlabelled or training case" if found else "a case of the list"
        raise UserError(f"{masks}: no mask has the name of {what}: name each as its image, such as {names[-1]}.png.")
    history = [*data_list.information.get(HISTORY, ()), {"added": added, "replaced": replaced}]
    content: dict[str, Any] = {"name": data_list.name, **data_list.information}
    content |= {HISTORY: history} if added or replaced else {}
    content |= {section: cases for section, cases in sections.items() if cases}
    kinds = {"had no label and went to training": added, "got another label": replaced, "had this label before": same}
    sentences = [f"{counted(len(cases), 'case')} {what}: {_some(cases)}" for what, cases in kinds.items() if cases]
    left = f"{len(sections['training'])} training, {len(sections['unlabeled'])} unlabeled"
    without = sum("label" not in entry for entry in sections["training"])
    sentences.append(
        f"the list has {left} now" + (f"; {without} of the training ones have no label" if without else "")
    )
    if of_others:
        sentences.append(f"left out, for their cases are held out for validation or test: {_some(of_others)}")
    if others:
        sentences.append(f"left out, for no case has their name: {_some(others)}")
    if (masks / OUTPUTS_MARK).exists():
        sentences.append(
            f"{masks} is where medmdm wrote masks: those that nobody corrected became labels too; to leave them out, "
            "give a folder with the corrected ones alone"
        )
    return AddedLabels(content, files, tuple(added), tuple(replaced), tuple(sentences))


def label_changes(information: Mapping[str, Any], support: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on what the last call of :func:`add_labels` changed among the cases that a head learns from.

    Args:
        information: of the data list.
        support: entries of :func:`medmdm.data.select_cases`.
    """
    last = (information.get(HISTORY) or [{}])[-1]
    names = [str(entry["name"]) for entry in support]
    kinds = {kind: [name for name in names if name in last.get(kind, ())] for kind in ("added", "replaced")}
    if not any(kinds.values()):
        return []
    parts = [f"{len(cases)} {kind} ({_some(cases)})" for kind, cases in kinds.items() if cases]
    return [f"labels since the last add-labels: {', '.join(parts)}, of {counted(len(names), 'labelled case')}"]


def _paired(
    folder: Path, names: Sequence[str], stems: Sequence[str], is_numbered: bool
) -> tuple[dict[str, Path], list[str]]:
    """Return the mask of each case, by its name or that of its image, and the names of files that are of none."""
    own = [stem.casefold() for stem in stems]
    times = Counter(own)
    by_name = {stem: name for stem, name in zip(own, names, strict=True) if times[stem] == 1}
    by_name |= {name.casefold(): name for name in names}
    found: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)):
            continue
        stem = volume_stem(path).casefold()
        # A case may be called x_instances itself.
        kind = "" if stem in by_name else next((end for end in _BESIDE if stem.endswith(end)), "")
        name = by_name.get(stem.removesuffix(kind))
        if name is None:
            others.append(path.name)
        elif path.suffix.lower() in (".mhd", ".nhdr"):
            raise UserError(f"{path} keeps its voxels in another file: save it as {name}.nii.gz.")
        elif kind and not (kind == "_instances" and is_numbered):
            continue
        elif name in found and volume_stem(found[name]).casefold() == stem:
            raise UserError(f"{folder}: {found[name].name} and {path.name} are both masks of {name}: keep one.")
        elif name not in found or kind:  # of objects, where there is one
            found[name] = path
    return found, others


def _check(path: Path, entry: Mapping[str, Any], root: Path, data_list: DataList, is_numbered: bool) -> None:
    """Refuse a mask that is not of the image, or holds what is no class."""
    images = [root / one for one in image_names(entry)]
    lost = [image for image in images if not image.exists()]
    if lost:
        raise UserError(f"{lost[0]}, the image of {path.name}, does not exist: give --dataset_dir its folder.")
    grid = decode(images if len(images) > 1 else images[0], entry.get("series_uid")).grid
    label = decode_label(path, grid)
    check_same_grid(label.grid, grid, str(path), f"its image {image_name(entry)}")
    numbers = label_numbers(label.array, str(path))
    classes = label_names(data_list.information)
    if not is_numbered:
        check_known(numbers, classes or None, IGNORE, str(path))
    elif len(np.unique(numbers)) == 2 and numbers.max() == 1:
        parts = ndimage.label(numbers, np.ones((3,) * numbers.ndim))[1]
        if parts > 1:
            raise UserError(
                f"{path} gives {parts} separate objects the number 1, but labels of this list number objects: give "
                "each its own number, or take the map ending in _instances."
            )


def _free_name(root: Path, case: str, path: Path, taken: Mapping[str, Path]) -> str:
    """Return where the label goes: never over another file, which an older list may name."""
    suffix = path.name[len(volume_stem(path)) :]
    number = 1
    while True:
        name = f"{LABEL_FOLDER}/{case}{'' if number == 1 else f'_{number}'}{suffix}"
        there = root / name
        if name not in taken and (not there.exists() or there.read_bytes() == path.read_bytes()):
            return name
        number += 1


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
