"""What the publisher of volumes says of them, in a ``dataset.json`` as the Medical Decathlon and nnU-Net have it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from medmdm.data.lists import SECTIONS, label_names
from medmdm.errors import UserError
from medmdm.prepare.release import Release

_TEXTS = {key: key for key in ("name", "description", "licence")} | {"license": "licence", "reference": "citation"}


def read_published(
    release: Release,
) -> tuple[dict[str, Any], dict[PurePosixPath, str], dict[PurePosixPath, PurePosixPath], list[str]]:
    """Read the ``dataset.json`` nearest to the top of a release, if there is one.

    Returns:
        (what it says for the data list: the name of the set, texts, and the numbers of the classes by name; the section
        of each file, by path below the release; the label that it names for a file; notices for the end of the table).

    Raises:
        UserError: it is not JSON.
    """
    lists = [file for file in release.files if file.path.name == "dataset.json"]
    if not lists:
        return {}, {}, {}, []
    file = min(lists, key=lambda one: len(one.path.parts))
    try:
        with file.open() as opened:
            content = json.loads(opened.read(1 << 26))
    except ValueError as error:
        raise UserError(f"{file.shown} is not JSON ({error}): correct or remove it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file.shown} holds no JSON object: correct or remove it.")
    sections: dict[PurePosixPath, str] = {}
    named_labels: dict[PurePosixPath, PurePosixPath] = {}
    for section in SECTIONS:
        entries = content.get(section)
        for entry in entries if isinstance(entries, list) else []:
            image = entry.get("image") if isinstance(entry, dict) else entry
            if isinstance(image, str):
                path = file.path.parent / PurePosixPath(image)
                sections[path] = section
                label = entry.get("label") if isinstance(entry, dict) else None
                if isinstance(label, str):
                    named_labels[path] = file.path.parent / PurePosixPath(label)
    present = {one.path for one in release.files}
    missing = [path for path in sections if path not in present]
    named = f"{len(missing)} of {len(sections)} volumes that its dataset.json names"
    notices = [f"{named} are not there (first: {missing[0]})"] if missing else []
    texts = {old: new for old, new in _TEXTS.items() if isinstance(content.get(old), str)}
    information: dict[str, Any] = {new: content[old] for old, new in texts.items()}
    try:
        names = label_names(content)
    except UserError as error:  # the numbers that the files hold are taken
        names = {}
        notices.append(f"classes of {file.path} are not known: {error}")
    count = Counter(names.values())
    if names:
        information["labels"] = {name if count[name] == 1 else f"{name} {n}": n for n, name in names.items()}
    return information, sections, named_labels, notices
