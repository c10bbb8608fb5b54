"""Looking into one case: does everything decode, fit together, and mean something?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.check.findings import Finding
from medmdm.data.files.decoding import Decoded, decode, decode_label
from medmdm.data.files.pictures import turned_apart
from medmdm.data.lists import image_name
from medmdm.data.meaning import count_parts, white_of, with_ones
from medmdm.data.transforms.spatial import cut_region
from medmdm.data.validity import check_finite, check_known, grid_problem, label_numbers
from medmdm.errors import UserError
from medmdm.labels import IGNORE


@dataclass(frozen=True)
class ListedCase:
    """An entry of a data list and where its files are.

    Args:
        section: it is listed in.
        entry: of the list.
        image: the file, or one per sequence; ``None`` where one is missing.
        label: the same; ``None`` also where the entry has none.
    """

    section: str
    entry: Mapping[str, Any] = field(repr=False)  # holds the patient id
    image: Path | list[Path] | None = None
    label: Path | None = None

    @property
    def name(self) -> str:
        """How messages name it: as the list does."""
        return image_name(self.entry)


@dataclass
class Facts:
    """What is known of a case once it was decoded; what could not be read stays ``None``.

    Args:
        case: that was looked into.
        findings: what is wrong with it.
        kind: channels, size and type of the image, ``(3, "522x775", "uint8")``.
        spatial_dims: 2 for pictures, 3 for volumes.
        whole_hash: SHA-256 of the decoded image.
        case_hash: the same of the part that is the case.
        values: pixels by label value, for class labels.
        parts: connected parts of the label of a picture, for class labels.
        white: the number that its label has for class 1.
        instances: objects in an instance label.
        pixels: labelled pixels, without ignored ones.
        foreground: those that are not background.
    """

    case: ListedCase
    findings: list[Finding] = field(default_factory=list)
    kind: tuple[int, str, str] | None = None
    spatial_dims: int | None = None
    whole_hash: str | None = None
    case_hash: str | None = None
    values: dict[int, int] | None = None
    parts: int | None = None
    white: int | None = None
    instances: int | None = None
    pixels: int = 0
    foreground: int = 0

    def error(self, check: str, message: object, *files: str) -> None:
        """Note what is wrong."""
        self.findings.append(Finding.error(check, message, *files))


def inspect(case: ListedCase, classes: frozenset[int] | None, instances: bool) -> Facts:
    """Decode the files of a case and check what they hold.

    Args:
        case: files that are ``None`` are passed over.
        classes: numbers that labels may have, ``None`` where the list declares none.
        instances: whether labels number objects rather than classes.
    """
    facts = Facts(case)
    if case.image is None:
        return facts
    try:
        whole = decode(case.image, case.entry.get("series_uid"))
        part = _part(whole, case)
    except UserError as error:
        facts.error("unreadable", error, case.name)
        return facts
    _look_at_image(facts, whole, part)
    if case.label is not None:
        name = str(case.entry["label"])
        try:
            label = decode_label(case.label, whole.grid)
        except UserError as error:
            facts.error("unreadable", error, name)
            return facts
        if facts.spatial_dims == 2 and turned_apart(np.atleast_1d(case.image)[0], case.label):  # type: ignore[arg-type]
            sentence = "is turned by an orientation tag, which its label has not, or has another: look whether they fit"
            facts.findings.append(Finding.warning("orientation-tag", f"{case.name} {sentence}", case.name, name))
        problem, sentence = grid_problem(label.grid, whole.grid, name, f"its image {case.name}") or (None, "")
        if problem is not None:
            facts.error(f"label-{problem}", sentence, case.name, name)
        if problem in (None, "affine"):  # a label that lies elsewhere in space still holds numbers
            if not instances:
                facts.white = white_of(np.unique(label.array), classes)
                label = replace(label, array=with_ones(label.array, () if facts.white is None else (facts.white,)))
            _look_at_label(facts, name, _part(label, case).array, classes, instances)
    return facts


def _part(whole: Decoded, case: ListedCase) -> Decoded:
    """Return the part of an image or label that is the case."""
    region = case.entry.get("region")
    if region is None:
        return whole
    if whole.array.ndim != 3:
        raise UserError(f"{case.name} is a volume, and regions are for pictures: remove its 'region'.")
    return Decoded(cut_region(whole.array, region, case.name), whole.affine)


def _look_at_image(facts: Facts, whole: Decoded, part: Decoded) -> None:
    array, name = part.array, facts.case.name
    facts.kind, facts.spatial_dims = (array.shape[0], part.size, array.dtype.name), array.ndim - 1
    facts.findings += [Finding.warning("reader", warning, name) for warning in whole.warnings]
    facts.whole_hash = whole.hash()
    facts.case_hash = facts.whole_hash if part is whole else part.hash()
    try:
        check_finite(array, name)
    except UserError as error:
        facts.error("non-finite", error, name)
        return
    if not array.size:
        facts.error("empty-image", f"{name} has no pixels ({part.size}): replace it or remove it", name)
    elif array.min() == array.max():
        sentence = f"{name} has the value {array.flat[0]} everywhere: replace it or remove it"
        facts.error("constant-image", sentence, name)


def _look_at_label(facts: Facts, name: str, label: np.ndarray, classes: frozenset[int] | None, instances: bool) -> None:
    try:
        numbers = label_numbers(label, name)
    except UserError as error:
        facts.error("label-channels" if len(label) > 1 else "label-values", error, name)
        return
    values, counts = np.unique(numbers, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if instances:
        facts.instances = sum(value != 0 for value in found)
        facts.pixels, facts.foreground = label.size, label.size - found.get(0, 0)
        return
    facts.values = found
    facts.parts = count_parts(numbers[0]) if numbers.ndim == 3 else None
    ignored = found.get(IGNORE, 0)
    facts.pixels, facts.foreground = label.size - ignored, label.size - ignored - found.get(0, 0)
    if classes is not None:
        try:
            check_known(found, classes, IGNORE, name)
        except UserError as error:
            facts.error("label-values", error, name)
