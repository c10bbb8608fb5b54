"""Annotated slides: what was outlined in QuPath or ImageScope is cut out, as images with labels."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from medmdm.data.files.annotations import read_annotations
from medmdm.data.files.outlines import Outline
from medmdm.data.files.slides import Slide, slide_hash
from medmdm.data.patients import find_subject, subject_pattern
from medmdm.data.tissue import read_part
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError, counted
from medmdm.files import text_hash
from medmdm.labels import IGNORE
from medmdm.prepare.classes import BACKGROUND, IGNORED, Classes
from medmdm.prepare.preparation import Made, Preparation, SourceCase
from medmdm.prepare.release import Release, SourceFile
from medmdm.prepare.slide_files import SlideFile, annotated_slides

UNCLASSIFIED = "unclassified"
_REGION = -1  # number of an annotation in which everything is annotated
_CELL = 64  # pixels: annotations in cells that touch come into one image
_BEYOND = 0.01  # of a slide's side, by which an outline may leave it


def plan(
    release: Release,
    mpp: float = 0.5,
    tile: int = 1024,
    classes: Sequence[str] | None = None,
    region: Sequence[str] = ("Region*",),
    overlap: str = "smallest",
    slide_mpp: float | None = None,
    subject: str | None = None,
) -> Preparation:
    """Plan slides with their annotations: the boxes around annotations become images, in tiles where they are large.

    A pixel that no annotation covers is to be ignored, and inside an annotation of a ``region`` class it is background.

    Args:
        release: slides, and for each one annotation file with the same name (without suffixes).
        mpp: µm per pixel of the images.
        tile: most pixels along a side of an image.
        classes: classes made of those of the annotations; see :class:`medmdm.prepare.classes.Classes`. Without them
            each class is one, numbered in string order; ``Ignore*``, QuPath's name, is to be ignored.
        region: classes of annotations in which everything is annotated.
        overlap: what pixels that annotations of several classes cover become: of the ``smallest`` annotation, of the
            ``last`` in the file, ``ignore``, or ``refuse``: a sentence.
        slide_mpp: µm per pixel of the finest level of slides, where they do not state it.
        subject: regular expression that finds the patient in the path of a slide; ``None``: a slide is a patient.

    Raises:
        UserError: one sentence about the file, the annotation or the option that is in the way.
    """
    if not mpp > 0 or (slide_mpp is not None and not slide_mpp > 0):
        raise UserError("--mpp and --slide-mpp are micrometres per pixel: give numbers above 0.")
    if tile < _CELL:
        raise UserError(f"--tile is {tile}: give {_CELL} or more pixels.")
    pairs, notices = annotated_slides(release)
    annotated = []
    for _, file in pairs:
        with file.local() as path:
            outlines, left_out = read_annotations(path)
        annotated.append(outlines)
        notices += left_out
        if not outlines:
            notices.append(f"{file.path} holds no annotated area")
    names = {outline.name or UNCLASSIFIED for outlines in annotated for outline in outlines}
    labels, numbers = _numbering(names, region, None if classes is None else Classes.parse(classes))
    pattern = subject_pattern(subject)
    cases: list[SourceCase] = []
    small = 0
    for (slide, _), outlines in zip(pairs, annotated, strict=True):
        own = [(outline, numbers[outline.name or UNCLASSIFIED]) for outline in outlines]
        source = _Annotated.of(slide, own, mpp, overlap, slide_mpp)
        patient = slide.name if pattern is None else find_subject(slide.path.as_posix(), pattern)
        tiles, invisible = source.tiles(tile)
        small += invisible
        cases += [source.case(part, patient) for part in tiles]
    if not cases:
        raise UserError(
            f"{release.source}: no annotation covers a pixel at {mpp:g} µm: check --mpp and what is outlined."
        )
    if small:
        notices.append(f"{counted(small, 'annotation', 'covers', 'cover')} no pixel's centre at {mpp:g} µm")
    notices.append("pixels that no annotation covers are ignored (255), in training and in scores")
    if pattern is None:
        notices.append("each slide counts as a patient of its own: give --subject where several are of one")
    information = {
        "name": release.source.resolve().stem,
        "description": "Cut from annotated slides by medmdm.",
        "labels": {**labels, IGNORED: IGNORE},
    }
    return Preparation(information, tuple(cases), (*release.notices, *notices))


def _numbering(
    names: set[str], region: Sequence[str], classes: Classes | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Return number by class for the data list, and the number of each class of the annotations."""
    present = sorted(names - set(region))
    numbers = dict.fromkeys(region, _REGION)
    ignored = [name for name in present if name.rstrip("*").lower() == IGNORED]
    numbers |= dict.fromkeys(ignored, IGNORE)
    if classes is None:
        if UNCLASSIFIED in present:
            raise UserError(
                "an annotation has no class: give it one, or say with --classes what it is, as in "
                f"background={UNCLASSIFIED}."
            )
        objects = [name for name in present if name not in ignored and name.lower() != BACKGROUND]
        if not objects:
            all_names = ", ".join(sorted(names)) or "none"
            raise UserError(f"the annotations' classes are {all_names}: outline what is to be learnt.")
        if len(objects) >= IGNORE:
            raise UserError(f"{len(objects)} classes are more than a mask of classes holds: choose with --classes.")
        named = {name: number for number, name in enumerate(objects, 1)}
        background = {BACKGROUND: 0} if names & set(region) or len(objects) + len(ignored) < len(present) else {}
        return {**background, **named}, {**dict.fromkeys(present, 0), **named, **numbers}
    new, rest = classes.numbers({name: i for i, name in enumerate(present, 1)})
    for i, name in enumerate(present, 1):
        found = new.get(i, IGNORE if name in ignored else rest)
        if found is None:
            raise UserError(
                f"--classes does not name the class {name!r} of annotations: add it to a class, to {IGNORED}, or give "
                f"one class all others, as in {BACKGROUND}=rest."
            )
        numbers[name] = found
    return classes.labels, numbers


@dataclass(frozen=True, eq=False)
class _Annotated:
    """A slide with its annotations, in the order in which they are drawn.

    Args:
        file: the slide.
        slide: opened.
        digest: of the slide.
        outlines: each with its number.
        bounds: ``[n, 4]``, first row, first column, end row and end column of each in pixels of the images.
        mpp: µm of the images.
        overlap: see :func:`plan`.
    """

    file: SlideFile
    slide: Slide
    digest: str
    outlines: Sequence[tuple[Outline, int]]
    bounds: np.ndarray
    mpp: float
    overlap: str

    @classmethod
    def of(
        cls,
        file: SlideFile,
        outlines: Sequence[tuple[Outline, int]],
        mpp: float,
        overlap: str,
        slide_mpp: float | None,
    ) -> _Annotated:
        slide = file.open(slide_mpp)
        slide.close()  # until an image is read
        level = slide.levels[0]
        for outline, _ in outlines:
            left, top, right, bottom = outline.bounds
            for axis, low, high, size in (("x", left, right, level.width), ("y", top, bottom, level.height)):
                beyond = _BEYOND * size
                if low < -beyond or high > size + beyond or low >= size or high <= 0:
                    raise UserError(
                        f"{outline.title} has {axis} from {low:g} to {high:g}, outside of {file.path}, which has "
                        f"{size} pixels there: it was drawn on another slide, or not in pixels of the finest level."
                    )
        first = [one for one in outlines if one[1] == _REGION]
        others = [one for one in outlines if one[1] != _REGION]
        if overlap == "smallest":
            others.sort(key=lambda one: -one[0].area)
        ordered = [*first, *others]
        digest = slide_hash(file.on_disk, slide)
        grid = slide.grid(mpp)
        scale = level.height / grid.height, level.width / grid.width
        corners = np.array([one.bounds for one, _ in ordered]).reshape(-1, 4)[:, [1, 0, 3, 2]] / (*scale, *scale)
        bounds = np.concatenate([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])], axis=1).astype(np.int64)
        return cls(file, slide, digest, ordered, bounds, mpp, overlap)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the finest level in one of the images, down and across."""
        level, grid = self.slide.levels[0], self.slide.grid(self.mpp)
        return level.height / grid.height, level.width / grid.width

    def tiles(self, largest: int) -> tuple[list[tuple[int, int, int, int]], int]:
        """Return row, column, height and width of the images, and how many annotations cover no pixel of any."""
        found, visible = [], set[int]()
        for part in _boxes(self.bounds, (self.slide.grid(self.mpp).height, self.slide.grid(self.mpp).width), largest):
            label, covered = self.draw(part)
            visible |= covered
            if (label != IGNORE).any():
                found.append(part)
        return found, len(self.outlines) - len(visible)

    def touching(self, part: Sequence[int]) -> np.ndarray:
        """Return the indices of the annotations whose bounds meet a part, in the order in which they are drawn."""
        row, column, height, width = part
        top, left, bottom, right = self.bounds.T
        return np.flatnonzero((top < row + height) & (bottom > row) & (left < column + width) & (right > column))

    def draw(self, part: Sequence[int]) -> tuple[np.ndarray, set[int]]:
        """Return the label ``[height, width]`` uint8 of a part, and which annotations cover a pixel in it."""
        row, column, height, width = part
        label = np.full((height, width), IGNORE, np.uint8)
        drawn, several = np.zeros((height, width), bool), np.zeros((height, width), bool)
        visible = set()
        for i in self.touching(part).tolist():
            outline, number = self.outlines[i]
            first = np.maximum(self.bounds[i, :2], (row, column))
            end = np.minimum(self.bounds[i, 2:], (row + height, column + width))
            inside = outline.fill(end - first, first, self.scale)
            if not inside.any():
                continue
            visible.add(i)
            window = tuple(slice(a - at, b - at) for a, b, at in zip(first, end, (row, column), strict=True))
            if number != _REGION:
                several[window] |= inside & drawn[window] & (label[window] != number)
                drawn[window] |= inside
            label[window][inside] = 0 if number == _REGION else number
        if self.overlap == "refuse" and several.any():
            y, x = (np.argwhere(several)[0] + (row, column)) * self.scale
            raise UserError(
                f"{self.file.path} has {several.sum()} pixels at {self.mpp:g} µm in annotations of several classes "
                f"(first at x {x:.0f}, y {y:.0f}): correct their outlines."
            )
        if self.overlap == "ignore":
            label[several] = IGNORE
        return label, visible

    def case(self, part: tuple[int, int, int, int], patient: str) -> SourceCase:
        """Return the case of a part."""
        row, column, *_ = part
        y, x = round(row * self.scale[0]), round(column * self.scale[1])
        drawn = [self.outlines[i] for i in self.touching(part)]
        outlines = [[number, [[ring.tolist() for ring in rings] for rings in one.polygons]] for one, number in drawn]
        recipe = json.dumps([self.mpp, self.overlap, part, text_hash(json.dumps(outlines))])
        source = SourceFile(
            self.file.path, str(self.file.on_disk), partial(io.BytesIO, self.digest.encode()), self.file.on_disk
        )
        name = f"{self.file.name}_x{x}_y{y}"
        spacing = [side / 1000 for side in self.slide.grid(self.mpp).mpp]
        columns = {"patient_id": patient, "slide": self.file.path.as_posix(), "x": x, "y": y, "spacing": spacing}
        return SourceCase(name, "training", (source,), partial(self.make, name, part), columns=columns, recipe=recipe)

    def make(self, name: str, part: tuple[int, int, int, int]) -> Made:
        """Read the image of a part and draw its label."""
        image = read_part(self.slide, part, self.mpp)
        label, _ = self.draw(part)
        values, counts = np.unique(label[label != IGNORE], return_counts=True)
        pixels = dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
        files = {
            "image": (f"images/{name}.png", encode_picture(image, ".png")),
            "label": (f"labels/{name}.png", encode_picture(label, ".png")),
        }
        return Made(files, {"shape": list(label.shape), "pixels": pixels})


def _boxes(bounds: np.ndarray, size: Sequence[int], largest: int) -> Iterator[tuple[int, int, int, int]]:
    """Give row, column, height and width of parts that do not overlap and hold all bounds, none above ``largest``.

    Boxes around what is close to each other, whole cells; larger ones in equal parts.
    """
    from scipy.ndimage import find_objects, label  # slow to import

    cells = np.zeros([-(-n // _CELL) for n in size], bool)
    for top, left, bottom, right in np.clip(bounds, 0, (*size, *size)).tolist():
        cells[top // _CELL : -(-bottom // _CELL), left // _CELL : -(-right // _CELL)] = True
    while True:
        boxes = find_objects(label(cells, np.ones((3, 3)))[0])
        before = int(cells.sum())
        for box in boxes:
            cells[box] = True
        if int(cells.sum()) == before:
            break
    for rows, columns in boxes:
        sides = [(one.start * _CELL, min(one.stop * _CELL, n)) for one, n in zip((rows, columns), size, strict=True)]
        parts = []
        for first, end in sides:
            count = -(-(end - first) // largest)
            ends = [first + (end - first) * i // count for i in range(count + 1)]
            parts.append([*itertools.pairwise(ends)])
        for top, bottom in parts[0]:
            for left, right in parts[1]:
                yield top, left, bottom - top, right - left
