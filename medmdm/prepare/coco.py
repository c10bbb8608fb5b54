"""COCO: JSON files of outlines with the images that they name, as CVAT, Label Studio, Roboflow and others export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import commonpath
from typing import Any

import numpy as np
from skimage.segmentation import relabel_sequential

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.data.mask_names import is_mask
from medmdm.data.patients import find_subject, subject_pattern, suspected_patients
from medmdm.data.validity import size_text
from medmdm.errors import UserError, counted, need
from medmdm.labels import IGNORE
from medmdm.prepare.classes import BACKGROUND, IGNORED, Classes
from medmdm.prepare.coco_files import CocoFile, listed_images, read_coco_files, section_of
from medmdm.prepare.coco_outlines import outline_mask
from medmdm.prepare.preparation import Label, Preparation, SourceCase, picture_case
from medmdm.prepare.release import Release, SourceFile


def plan(
    release: Release,
    label_type: str = "classes",
    classes: Sequence[str] | None = None,
    overlap: str = "last",
    empty: str = "unlabelled",
    subject: str | None = None,
) -> Preparation:
    """Plan what COCO JSON files list: every image with the objects that are outlined in it.

    Files of ``train``, ``val`` (or ``valid``) and ``test`` become the sections of the data list; one alone trains.

    Args:
        release: the JSON files and the images.
        label_type: ``classes``: pixels get the class of their object, categories being numbered from 1 in the order of
            their ids; ``instances``: objects of one class are numbered in the order of the file.
        classes: classes made of categories; see :class:`medmdm.prepare.classes.Classes`. Objects of categories that
            become background by ``rest`` are left out.
        overlap: what pixels that objects of several classes (several objects, for instances) cover become: ``last``:
            the last object in the file; ``smallest``: the smallest object; ``ignore``: ignored (classes only);
            ``refuse``: a sentence.
        empty: what an image without annotations is: ``unlabelled``, or all ``background``.
        subject: regular expression that finds the patient in the path of an image.

    Raises:
        UserError: one sentence about the file, the annotation or the option that is in the way.
    """
    need("prepare coco", "pycocotools", "coco")
    if overlap == "ignore" and label_type == "instances":
        raise UserError("--overlap ignore needs classes, for masks of objects cannot ignore pixels: choose another.")
    files = read_coco_files(release)
    pattern = subject_pattern(subject)
    numbering = _Numbering.of(files, label_type, None if classes is None else Classes.parse(classes))
    drawing = _Drawing(numbering, label_type == "instances", overlap)
    sections = {file: section_of(file.source.path) for file in files}
    several = len(set(sections.values())) > 1
    listed = listed_images(files, release)
    shared = commonpath(image.path.parent for _, _, image in listed)
    cases: list[SourceCase] = []
    without = crowds = 0
    for file, entry, image in listed:
        own = file.annotations.get(entry["id"], [])
        without += not own
        crowds += sum(bool(one.get("iscrowd")) for one in own)
        label = drawing.label_of(file, entry, own)
        case = picture_case(
            image.path.relative_to(shared).with_suffix("").as_posix(),
            sections[file] if several else "training",
            image,
            [file.source] if own or empty == "background" else [],
            label,
            label_type == "instances",
            recipe=" ".join((label_type, overlap, json.dumps([own, numbering.numbers]))),
            columns={} if pattern is None else {"patient_id": find_subject(image.path.as_posix(), pattern)},
        )
        # What the JSON says of this image is in the recipe: a change elsewhere in it makes nothing anew.
        cases.append(dataclasses.replace(case, sources=(image,)))
    notices = [*release.notices, *numbering.notices]
    if without:
        unlabelled = "get no label (--empty background: they hold no object)"
        becomes = unlabelled if empty == "unlabelled" else "are all background"
        notices.append(f"{without} of {len(listed)} images have no annotation and {becomes}")
    if crowds:
        notices.append(f"{crowds} annotations are marked as crowds (iscrowd) and are taken as one object each")
    unlisted = {file for file in release.images if not is_mask(file.path)} - {image for _, _, image in listed}
    if unlisted:
        notices.append(f"{counted(len(unlisted), 'image')} that no JSON file lists left out")
    suspicion = None if pattern else suspected_patients([image.path.as_posix() for _, _, image in listed])
    information = {
        "name": release.source.resolve().stem,
        "description": "Prepared from COCO's JSON by medmdm.",
        "labels": numbering.labels,
        "label_type": label_type,
    } | ({"split": "official"} if several else {})
    return Preparation(information, tuple(cases), (*notices, *([suspicion] if suspicion else [])))


@dataclass(frozen=True)
class _Numbering:
    """The class number of each category.

    Args:
        labels: number by name, for the data list.
        numbers: class number by category; ``None`` for those whose objects are left out.
        notices: for the end of the table.
    """

    labels: Mapping[str, int]
    numbers: Mapping[str, int | None]
    notices: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Sequence[CocoFile], label_type: str, classes: Classes | None) -> _Numbering:
        names: dict[str, None] = {}
        for file in files:
            names |= dict.fromkeys(name for _, name in sorted(file.categories.items(), key=lambda item: item[0]))
        used = {f.categories[one["category_id"]] for f in files for own in f.annotations.values() for one in own}
        present = [name for name in names if name in used]
        if not present:
            raise UserError(f"{files[0].source.shown} holds no annotation: export it with its outlines.")
        return cls._chosen(present, label_type, classes) if classes else cls._all([*names], present, label_type)

    @classmethod
    def _all(cls, names: Sequence[str], present: Sequence[str], label_type: str) -> _Numbering:
        unused = [name for name in names if name not in present]
        notices = [f"categories without an annotation are left out: {', '.join(unused)}"] if unused else []
        objects = [name for name in present if name.lower() != BACKGROUND]
        if label_type == "instances":
            if len(objects) > 1:
                merged = ", ".join(objects)
                notices.append(f"objects of all categories ({merged}) count as one class: --classes chooses among them")
            labels = {BACKGROUND: 0, objects[0] if len(objects) == 1 else "object": 1}
            return cls(labels, {name: 1 if name in objects else None for name in present}, tuple(notices))
        if len(objects) >= IGNORE:
            raise UserError(f"{len(objects)} categories are more than a mask of classes holds: choose with --classes.")
        labels = {BACKGROUND: 0} | {name: i for i, name in enumerate(objects, 1)}
        return cls(labels, {name: labels.get(name, 0) for name in present}, tuple(notices))

    @classmethod
    def _chosen(cls, present: Sequence[str], label_type: str, classes: Classes) -> _Numbering:
        values = {value for values in classes.sources.values() for value in values}
        number = next((value for value in values if value.isdecimal() and value not in (*present, "0")), None)
        if number is not None:
            problem = f"--classes has the number {number}, but categories go by name"
            raise UserError(f"{problem}: these are {', '.join(present)}.")
        new, rest = classes.numbers({name: i for i, name in enumerate(present, 1)})
        numbers: dict[str, int | None] = {}
        for i, name in enumerate(present, 1):
            if i not in new and rest is None:
                raise UserError(
                    f"--classes does not name the category {name!r}: add it to a class, or leave its objects out with "
                    f"{BACKGROUND}=rest."
                )
            # Objects of all other categories are left out; a category that is named for background is drawn as such.
            numbers[name] = new.get(i, rest or None)
        if label_type == "instances":
            if len(classes.labels) != 2 or IGNORED in classes.sources:
                raise UserError("objects are of one class: give --classes one name beside the background.")
            numbers = {name: value or None for name, value in numbers.items()}
        return cls(classes.labels, numbers)


@dataclass(frozen=True)
class _Drawing:
    """How objects are drawn."""

    numbering: _Numbering
    instances: bool
    overlap: str

    def label_of(self, file: CocoFile, entry: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Any:
        """Return what makes the label of one image; see :func:`medmdm.prepare.preparation.picture_case`."""

        def draw(image: SourceFile, shape: tuple[int, ...], source: SourceFile) -> Label:
            stated: list[Any] = [entry.get("height"), entry.get("width")]
            if None not in stated and stated != list(shape):
                outlined = f"{source.shown} outlines it at {size_text(map(int, stated))}"
                raise UserError(
                    f"{image.shown} is {size_text(shape)}, but {outlined}: give the image that was annotated."
                )
            return self._draw(image, shape, file, annotations)

        return draw

    def _draw(
        self, image: SourceFile, shape: tuple[int, ...], file: CocoFile, annotations: Sequence[Mapping[str, Any]]
    ) -> Label:
        numbers = [self.numbering.numbers[file.categories[one["category_id"]]] for one in annotations]
        drawn = [(one, number) for one, number in zip(annotations, numbers, strict=True) if number is not None]
        if self.instances and len(drawn) > MAX_INSTANCES:
            raise UserError(f"{image.shown} has {len(drawn)} objects, more than a 16-bit mask can number.")

        def covered(i: int) -> np.ndarray:  # one at a time: a picture may have thousands
            one = drawn[i][0]
            name = f"{file.source.shown}: {one['name']} of {image.path.name}"
            return outline_mask(one["segmentation"], shape, name)

        # Numbers that must not meet: of objects, or of classes.
        values = np.array([0, *(range(1, len(drawn) + 1) if self.instances else (number for _, number in drawn))])
        order = [*range(len(drawn))]
        if self.overlap == "smallest":
            order.sort(key=lambda i: -int(covered(i).sum()))
        owner, several = np.zeros(shape, np.int64), np.zeros(shape, bool)  # owner: 1 + index of the object
        for i in order:
            mask = covered(i)
            before = owner[mask]
            several[mask] |= (before > 0) & (values[before] != values[i + 1])
            owner[mask] = i + 1
        label = values[owner].astype(np.uint16)
        overlapping = int(np.count_nonzero(several))
        if overlapping and self.overlap == "refuse":
            raise UserError(f"{image.shown}: {overlapping} pixels belong to several objects: correct their outlines.")
        if self.overlap == "ignore":
            label[several] = IGNORE
        visible = set(np.unique(owner).tolist())
        hidden = [one["name"] for i, (one, _) in enumerate(drawn, 1) if i not in visible]
        notes = []
        if overlapping:
            became = "are ignored" if self.overlap == "ignore" else f"were given to the {self.overlap}"
            notes.append(f"{image.stem}: {overlapping} pixels belong to several objects and {became}")
        if hidden:
            number = counted(len(hidden), "object")
            notes.append(f"{image.stem}: {number} without a pixel of its own (first: {hidden[0]})")
        if self.instances:
            label = relabel_sequential(label)[0]
        return Label(label, {"regions": len(drawn), "objects": len(drawn) - len(hidden)}, notes=tuple(notes))
