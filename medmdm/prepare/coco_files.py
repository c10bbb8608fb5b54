"""COCO's JSON files and the images that they list."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from medmdm.data.mask_names import is_mask
from medmdm.errors import UserError
from medmdm.prepare.release import Release, SourceFile

_KEPT = ("category_id", "segmentation", "iscrowd")
_SECTIONS = {"train": "training", "training": "training", "val": "validation", "valid": "validation",
             "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class CocoFile:
    """One COCO file.

    Args:
        source: the file.
        images: its entries of images.
        categories: name by id.
        annotations: what is kept of them, with a name for sentences, by the id of their image.
    """

    source: SourceFile
    images: Sequence[Mapping[str, Any]]
    categories: Mapping[Any, str]
    annotations: Mapping[Any, list[Mapping[str, Any]]]


def read_coco_files(release: Release) -> list[CocoFile]:
    """Read every COCO file of a release; other JSON files are not looked at.

    Raises:
        UserError: there is none, one is not JSON, or names what it does not list.
    """
    found = []
    for source in release.files:
        if source.suffix != ".json":
            continue
        try:
            with source.open() as opened:
                content = json.loads(opened.read())
        except ValueError as error:
            raise UserError(f"{source.shown} is not JSON ({error}): export it again or remove it.") from error
        if isinstance(content, dict) and all(
            isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
        ):
            try:
                found.append(_parse(source, content))
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"{source.shown} is not laid out as COCO's JSON ({type(error).__name__}: {error})"
                raise UserError(f"{problem}: export it again.") from error
    if not found:
        raise UserError(
            f"{release.source} holds no JSON file with 'images', 'annotations' and 'categories': give the folder or "
            "zip file of a COCO export with its images."
        )
    return found


def _parse(source: SourceFile, content: Mapping[str, Any]) -> CocoFile:
    where = source.shown
    categories = {one["id"]: str(one["name"]) for one in content["categories"]}
    if len(set(categories.values())) < len(content["categories"]):
        raise UserError(f"{where} has two categories of one name or id: give each its own.")
    ids = Counter(image["id"] for image in content["images"])
    _check_images(content["images"], where)
    twice = [image for image, count in ids.items() if count > 1]
    if twice:
        raise UserError(f"{where} gives the id {twice[0]} to two images: give each its own.")
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    boxes = []
    for number, one in enumerate(content["annotations"]):
        if "segments_info" in one:
            raise UserError(f"{where} is panoptic COCO, whose masks are PNG files: export COCO instances.")
        name = f"annotation {one.get('id', number)}"
        if one["image_id"] not in ids:
            raise UserError(f"{where}: {name} is of image {one['image_id']}, which is not listed: correct it.")
        if one["category_id"] not in categories:
            raise UserError(f"{where}: {name} has the category {one['category_id']}, which is not listed: correct it.")
        if not one.get("segmentation"):
            boxes.append(name)
        annotations[one["image_id"]].append({key: one.get(key) for key in _KEPT} | {"name": name})
    if boxes:
        raise UserError(
            f"{where}: {len(boxes)} of {len(content['annotations'])} annotations have no outline, such as boxes have "
            f"none (first: {boxes[0]}): outline their objects or remove them."
        )
    polygons = [
        p for one in content["annotations"] if isinstance(one["segmentation"], list) for p in one["segmentation"]
    ]
    values = [v for p in polygons if isinstance(p, list) for v in p if isinstance(v, (int, float))]
    if values and min(values) >= 0 and max(values) <= 1:
        raise UserError(
            f"{where}: all polygons lie between 0 and 1, so that they seem to be shares of the images' sizes, not "
            "pixels: multiply them."
        )
    return CocoFile(source, content["images"], categories, annotations)


def _check_images(images: Sequence[Mapping[str, Any]], where: str) -> None:
    for image in images:
        if not isinstance(image.get("file_name"), str):
            raise UserError(f"{where}: the image {image['id']} has no 'file_name': name its file.")
        for side in ("width", "height"):
            stated = image.get(side, 1)
            if not (stated is None or (isinstance(stated, (int, float)) and math.isfinite(stated))):
                raise UserError(f"{where}: {side} of {image['file_name']} is {stated!r}: give a number.")


def listed_images(files: Sequence[CocoFile], release: Release) -> list[tuple[CocoFile, Mapping[str, Any], SourceFile]]:
    """Return the image of each entry of each file.

    Raises:
        UserError: one is missing, could be one of several, or is listed twice.
    """
    ends: dict[str, list[SourceFile]] = defaultdict(list)
    for image in release.images:
        parts = image.path.parts
        for i in range(len(parts)):
            ends["/".join(parts[i:])].append(image)
    listed: list[tuple[CocoFile, Mapping[str, Any], SourceFile]] = []
    missing: list[tuple[CocoFile, str]] = []
    first: dict[SourceFile, CocoFile] = {}
    for file in files:
        for entry in file.images:
            found = _find(str(entry["file_name"]), file, ends)
            if found is None:
                missing.append((file, str(entry["file_name"])))
                continue
            if found in first:
                where = " and ".join(dict.fromkeys((first[found].source.shown, file.source.shown)))
                raise UserError(f"{found.shown} is listed twice, in {where}: keep the file or entry that is to count.")
            first[found] = file
            listed.append((file, entry, found))
    if missing:
        file, name = missing[0]
        total = sum(len(one.images) for one in files)
        raise UserError(
            f"{len(missing)} of {total} images that {file.source.shown} lists are not in {release.source} (first: "
            f"{name}): put them there, or take them out of the file."
        )
    if not listed:
        raise UserError(f"{files[0].source.shown} lists no image: export it again.")
    return listed


def _find(name: str, file: CocoFile, ends: Mapping[str, list[SourceFile]]) -> SourceFile | None:
    """Return the file that an entry names, by as much of its path as there is."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    by_length = (ends.get("/".join(parts[i:])) for i in range(len(parts)))
    candidates = next(filter(None, by_length), [])
    candidates = [one for one in candidates if not is_mask(one.path)] or candidates
    if len(candidates) > 1:  # `train/x.png` and `val/x.png`: the JSON beside it, or named after the folder
        beside = [one for one in candidates if one.path.parent.is_relative_to(file.source.path.parent)]
        words = set(re.findall("[a-z0-9]+", file.source.stem.lower()))
        named = [one for one in candidates if words & {part.lower() for part in one.path.parent.parts}]
        candidates = next((found for found in (beside, named) if len(found) == 1), candidates)
    if len(candidates) > 1:
        both = f"{candidates[0].shown} or {candidates[1].shown}"
        raise UserError(f"{file.source.shown} lists {name}, which may be {both}: prepare their folders one by one.")
    return candidates[0] if candidates else None


def section_of(path: PurePosixPath) -> str:
    """Return the section that a JSON file is of, by the words of its name and folder."""
    text = re.sub(r"\d+", "", f"{path.parent.name} {path.stem}".lower())
    return next((_SECTIONS[word] for word in re.findall("[a-z]+", text) if word in _SECTIONS), "training")
