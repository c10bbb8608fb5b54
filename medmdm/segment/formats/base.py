"""What a form of output is told of a case, and the two kinds: a file for each case, and one file for all."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from medmdm.data.files.formats import is_volume
from medmdm.data.files.pictures import is_turned
from medmdm.data.files.slides import is_slide
from medmdm.data.lists import image_names
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError, counted, warn_once
from medmdm.segment.formats.measurements import measure, measure_classes
from medmdm.segment.postprocessing import PostProcess

#: Of the classes from 1 on, again from the first where there are more.
COLOURS = ((255, 212, 0), (0, 158, 255), (255, 80, 40), (0, 200, 120), (230, 120, 220), (90, 230, 255))


@dataclass(frozen=True)
class Origin:
    """What segmented the cases.

    Args:
        class_names: of the classes from 0 on.
        sha256: of the segmenter's file.
        background: number of the class that is no object.
    """

    class_names: Sequence[str]
    sha256: str
    background: int = 0

    @property
    def foreground(self) -> dict[int, str]:
        """The names of the classes that are objects, by number."""
        return {number: name for number, name in enumerate(self.class_names) if number != self.background}


@dataclass(frozen=True)
class Traced:
    """How a coarser mask lies on its slide.

    Args:
        scale: pixels of the slide's finest level in one of the mask, down and across.
        size: rows and columns of that level, which the mask's last pixels may reach over.
        mpp: µm of the mask's pixels, down and across.
    """

    scale: tuple[float, float]
    size: tuple[int, int]
    mpp: tuple[float, float]


@dataclass(frozen=True)
class Segmented:
    """A case that was segmented.

    Args:
        folder: the run folder; files of cases go to ``predictions/`` in it.
        case: as it was read.
        mask: class numbers ``[*spatial]`` on the grid of the case.
        instances: numbers of objects, where the post-processing finds them.
        probabilities: ``[K, *spatial]``, where a format asks for them.
        origin: what segmented it.
        traced: of a slide, how the mask, which is a coarser one, lies on it.
    """

    folder: Path
    case: LoadedCase = field(repr=False)
    mask: np.ndarray = field(repr=False)
    instances: np.ndarray | None = field(repr=False)
    probabilities: np.ndarray | None = field(repr=False)
    origin: Origin = field(repr=False)
    traced: Traced | None = None

    @functools.cached_property
    def objects(self) -> np.ndarray:
        """Numbers of objects ``[*spatial]``: the instances, or without any the connected parts of each class."""
        if self.instances is not None:
            return self.instances
        parts = PostProcess(instances="components", background=self.origin.background).finished(self.mask)["instances"]
        assert parts is not None
        return parts

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """Class numbers as labels ``[*spatial]``, 0 for the background; class 0 where it is none becomes 256."""
        labels = self.mask.astype(np.uint16)
        labels[self.mask == 0] = 256
        labels[self.mask == self.origin.background] = 0
        return labels

    @property
    def corner(self) -> tuple[int, ...]:
        """Where the case's first pixel lies in its picture."""
        region = self.case.entry.get("region") or {}
        return int(region.get("rows", (0,))[0]), int(region.get("columns", (0,))[0])

    def in_file(self, points: np.ndarray) -> np.ndarray:
        """Return points ``[n, 2]`` (row, column; corners of pixels are whole) of the mask as points of its file.

        Those of a slide are in pixels of its finest level.
        """
        if self.traced is None:
            return points + np.asarray(self.corner)
        return np.minimum(points * self.traced.scale, self.traced.size)

    @property
    def source(self) -> Path:
        """The image, of several sequences the first."""
        return Path(image_names(self.case.entry)[0])

    def measured(self, labels: np.ndarray) -> pd.DataFrame:
        """Return what :func:`measure` says of labels on the grid of the case, of a slide :func:`measure_classes`."""
        if self.traced is not None:
            rows, columns = (
                np.minimum(np.arange(1, n + 1), end / step) - np.arange(n)
                for n, end, step in zip(labels.shape, self.traced.size, self.traced.scale, strict=True)
            )
            return measure_classes(labels, self.mask, self.traced.mpp, (rows, columns))
        volume = self.case.slicing is not None
        shift = (0, 0, 0) if volume else self.corner
        return measure(labels, self.mask, self.probabilities, self.case.spacing, shift)


class Format:
    """A form in which what was segmented is written."""

    #: Whether probabilities have to be kept for it.
    needs_probabilities: bool = False
    #: Whether slides can be written, of which a form is given classes alone, on a coarser grid.
    for_slides: ClassVar[bool] = False

    def check(self, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        """See that every case can be written, before anything is predicted.

        This one refuses slides unless the form is for them; those of other forms call it.

        Args:
            entries: of the cases.
            class_names: of the segmenter.

        Raises:
            UserError: one cannot.
        """
        for entry in [] if self.for_slides else entries:
            if isinstance(entry["image"], str) and is_slide(path := entry["image"]):
                others = "GeoJSON has its outlines, and predictions/ a pyramidal OME-TIFF of its mask in any case"
                raise UserError(f"{path} is a slide, which {type(self).__name__} cannot be written for: {others}.")


class CaseFormat(Format):
    """A file, or a few, for each case."""

    def write(self, made: Segmented) -> dict[str, str]:
        """Write the files; return their paths in the run folder by what they hold."""
        raise NotImplementedError


class RunFormat(Format):
    """One file for all cases, made of a piece for each; pieces of images that are not read again stay."""

    file: ClassVar[str]

    def describe(self, made: Segmented) -> Any:
        """Return the piece of a case; None where there is nothing to say."""
        raise NotImplementedError

    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the pieces of a file by case.

        Raises:
            ValueError, KeyError, OSError: it is damaged.
        """
        raise NotImplementedError

    def text(self, pieces: Mapping[str, Any]) -> str:
        """Return the file's text."""
        raise NotImplementedError


def only_pictures(form: Format, entries: Sequence[Mapping[str, Any]], instead: str) -> None:
    """Refuse volumes, and say which pictures a tag turns.

    Raises:
        UserError: a case is one.
    """
    for entry in entries:
        if is_volume(path := image_names(entry)[0]):
            raise UserError(f"{path} is a volume, and {type(form).__name__} is for pictures: use {instead}.")
    turned = [path for entry in entries if is_turned(path := image_names(entry)[0])]
    if turned:
        images = f"{counted(len(turned), 'image')} turned by an orientation tag (first: {turned[0]})"
        others = "programs that ignore the tag show it otherwise"
        warn_once(f"{images}: masks, outlines and coordinates are of the image as the tag turns it, and {others}")
