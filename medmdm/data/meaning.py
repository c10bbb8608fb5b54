"""What the numbers in labels mean: the one rule that the check, the preparation, training and the reports share.

Masks of two values mean two classes, whatever their white is: 0 and 255, 65535 or 100 are 0 and 1. Grey levels, as
compression and smoothing leave them, mean nothing that can be told, and are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmdm.data.validity import LEAST_WHITE
from medmdm.errors import UserError, warn_once
from medmdm.labels import IGNORE

_MANY_CLASSES = 32
_REMEDY = "make them again with nearest neighbours, or threshold them at half, and save them as PNG"


def white_of(values: Iterable[float], classes: Collection[int] | None) -> int | None:
    """Return the number that a label has for class 1, ``None`` where it holds the numbers of classes.

    Where background and class 1 are all that is declared, a label of 0 and one number from 100 on shows its objects in
    white. A list that declares ``"ignore": 255`` has no such labels.

    Args:
        values: the different ones in the whole file.
        classes: what the list declares, with a number to ignore where it declares one; ``None`` where it does not.
    """
    others = {float(value) for value in values} - {0}
    if classes is None or not {1} <= set(classes) <= {0, 1} or len(others) != 1:
        return None
    (white,) = others
    return int(white) if white.is_integer() and white >= LEAST_WHITE else None


def with_ones(numbers: np.ndarray, whites: Collection[int]) -> np.ndarray:
    """Return the numbers of a label with 1 for each white, in the same type."""
    return np.where(np.isin(numbers, list(whites)), numbers.dtype.type(1), numbers) if whites else numbers


def contradiction(white: str | None, ignoring: str | None) -> str | None:
    """Return why two labels of a set cannot be understood together, without a full stop.

    Args:
        white: name of a label of nothing but 0 and 255.
        ignoring: name of one that has 255 beside 1.
    """
    if white is None or ignoring is None:
        return None
    return (
        f"{white} holds nothing but 0 and {IGNORE}, and {ignoring} has {IGNORE} beside 1, so that {IGNORE} may be an "
        f"object or pixels to ignore: if they are, add \"ignore\": {IGNORE} to 'labels' of the data list, "
        "else write 1 for every object"
    )


class WhiteMasks:
    """Turns the masks of a set that have a white into numbers of classes, and says so once.

    Args:
        classes: as for :func:`white_of`.
    """

    def __init__(self, classes: Collection[int] | None) -> None:
        self.classes = classes
        self._white: str | None = None
        self._ignoring: str | None = None

    def whites(self, labels: Sequence[np.ndarray], name: str) -> tuple[int, ...]:
        """Return the number to be read as 1 in the parts of one file, if there is one.

        Args:
            labels: all of the file: a picture, or the slices of a volume.
            name: of the file.

        Raises:
            UserError: another label of the set has that number beside class 1.
        """
        values = {value for label in labels for value in np.unique(label).tolist()}
        white = white_of(values, self.classes)
        if white is not None:
            warn_once(f"{name} holds 0 and {white}: {white} is read as class 1, here and in other such labels")
        if white == IGNORE:
            self._white = self._white or name
        elif white_of({IGNORE}, self.classes) and {1, IGNORE} <= values:
            self._ignoring = self._ignoring or name
        problem = contradiction(self._white, self._ignoring)
        if problem is not None:
            raise UserError(f"{problem}.")
        return () if white is None else (white,)


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a set mean of which nobody declared the classes.

    Args:
        classes: numbers by name, the background first.
        whites: numbers that become 1.
        notices: what was decided.
    """

    classes: Mapping[str, int]
    whites: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()


def count_parts(labels: np.ndarray) -> int:
    """Return how many connected parts of one number, other than 0, a label has; pixels touch at corners, too."""
    from skimage.measure import label  # slow to import

    return int(label(labels, background=0, return_num=True)[1])


def look_like_objects(masks: Iterable[tuple[Collection[int], int]]) -> bool:
    """Tell whether the numbers of pictures' masks, given as those of classes, seem to count objects.

    They do where nine tenths of them or more are in one piece in each mask (a crop may cut an object in two), five or
    more are in use, and masks have different ones.

    Args:
        masks: the numbers in each and its :func:`count_parts`; those without any number but 0 say nothing.
    """
    numbered = [(frozenset(numbers) - {0}, parts) for numbers, parts in masks if set(numbers) - {0}]
    kinds = {numbers for numbers, _ in numbered}
    in_pieces = sum(parts for _, parts in numbered) > 1.1 * sum(len(numbers) for numbers, _ in numbered)
    return len(numbered) >= 3 and len(kinds) > 1 and len(frozenset().union(*kinds)) >= 5 and not in_pieces


def meaning_of(masks: Mapping[str, Mapping[int, int]], parts: Mapping[str, int] | None = None) -> Meaning:
    """Find out what the numbers of all masks of a set mean together.

    One number besides 0 in the whole set is class 1; so is a white that some masks have for what others call 1. Other
    numbers are classes, and 255 among them means pixels to ignore.

    Args:
        masks: pixels by value, by name of the file.
        parts: :func:`count_parts` by name of the file, of pictures.

    Raises:
        UserError: the numbers are grey levels, or more than a class can have.
    """
    pixels: dict[int, int] = {}
    first: dict[int, str] = {}
    for name, counts in masks.items():
        for value, count in counts.items():
            pixels[value] = pixels.get(value, 0) + count
            first.setdefault(value, name)
    numbers = sorted(set(pixels) - {0})
    apart = all(len(set(counts) - {0}) <= 1 for counts in masks.values())
    binary = {"background": 0, "class 1": 1}
    if len(numbers) == 1 and numbers != [1]:
        return Meaning(binary, tuple(numbers), (f"all masks are of 0 and {numbers[0]}, which became 0 and 1",))
    if len(numbers) == 2 and apart and numbers[0] == 1 and numbers[1] >= LEAST_WHITE:
        white = numbers[1]
        sentence = f"some masks use {white} for what others call 1 (first: {first[white]}, {first[1]}): both became 1"
        return Meaning(binary, (white,), (sentence,))
    _refuse_grey_levels(numbers, pixels, first)
    classes = [number for number in numbers if number != IGNORE]
    names = {"background": 0, **{f"class {number}": number for number in classes}}
    notices = []
    if IGNORE in numbers:
        notices.append(f"pixels of value {IGNORE} are ignored in training and evaluation")
        if classes == [1]:  # else masks of 0 and 255 among them would be taken for those of 0 and 1
            names["ignore"] = IGNORE
    if len(classes) > _MANY_CLASSES:
        notices.append(f"the masks have {len(classes)} values: if they number objects, give --label-type instances")
    elif parts is not None and look_like_objects((counts, parts[name]) for name, counts in masks.items()):
        notices.append(
            f"the {len(classes)} numbers are in one piece in each mask, as those of objects: if they number objects, "
            "give --label-type instances"
        )
    return Meaning(names, (), tuple(notices))


def _refuse_grey_levels(numbers: Sequence[int], pixels: Mapping[int, int], first: Mapping[int, str]) -> None:
    """Refuse values of a set that cannot be numbers of classes."""
    if not numbers:
        return
    top, between = numbers[-1], numbers[:-1]
    # A fifth of white: no set of a few classes numbers them so high and goes on with 255, "ignore".
    light = [number for number in between if (5 if top in (IGNORE, 65535) else 2) * number >= top]
    # A white with its neighbours; or levels of which the last has most pixels, as objects with soft edges have; or many
    # levels, which would number objects without gaps.
    soft = sum(pixels[number] for number in between) < pixels[top] or _MANY_CLASSES < len(numbers) != top
    if (top in (IGNORE, 65535) and light) or (top >= LEAST_WHITE and len(between) > 1 and soft and light):
        shown = ", ".join(map(str, light[:3]))
        raise UserError(
            f"{first[light[0]]} and the other masks hold grey levels between 0 and {top} (such as {shown}), as masks "
            f"have whose edges were smoothed or compressed, and no numbers of classes: {_REMEDY}. (If they are numbers "
            'of classes, name them: prepare folder has --classes, a data list "labels"; if they number objects, give '
            "--label-type instances.)"
        )
    if top > IGNORE:
        raise UserError(
            f"{first[top]} holds {top}, and classes must be below {IGNORE}: if the masks number objects, give "
            "--label-type instances."
        )
