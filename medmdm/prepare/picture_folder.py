"""Any folder of images, with or without masks: all of them training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from posixpath import commonpath
from typing import Any

import numpy as np
from skimage.segmentation import relabel_sequential

from medmdm.data.files.pictures import image_size, turned_apart
from medmdm.data.mask_names import is_mask, mask_name
from medmdm.data.meaning import Meaning, count_parts, meaning_of, with_ones
from medmdm.data.patients import find_subject, subject_pattern, suspected_patients
from medmdm.errors import UserError, counted
from medmdm.labels import IGNORE
from medmdm.prepare.classes import Classes, ColourTable, find_colour_table, read_colours
from medmdm.prepare.mask_pairs import Pairs, pair_masks, unread_outlines
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile
from medmdm.progress import followed

_VOC_BORDER = 0xE0E0C0


def plan(
    release: Release,
    label_type: str = "classes",
    classes: Sequence[str] | None = None,
    subject: str | None = None,
) -> Preparation:
    """Plan a folder of images.

    A mask belongs to the image of the same name beside it (``x_mask.png``, ``x_anno.bmp``) or in a parallel folder
    (``images/x.png`` and ``labels/x.png``); see :mod:`medmdm.data.mask_names` for the names that masks have. Colours of
    masks are read by the table that CVAT, CamVid or Supervisely put beside them, or by ``classes``.

    Args:
        release: the images.
        label_type: ``classes``: values are class numbers, kept as they are, 255 meaning "ignore"; where the whole
            folder has one number besides 0, such as 255, it becomes 1 (see :func:`medmdm.data.meaning.meaning_of`).
            ``instances``: values number objects of one class.
        classes: names of classes and what becomes them; see :class:`medmdm.prepare.classes.Classes`.
        subject: regular expression that finds the patient in the path of an image; see
            :func:`medmdm.data.patients.find_subject`. ``None``: patients are not known.

    Raises:
        UserError: one sentence about the file or option that is in the way.
    """
    images = [file for file in release.images if not is_mask(file.path)]
    if not images:
        raise UserError(
            f"{release.source} holds no image among {len(release.files)} files ({len(release.images)} have names of "
            "masks): give a folder of PNG, TIFF, BMP or JPEG images."
        )
    pattern, chosen = subject_pattern(subject), None if classes is None else Classes.parse(classes)
    instances = label_type == "instances"
    pairs = pair_masks(images, [file for file in release.images if is_mask(file.path)], label_type)
    notices = list(pairs.notices)
    if chosen is not None and not pairs.masks:
        raise UserError(f"--classes is given, but no image of {release.source} has a mask: leave it out.")
    reading = _Reading(pairs, instances, chosen, _table(release, chosen))
    labels, more = reading.labels()
    information: dict[str, Any] = {
        "name": release.source.resolve().stem,
        "description": "Prepared from a folder by medmdm.",
        "label_type": label_type,
    } | ({"labels": labels} if labels else {})
    notices += more
    shared = commonpath(image.path.parent for image in images)
    cases = []
    for image in images:
        name = image.path.relative_to(shared).with_suffix("").as_posix()
        own = [files[image] for files in (pairs.masks, pairs.classes) if image in files]
        columns = {} if pattern is None else {"patient_id": find_subject(image.path.as_posix(), pattern)}
        more_fields = {"recipe": reading.recipe, "columns": columns}
        cases.append(picture_case(name, "training", image, own, reading.label, instances, **more_fields))
    if len(pairs.masks) < len(images):
        without = len(images) - len(pairs.masks)
        if pairs.masks:
            notices.append(f"{without} of {len(images)} images have no mask and get no label")
        notices += unread_outlines(release.files)
    suspicion = None if pattern else suspected_patients([image.path.as_posix() for image in images])
    return Preparation(information, tuple(cases), (*notices, *([suspicion] if suspicion else [])))


def _table(release: Release, classes: Classes | None) -> ColourTable | None:
    """Return the colours of classes: the user's, else those of a file."""
    own = None if classes is None else classes.colours
    return own or find_colour_table(release)


class _Reading:
    """How the masks of a folder are read.

    Args:
        pairs: of the folder.
        instances: whether they number objects.
        classes: as the user has them.
        table: colours of classes, where masks are coloured.
    """

    def __init__(self, pairs: Pairs, instances: bool, classes: Classes | None, table: ColourTable | None) -> None:
        self.masks, self.classes_of = pairs.masks, pairs.classes
        self.instances, self.classes, self.table = instances, classes, table
        self.whites: tuple[int, ...] = ()  # numbers that stand for 1, which shows in all masks together only
        self.recipe = ""

    def labels(self) -> tuple[dict[str, int], list[str]]:
        """Return number by name of the classes (none without masks), and notices; to be called first."""
        labels: dict[str, int] = {}
        notices: list[str] = []
        if self.masks and self.classes is not None:
            labels = self.classes.labels
            self.classes.numbers(self._known)  # refused before anything is written
            if self.instances and (len(labels) != 2 or "ignore" in self.classes.sources or self._unknown_classes):
                raise UserError(
                    "objects are of one class, and without masks of classes (SegmentationClass) all are of it: give "
                    "--classes one name beside the background, as in background=0 nucleus=rest."
                )
        elif self.masks and self.instances:
            names = [name for name, number in self._known.items() if number]
            labels = {"background": 0, names[0] if len(names) == 1 else "object": 1}
            if len(names) > 1:
                notices.append(
                    f"objects of all classes ({', '.join(names)}) count as one: --classes chooses among them"
                )
        elif self.masks and self.table is not None:
            labels = self.table.names
            notices.append(f"colours of masks are classes as {self.table.shown} lists them")
        elif self.masks:
            meaning = _classes(dict(self.masks))
            labels, self.whites, notices = dict(meaning.classes), meaning.whites, list(meaning.notices)
        notices += _turned(self.masks)
        how = [] if self.classes is None else [str(dict(self.classes.sources))]
        how += [] if self.table is None else [str(dict(self.table.colours))]
        self.recipe = " ".join([f"{'instances' if self.instances else 'classes'} {self.whites}", *how])
        return labels, notices

    def label(
        self, image: SourceFile, shape: tuple[int, ...], mask: SourceFile, classes: SourceFile | None = None
    ) -> Label:
        """Return the label of an image; ``classes`` is its mask of classes beside one of objects."""
        if self.instances:
            return self._objects(image, shape, mask, classes)
        array = read_label(mask, shape, image) if self.table is None else self.table.read(mask, shape, image)
        if self.classes is not None:
            array = self.classes.renumber(array, self._known, mask.shown)
        return Label(with_ones(array, self.whites))

    def _objects(
        self, image: SourceFile, shape: tuple[int, ...], mask: SourceFile, classes: SourceFile | None
    ) -> Label:
        name = mask_name(mask.path)
        if name is None or name.content != "objects" or not name.folder.lower().startswith("segmentationobject"):
            return Label(relabel_sequential(read_label(mask, shape, image))[0])
        # VOC paints each object in a colour of its own.
        if mask.suffix in (".jpg", ".jpeg"):
            raise UserError(f"{mask.shown} is a JPEG, whose colours are mixed at edges: export it as PNG.")
        colours = read_colours(mask, shape, image)
        notes = []
        if classes is not None:
            missed = int(np.count_nonzero((colours == 0) & (read_colours(classes, shape, image) != 0)))
            if missed:
                notes.append(f"{image.stem}: {missed} pixels of {classes.path} belong to no object of {mask.path}")
            if self.classes is not None and self.table is not None:
                numbers = self.table.read(classes, shape, image)
                colours[self.classes.renumber(numbers, self._known, classes.shown) == 0] = 0
        if (colours == _VOC_BORDER).any():
            notes.append(f"{image.stem}: VOC's border (#{_VOC_BORDER:06x}) became background")
            colours[colours == _VOC_BORDER] = 0
        found, inverse = np.unique(np.append(colours.ravel(), 0), return_inverse=True)
        if len(found) > IGNORE + 1:
            raise UserError(f"{mask.shown} has {len(found)} colours, more than VOC has for objects: save it as PNG.")
        return Label(inverse[:-1].reshape(shape).astype(np.uint16), notes=tuple(notes))

    @property
    def _known(self) -> dict[str, int]:
        return {} if self.table is None else self.table.names

    @property
    def _unknown_classes(self) -> bool:
        """Whether objects are to be chosen by classes that are not known of all."""
        sources = {} if self.classes is None else self.classes.sources
        by_class = any(values != ("rest",) for name, values in sources.items() if name != "background")
        return by_class and (self.table is None or set(self.classes_of) != set(self.masks))


def _turned(masks: Mapping[SourceFile, SourceFile]) -> list[str]:
    apart = []
    for image, mask in masks.items():
        with image.local() as picture, mask.local() as label:
            apart += [image] * turned_apart(picture, label)
    if not apart:
        return []
    pictures = counted(len(apart), "image", "is", "are")
    return [
        f"{pictures} turned by an orientation tag, which the mask has not, or has another (first: {apart[0].path}): "
        "look whether they lie on each other (a mask drawn on the image as it is shown does)"
    ]


def _classes(masks: dict[SourceFile, SourceFile]) -> Meaning:
    """Find out what the numbers of all masks mean together."""
    values: dict[str, dict[int, int]] = {}
    parts: dict[str, int] = {}
    for image, mask in followed(masks.items(), "reading values of masks"):
        with image.local() as path:
            shape = image_size(path)
        label = read_label(mask, shape, image)
        found, counts = np.unique(label, return_counts=True)
        values[mask.shown] = dict(zip(found.tolist(), counts.tolist(), strict=True))
        parts[mask.shown] = count_parts(label)
    return meaning_of(values, parts)
