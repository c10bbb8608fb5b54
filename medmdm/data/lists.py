"""Data lists: which images of a data set train, validate and test, in the JSON layout of the Medical Decathlon."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medmdm.data.files.detached import leaves_folder
from medmdm.errors import UserError, nearest
from medmdm.files import resource_folder
from medmdm.labels import IGNORE, LABEL_TYPES
from medmdm.patients import patient_id

SECTIONS = ("training", "validation", "test")
#: Sections of images: pre-training and segmentation may look at what nobody has labelled.
IMAGE_SECTIONS = (*SECTIONS, "unlabeled")
LIST_NAMES = ("dataset.json", "datalist.json")
#: Keys of a region; pictures and slices have the last two.
REGION_AXES = ("slices", "rows", "columns")
_TEXT_KEYS = ("name", "description", "licence", "citation", "split")


@dataclass(frozen=True)
class DataList:
    """A validated data list.

    Args:
        name: of the data set.
        training: entries, each a dictionary with ``image`` (path relative to the data set's folder) and whichever of
            ``label``, ``region``, ``patient_id`` and further columns the list gives.
        validation: the same.
        test: the same.
        unlabeled: the same, without ``label``: images that methods may look at beside the training images.
        path: file it was read from, ``None`` for one given as a dictionary.
        shipped: whether it came with medmdm; its images are then found by file name anywhere in the folder.
        information: the other keys (description, licence, citation, channels, labels, ...).
    """

    name: str
    # Entries hold patient ids, so they stay out of what is printed.
    training: tuple[dict[str, Any], ...] = field(repr=False)
    validation: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    test: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    unlabeled: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    path: Path | None = None
    shipped: bool = False
    information: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """How messages name it: its file, or its name."""
        if self.path is None:
            return f"data list {self.name!r}"
        return f"{self.path.name} (comes with medmdm)" if self.shipped else str(self.path)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


def load_data_list(source: str | os.PathLike[str] | Mapping[str, Any]) -> DataList:
    """Read and check a data list.

    ::

        {"name": "...", "description": "...", "licence": "...", "citation": "...", "split": "official",
         "training": [{"image": "a.png", "label": "a_mask.png", "patient_id": "7",
                       "region": {"rows": [0, 512], "columns": [0, 384]}}],
         "validation": [...], "test": [...], "unlabeled": ["b.png", ...]}

    Only one section and each entry's ``image`` are required; an entry may be the path alone, as in the Decathlon's
    ``test``. ``unlabeled`` images are trained on where a method needs no labels. A ``region`` makes a case of a part of
    an image (pixels, end excluded). ``split`` says where the sections come from, ``"official"`` being the publisher's.
    The image may be a volume (or the folder of a DICOM series, with ``series_uid`` where it holds several), cut into
    slices along the entry's ``axis``; a list of paths makes several sequences of one patient the channels of one image.
    ``spacing`` (mm) or ``magnification``, of the entry or of the whole list, says how large the pixels of pictures are.
    A value of an entry that is missing (``null`` or NaN, as pandas writes it) is as if its key were not there.

    Args:
        source: a JSON file, the name of a list that comes with medmdm (``"glas"``), or the content as a dictionary.

    Raises:
        UserError: one sentence with the file and the key: not JSON, missing or unknown keys, wrong types, paths that
            leave the data set's folder, the same image twice or in two sections.
    """
    if isinstance(source, Mapping):
        return _parse(dict(source), f"data list {source.get('name', '(given as a dictionary)')!r}", None, False)
    path = Path(source)
    shipped = resource_folder("data_lists") / f"{path}.json"
    if not path.exists() and path.name == str(source) and shipped.exists():
        path = shipped
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_each_once)  # in any Unicode
    except FileNotFoundError as error:
        names = sorted(file.stem for file in resource_folder("data_lists").glob("*.json"))
        problem = f"the data list {path} does not exist: give a JSON file or one of {', '.join(names)}."
        raise UserError(problem) from error
    except OSError as error:
        raise UserError(f"the data list {path} cannot be read ({error.strerror}): check what it is.") from error
    except ValueError as error:
        raise UserError(f"the data list {path} is not JSON ({error}): correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"the data list {path} holds a {type(content).__name__}: it must be an object with 'training'.")
    return _parse(content, str(path), path, path == shipped)


def shipped_data_lists() -> list[DataList]:
    """Return the lists that come with medmdm, in the order of their names."""
    return [load_data_list(path.stem) for path in sorted(resource_folder("data_lists").glob("*.json"))]


def _parse(content: dict[str, Any], title: str, path: Path | None, shipped: bool) -> DataList:
    content = _without_missing(content, title)
    for key in _TEXT_KEYS:
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"{title}: {key!r} is {content[key]!r}, but must be text.")
    for key, value in content.items():
        is_section = isinstance(value, list) and any(isinstance(v, dict) and "image" in v for v in value)
        if is_section and key not in IMAGE_SECTIONS:
            close = nearest(key, IMAGE_SECTIONS)
            raise UserError(f"{title}: {key!r} is not a section{close}: use {', '.join(IMAGE_SECTIONS)}.")
    if not any(content.get(section) for section in IMAGE_SECTIONS):
        raise UserError(
            f"{title}: 'training' is missing or empty: list the training images there, or pass "
            "--data_list none to use every image of the folder."
        )
    sections: dict[str, tuple[dict[str, Any], ...]] = {}
    for section in IMAGE_SECTIONS:
        entries = content.get(section, [])
        if not isinstance(entries, list):
            raise UserError(f"{title}: {section!r} is a {type(entries).__name__}: it must be a list of entries.")
        sections[section] = tuple(_entry(e, f"{title}: {section}[{i}]") for i, e in enumerate(entries))
    for i, entry in enumerate(sections["unlabeled"]):
        if "label" in entry:
            raise UserError(f"{title}: unlabeled[{i}] has a 'label': move it to 'training', or take the label out.")
    _refuse_overlaps(sections, title)
    information = {key: value for key, value in content.items() if key not in (*IMAGE_SECTIONS, "name")}
    name = content.get("name") or (path.stem if path else "unnamed")
    return DataList(name=name, path=path, shipped=shipped, information=information, **sections)


def _without_missing(value: Any, where: str) -> Any:
    """Leave out keys whose value is NaN; refuse infinite numbers, which no file of a run could hold."""
    if isinstance(value, Mapping):
        found = {key: _without_missing(one, f"{where}: {key!r}") for key, one in value.items()}
        return {key: one for key, one in found.items() if one is not None or value[key] is None}
    if isinstance(value, (list, tuple)):
        return [_without_missing(one, f"{where}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{where} is {value}: give a finite number, or null where it is missing.")
    return None if isinstance(value, float) and math.isnan(value) else value


def _entry(value: Any, where: str) -> dict[str, Any]:
    entry = {"image": value} if isinstance(value, str) else value
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {value!r}: an entry must be an object with 'image'.")
    if entry.get("image") is None:
        close = nearest("image", entry)
        raise UserError(f"{where} has no 'image'{close}: add the path relative to the data set's folder.")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key in ("image", "label"):
        value, place = entry.get(key), f"{where}: {key!r}"
        if key == "image" and isinstance(value, list) and value:  # several sequences of one patient, as channels
            entry[key] = [_relative_path(one, place) for one in value]
        elif key in entry:
            entry[key] = _relative_path(value, place)
    if "patient_id" in entry:
        try:
            entry["patient_id"] = patient_id(entry["patient_id"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if "region" in entry:
        _check_region(entry["region"], f"{where}: 'region'")
    return entry


def _relative_path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} is {value!r}: it must be a path relative to the data set's folder.")
    if leaves_folder(value):
        raise UserError(f"{where} is {value!r}, which leaves the data set's folder: give a path below it.")
    return PurePosixPath(value).as_posix()


def _check_region(region: Any, where: str) -> None:
    if not isinstance(region, dict) or not region:
        raise UserError(f"{where} must be an object with 'rows' and 'columns', each [first, end].")
    for key, bounds in region.items():
        if key not in ("rows", "columns"):
            close = nearest(key, ("rows", "columns"))
            raise UserError(f"{where} has the key {key!r}{close}: use 'rows' and 'columns'.")
        whole = isinstance(bounds, list) and len(bounds) == 2 and all(type(b) is int for b in bounds)
        if not whole or not 0 <= bounds[0] < bounds[1]:
            raise UserError(f"{where}: {key!r} is {bounds!r}: give [first, end], whole numbers with 0 <= first < end.")


def _refuse_overlaps(sections: Mapping[str, tuple[dict[str, Any], ...]], title: str) -> None:
    by_image: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for section, entry in ((section, entry) for section, entries in sections.items() for entry in entries):
        region, name = entry.get("region"), image_name(entry)
        for other_section, other in by_image[name]:
            if section == other_section and region == other:
                raise UserError(f"{title}: {section!r} lists {name!r} twice: remove one.")
            if section != other_section and regions_overlap(region, other):
                raise UserError(
                    f"{title}: {name!r} is in {other_section!r} and in {section!r}: an image, or the same part of one, "
                    "may be in one section only."
                )
        by_image[name].append((section, region))


def image_name(entry: Mapping[str, Any]) -> str:
    """Return how messages name the image of an entry, which several sequences may make together."""
    return " + ".join(image_names(entry))


def image_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the files of an entry's image: one, or one for each sequence."""
    return [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])


def regions_overlap(a: Mapping[str, list[int]] | None, b: Mapping[str, list[int]] | None) -> bool:
    """Whether two regions of one image share a pixel; ``None``, or a missing key, means all of it."""
    pairs = [((a or {}).get(key), (b or {}).get(key)) for key in REGION_AXES]
    return all(not (p and q) or (p[0] < q[1] and q[0] < p[1]) for p, q in pairs)


def label_type(information: Mapping[str, Any]) -> str:
    """Return what ``label_type`` of a data list says: ``"classes"`` (the default) or ``"instances"``.

    Raises:
        UserError: it says something else.
    """
    kind = information.get("label_type", "classes")
    if kind not in LABEL_TYPES:
        raise UserError(f"'label_type' is {kind!r}{nearest(str(kind), LABEL_TYPES)}: use classes or instances.")
    return str(kind)


def label_names(information: Mapping[str, Any]) -> dict[int, str]:
    """Return the name of each number that ``labels`` of a data list declares; ``{}`` where it has none.

    Both customs are understood: ``{"background": 0, "gland": 1}``, a name having one number or several (which get it
    with their number behind it), and the Decathlon's ``{"0": "background", "1": "gland"}``.

    Raises:
        UserError: it follows neither, gives two names to one number, or numbers the background otherwise than 0.
    """
    labels = information.get("labels")
    if labels is None:
        return {}
    problem = UserError(f'\'labels\' is {labels!r}: name the classes as in {{"background": 0, "gland": 1}}.')
    if not isinstance(labels, dict) or not labels:
        raise problem
    if all(str(key).isdecimal() and isinstance(value, str) for key, value in labels.items()):
        return _background_0({int(key): value for key, value in labels.items()})
    names: dict[int, str] = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise problem
        if isinstance(value, list):
            names |= {n: f"{name} {n}" if len(value) > 1 else name for n in value if n not in names}
        else:
            if labels.get(names.get(value)) == value:
                raise UserError(
                    f"'labels' names {value} twice, {names[value]!r} and {name!r}: give each class its own."
                )
            names[value] = name
    return _background_0(names)


def _background_0(names: dict[int, str]) -> dict[int, str]:
    """Refuse another number of the background than 0, which it has everywhere."""
    for number, name in names.items():
        if name.strip().lower() == "background" and number:
            raise UserError(
                f"'labels' numbers the background {number}, and 0 is background: number it 0 in list and masks, or "
                "name the class otherwise."
            )
    return names


def class_numbers(names: Mapping[int, str]) -> tuple[int, ...]:
    """Return the numbers of classes among those that a list declares, rising; ``"ignore": 255`` is none.

    Args:
        names: what :func:`label_names` returned.

    Raises:
        UserError: a class has a number that 8 bits cannot hold beside 255, or pixels to ignore have another one.
    """
    numbers = tuple(sorted(number for number, name in names.items() if (number, name) != (IGNORE, "ignore")))
    for number in numbers:
        if names[number] == "ignore":
            raise UserError(f"'labels' numbers the pixels to ignore {number}: number them {IGNORE}.")
        if number >= IGNORE:
            raise UserError(
                f"'labels' has the class {number}, and classes must be below {IGNORE}, which means pixels to ignore: "
                f"number them from 0 (where 1 is the only class, masks of 0 and {number} are read as 0 and 1)."
            )
    return numbers
