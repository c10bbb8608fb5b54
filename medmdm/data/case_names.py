"""Names of cases: short, unique in their list, and fit for files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from medmdm.data.files.volumes import volume_stem

__all__ = ["case_names"]


def case_names(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Name each case by its image's file name without suffix.

    Where images in two folders have one name, the folders are put before it; where one image gives several cases, their
    regions behind it (``ihc_r0-128_c384-512``); what is still the same is numbered. Letters, digits, ``-``, ``_`` and
    ``.`` stay, anything else becomes ``_``; no two names differ in upper and lower case only.

    Args:
        entries: of a data list, all sections together: a name must not depend on which of them are used.
        folder: of the images.
    """
    images = [entry["image"] if isinstance(entry["image"], str) else entry["image"][0] for entry in entries]
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
        number, candidate = 1, name
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate.casefold())
        names.append(candidate)
    return names


def _safe(text: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", text).strip(".") or "case"
