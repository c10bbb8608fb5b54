"""What is to be prepared: cases, the files that each is made from, and how pictures and masks are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medmdm.data.files.aperio import MAX_INSTANCES
from medmdm.data.files.pictures import read_image, read_mask
from medmdm.data.files.units import picture_spacing
from medmdm.data.validity import ImageGrid, check_same_grid, label_numbers
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError
from medmdm.labels import IGNORE
from medmdm.prepare.release import SourceFile


@dataclass(frozen=True)
class Made:
    """What one case becomes.

    Args:
        files: path below DEST and content, by the key that it has in the data list (``image``, ``label``).
        facts: for the table, as JSON values: ``shape``; ``objects`` where they are numbered; ``regions`` where the
            source lists outlines; ``pixels``, the number of pixels by class without the ignored ones.
        columns: what the files say beyond what the plan knew, for the data list (such as ``spacing``).
        notes: sentences for the end of the table.
    """

    files: Mapping[str, tuple[str, bytes]]
    facts: Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceCase:
    """One image with whatever belongs to it.

    Args:
        name: of the outputs, unique in the data set also where letter case does not count.
        section: ``training``, ``validation`` or ``test``; ``None`` for a case that ``dataset.json`` does not list.
        sources: the files that it is made from; a change in one makes it anew.
        make: reads them and returns the outputs.
        row: the row of the table that it counts in; default the section.
        columns: for its entry in the data list.
        recipe: what ``make`` depends on besides the sources.
    """

    name: str
    section: str | None
    sources: tuple[SourceFile, ...]
    make: Callable[[], Made]
    row: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)  # holds patient ids
    recipe: str = ""


@dataclass(frozen=True)
class Preparation:
    """A data set to prepare.

    Args:
        information: the data list without its sections.
        cases: in the order of the data list.
        notices: what is missing or was decided, for the end of the table.
        other_lists: further data lists by file name: what differs in their information, and the section in them of the
            cases that ``dataset.json`` does not list.
    """

    information: Mapping[str, Any]
    cases: tuple[SourceCase, ...]
    notices: tuple[str, ...] = ()
    other_lists: Mapping[str, tuple[Mapping[str, Any], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """The mask of a case.

    Args:
        array: ``[H, W]`` numbers of classes, or of objects.
        facts: beyond those that are counted in the array.
        columns: for the data list.
        notes: sentences for the end of the table.
    """

    array: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def picture_case(
    name: str,
    section: str | None,
    image: SourceFile,
    masks: Sequence[SourceFile],
    label_of: Callable[..., Label],
    instances: bool = True,
    **more: Any,
) -> SourceCase:
    """Return the case of a picture; one without masks gets no label.

    Args:
        name: of the case.
        section: of the data list.
        image: read as it is.
        masks: that belong to it.
        label_of: takes the image, its size and the masks; returns the label.
        instances: whether the mask numbers objects rather than classes.
        **more: further fields of the case.
    """

    def make() -> Made:
        with image.local() as path:
            array, spacing = read_image(path), picture_spacing(path)
            try:
                files = {"image": (f"images/{name}.png", encode_picture(array, ".png"))}
            except UserError:  # a type that PNG cannot hold, such as floats: the file stays what it was
                files = {"image": (f"images/{name}{image.suffix}", path.read_bytes())}
        shape = array.shape[1:]
        columns = {} if spacing is None else {"spacing": list(spacing)}  # which PNG cannot say
        if not masks:
            return Made(files, {"shape": list(shape)}, columns)
        label = label_of(image, shape, *masks)
        files["label"] = (f"labels/{name}.png", encode_picture(label.array.astype(np.uint16), ".png"))
        values, counts = np.unique(label.array, return_counts=True)
        pixels = dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
        facts = {"shape": list(shape), "pixels": pixels, **label.facts}
        if instances:  # all are of class 1
            background = pixels.get("0", 0)
            facts["pixels"] = {"0": background, "1": label.array.size - background}
            facts["objects"] = len(pixels) - ("0" in pixels)
        else:
            pixels.pop(str(IGNORE), None)
        return Made(files, facts, {**columns, **label.columns}, label.notes)

    return SourceCase(name, section, (image, *masks), make, **more)


def read_label(file: SourceFile, shape: tuple[int, ...], image: SourceFile) -> np.ndarray:
    """Read a mask of a release as ``[H, W]`` whole numbers from 0 to 65535.

    Raises:
        UserError: it has colours, other values, or another size than its image.
    """
    with file.local() as path:
        array = read_mask(path)
    if array.shape[0] != 1:
        raise UserError(
            f"{file.shown} has colours: a mask must be grey, its values being class or object numbers; prepare folder "
            "also reads colours by a labelmap.txt beside the masks or --classes, as in nucleus=#fa3253."
        )
    numbers = label_numbers(array, file.shown, MAX_INSTANCES)
    check_same_grid(ImageGrid(array.shape[1:]), ImageGrid(shape), file.shown, f"its image {image.shown}")
    return numbers[0].astype(np.uint16)
