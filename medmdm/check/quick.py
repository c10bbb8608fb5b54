"""The part of the check that is cheap enough for every start of a training."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmdm.check.sharing import shared_patients
from medmdm.data.lists import SECTIONS, regions_overlap
from medmdm.data.selection import Selection
from medmdm.errors import UserError

__all__ = ["quick_check"]

_SAMPLE = 4096  # bytes in the middle of a file that tell most files of one size apart


def quick_check(selection: Selection) -> list[str]:
    """Compare what trains with what validates and tests, without decoding anything.

    Copies of a file are found under any name; a picture that was saved again in another format is found by
    ``python -m medmdm check`` only.

    Args:
        selection: the images of a pre-training. Where it is transductive, only missing files are looked for.

    Returns:
        Warnings, one sentence each.

    Raises:
        UserError: an image is missing, or one that trains is held out too.
    """
    training = _files(selection.training)
    held_out = {"validation": _files(selection.validation), "test": _files(selection.test)}
    for entry in (*training, *held_out["validation"]):
        for path in entry.paths:
            if not os.path.exists(path):
                raise UserError(f"{path} does not exist any more: restore it, or correct the data list")
    if selection.transductive or selection.data_list is None:
        return []
    if any(held_out.values()):
        by_look: dict[tuple[int, bytes], list[_Entry]] = defaultdict(list)
        for entry in training:
            by_look[_look(entry.paths[0])].append(entry)
        for section, entries in held_out.items():
            for entry in entries:
                for other in by_look.get(_look(entry.paths[0]), ()):
                    _refuse_copy(entry, section, other)
    sections = {section: getattr(selection.data_list, section) for section in SECTIONS}
    official = selection.data_list.information.get("split") == "official"
    return [finding.message for finding in shared_patients(sections, official)]


@dataclass(frozen=True)
class _Entry:
    paths: tuple[str, ...]
    region: Mapping[str, Any] | None


def _files(entries: Sequence[Mapping[str, Any]]) -> list[_Entry]:
    """Return what is decoded for some entries: the slices of a volume share one file."""
    files: dict[str, _Entry] = {}
    for entry in entries:
        image = entry["image"]
        region = entry.get("region")
        files[f"{image} {region}"] = _Entry((image,) if isinstance(image, str) else tuple(image), region)
    return list(files.values())


def _refuse_copy(entry: _Entry, section: str, trained: _Entry) -> None:
    # One path in two sections: parts of a picture, which the list's validation keeps apart, or slices of a volume.
    if entry.paths == trained.paths or not regions_overlap(entry.region, trained.region):
        return
    if len(entry.paths) == len(trained.paths) and all(map(_same, entry.paths, trained.paths)):
        raise UserError(
            f"{entry.paths[0]} is in {section} and a copy of it, {trained.paths[0]}, in training: remove one from the "
            "data list, or pass --transductive true to train on both knowingly"
        )


def _look(image: str) -> tuple[int, bytes]:
    """Return the size of a file and a sample of it; ``(-1, path)`` for a folder of DICOM files."""
    path = Path(image)
    if path.is_dir():
        return -1, os.fsencode(path.resolve())
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size // 2 - _SAMPLE // 2))
        return size, file.read(_SAMPLE)


def _same(a: str, b: str) -> bool:
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)
