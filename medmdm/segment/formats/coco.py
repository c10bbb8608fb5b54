"""COCO's JSON: the objects of all pictures, as run lengths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from medmdm.errors import need
from medmdm.segment.formats.base import RunFormat, Segmented, only_pictures
from medmdm.segment.formats.measurements import object_scores


@dataclass(frozen=True)
class COCO(RunFormat):
    """``coco.json``: an annotation for each object, its mask as COCO's compressed run lengths.

    Objects are the instances of the post-processing, or without any the connected parts of each class. Categories are
    the classes but the background, under their own numbers. Needs pycocotools (``pip install 'medmdm[interop]'``).
    With ``score`` the annotations are COCO's results of detection, too, which ``COCO.loadRes`` of pycocotools reads.

    Args:
        score: the mean probability of an object's class over its pixels as its ``score``; needs the probabilities of
            the whole image in memory.

    Source:
        https://cocodataset.org/#format-data
    """

    score: bool = True
    file: ClassVar[str] = "coco.json"

    @property
    def needs_probabilities(self) -> bool:  # type: ignore[override]
        """Whether probabilities have to be kept for it."""
        return self.score

    def check(self, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        # Not when it is made: what is there can be read, and its rows kept, without pycocotools.
        need("COCO", "pycocotools", "interop")
        super().check(entries, class_names)
        only_pictures(self, entries, "DicomSeg for a DICOM series, or the NIfTI mask")

    def describe(self, made: Segmented) -> dict[str, Any]:
        case = made.case
        mask, objects = case.in_place(made.mask), case.in_place(made.objects)
        height, width = (int(n) for n in mask.shape)
        image = {"file_name": _listed_name(made), "height": height, "width": width, "case": case.name}
        annotations = _annotations(objects, mask)
        if self.score and made.probabilities is not None:
            scores = object_scores(made.objects, made.mask, made.probabilities)
            annotations = [{**one, "score": score} for one, score in zip(annotations, scores, strict=True)]
        return {
            "image": image,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in made.origin.foreground.items()],
        }

    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {
            image["id"]: {"image": dict(image), "annotations": [], "categories": content["categories"]}
            for image in content["images"]
        }
        for annotation in content["annotations"]:
            found[annotation["image_id"]]["annotations"].append(annotation)
        return {piece["image"]["case"]: piece for piece in found.values()}

    def text(self, pieces: Mapping[str, Any]) -> str:
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        for number, piece in enumerate(pieces.values(), start=1):
            content["images"].append({**piece["image"], "id": number})
            content["categories"] = piece["categories"]
            for annotation in piece["annotations"]:
                content["annotations"].append({**annotation, "id": len(content["annotations"]) + 1, "image_id": number})
        return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _listed_name(made: Segmented) -> str:
    """Return the image's name as the data list has it, never an absolute path."""
    name = Path(str(made.case.entry.get("name") or made.source))
    return name.name if name.is_absolute() else name.as_posix()


def _annotations(objects: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    height, width = objects.shape
    found = []
    for label, place in enumerate(ndimage.find_objects(objects), start=1):
        if place is None:
            continue
        rows, columns = (axis.start for axis in place)
        down, across = np.nonzero(objects[place] == label)
        # COCO counts down the columns, first what is left out.
        at = np.sort((across + columns) * height + down + rows)
        runs = np.flatnonzero(np.diff(at) > 1)
        starts, ends = at[np.r_[0, runs + 1]], at[np.r_[runs, len(at) - 1]] + 1
        counts = np.diff(np.r_[0, np.stack([starts, ends], axis=1).ravel(), height * width])
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        found.append(
            {
                "category_id": int(mask[rows + down[0], columns + across[0]]),
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                "area": len(at),
                "bbox": [int(columns), int(rows), *(int(axis.stop - axis.start) for axis in place[::-1])],
                "iscrowd": 0,
                "label": label,
            }
        )
    return found
