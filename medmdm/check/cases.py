"""Looking into one case: does everything decode, fit together, and mean something?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.check.reading import Decoded, decode, decode_label
from medmdm.check.report import Finding
from medmdm.data.lists import image_name
from medmdm.data.transforms.basic import cut_region
from medmdm.errors import UserError
from medmdm.labels import IGNORE

__all__ = ["Case", "Facts", "inspect"]

_TOLERANCE_MM = 0.1  # headers store some numbers as text or in 32 bits


@dataclass(frozen=True)
class Case:
    """An entry of a data list and where its files are.

    Args:
        section: it is listed in.
        entry: of the list.
        image: the file, or one a sequence; ``None`` where one is missing.
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
        findings: what is wrong with it.
        size: of the image, ``"522x775"``.
        spatial_dims: 2 for pictures, 3 for volumes.
        channels: of the image.
        dtype: of the image.
        whole_hash: SHA-256 of the decoded image.
        case_hash: the same of the part that is the case.
        values: pixels by label value, for class labels.
        instances: objects in an instance label.
        pixels: labelled pixels, without ignored ones.
        foreground: those that are not background.
    """

    findings: list[Finding] = field(default_factory=list)
    size: str | None = None
    spatial_dims: int | None = None
    channels: int | None = None
    dtype: str | None = None
    whole_hash: str | None = None
    case_hash: str | None = None
    values: dict[int, int] | None = None
    instances: int | None = None
    pixels: int = 0
    foreground: int = 0

    @property
    def kind(self) -> tuple[int, str, str] | None:
        """Channels, size and type of the image."""
        if self.channels is None or self.size is None or self.dtype is None:
            return None
        return self.channels, self.size, self.dtype


def inspect(case: Case, classes: frozenset[int] | None, instances: bool) -> Facts:
    """Decode the files of a case and check what they hold.

    Args:
        case: files that are ``None`` are passed over.
        classes: numbers that labels may have, ``None`` where the list declares none.
        instances: whether labels number objects rather than classes.
    """
    facts = Facts()
    if case.image is None:
        return facts
    image = _attempt(facts, case.name, lambda: _cut(decode(case.image, case.entry.get("series_uid")), case))  # type: ignore[arg-type]
    if image is None:
        return facts
    whole, part = image
    _look_at_image(facts, case, whole, part)
    if case.label is not None:
        name = str(case.entry["label"])
        label = _attempt(facts, name, lambda: decode_label(case.label, whole))  # type: ignore[arg-type]
        if label is not None and _fits(facts, case, whole, label):
            _look_at_label(facts, case, _cut(label, case)[1].array, classes, instances)
    return facts


def _attempt(facts: Facts, name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        facts.findings.append(Finding("error", "unreadable", str(error), (name,)))
        return None


def _cut(whole: Decoded, case: Case) -> tuple[Decoded, Decoded]:
    """Return an image and its part that is the case."""
    region = case.entry.get("region")
    if region is None:
        return whole, whole
    if whole.array.ndim != 3:
        raise UserError(f"{case.name} is a volume, and regions are for pictures: remove its 'region'")
    return whole, Decoded(cut_region(whole.array, region, case.name), whole.affine)


def _look_at_image(facts: Facts, case: Case, whole: Decoded, part: Decoded) -> None:
    array = part.array
    facts.size, facts.channels, facts.dtype = part.size, array.shape[0], array.dtype.name
    facts.spatial_dims = array.ndim - 1
    facts.findings += [Finding("warning", "reader", warning, (case.name,)) for warning in whole.warnings]
    facts.whole_hash = whole.hash()
    facts.case_hash = facts.whole_hash if part is whole else part.hash()
    if not array.size:
        _error(facts, "empty-image", f"{case.name} has no pixels ({part.size}): replace it or remove it", case.name)
    elif not _finite(array):
        share = 1 - np.isfinite(array).mean()
        _error(
            facts,
            "non-finite",
            f"{case.name} holds values that are not finite ({share:.2%} NaN or infinite): replace it or remove it",
            case.name,
        )
    elif array.min() == array.max():
        _error(
            facts,
            "constant-image",
            f"{case.name} has the value {array.flat[0]} everywhere: replace it or remove it",
            case.name,
        )


def _fits(facts: Facts, case: Case, image: Decoded, label: Decoded) -> bool:
    name, files = str(case.entry["label"]), (case.name, str(case.entry["label"]))
    if label.array.shape[0] != 1:
        _error(
            facts,
            "label-channels",
            f"{name} has {label.array.shape[0]} channels, but a label has one number a pixel: convert it "
            "(python -m medmdm prepare folder does)",
            *files,
        )
        return False
    if (image.affine is None) != (label.affine is None):
        _error(facts, "label-kind", f"of {case.name} and its label {name}, one is a volume and one a picture", *files)
        return False
    if label.array.shape != (1, *image.array.shape[1:]):
        turned = sorted(label.array.shape[1:]) == sorted(image.array.shape[1:])
        _error(
            facts,
            "label-size",
            f"{name} is {label.size} but its image {case.name} is {image.size}: "
            + ("its axes are swapped, turn it" if turned else "a label must have the size of its image"),
            *files,
        )
        return False
    if image.affine is not None and label.affine is not None:
        distance = _corner_distance(image.affine, label.affine, image.array.shape[1:])
        if distance > _TOLERANCE_MM:
            _error(
                facts,
                "label-affine",
                f"{name} lies up to {distance:.3g} mm beside its image {case.name}, for their affines differ: resample "
                "the label onto the image",
                *files,
            )
    return True


def _corner_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), -1).reshape(-1, len(shape))
    corners = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    return float(np.linalg.norm((corners @ (a - b).T)[:, : len(shape)], axis=1).max())


def _look_at_label(
    facts: Facts, case: Case, label: np.ndarray, classes: frozenset[int] | None, instances: bool
) -> None:
    name = str(case.entry["label"])
    if not _finite(label):
        _error(facts, "label-values", f"{name} holds values that are not finite: labels are whole numbers", name)
        return
    values, counts = np.unique(label, return_counts=True)
    broken = values[values != np.round(values)]
    if len(broken):
        _error(
            facts,
            "label-values",
            f"{name} holds values that are not whole numbers (such as {broken[0]:g}): it may have been "
            "resampled with interpolation; make it again with nearest neighbours",
            name,
        )
        return
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    if min(found) < 0:
        _error(facts, "label-values", f"{name} holds negative values ({min(found)}): labels start at 0", name)
        return
    if instances:
        facts.instances = sum(value != 0 for value in found)
        facts.pixels, facts.foreground = label.size, label.size - found.get(0, 0)
        return
    facts.values = found
    ignored = 0 if classes and IGNORE in classes else found.get(IGNORE, 0)
    facts.pixels, facts.foreground = label.size - ignored, label.size - ignored - found.get(0, 0)
    unknown = sorted(set(found) - classes - {IGNORE}) if classes is not None else []
    if unknown:
        shown = ", ".join(str(value) for value in unknown[:8]) + (", …" if len(unknown) > 8 else "")
        _error(
            facts,
            "label-values",
            f"{name} holds {shown}, but the list declares the classes {', '.join(map(str, sorted(classes or ())))}: "
            'correct the label or \'labels\' of the list ("label_type": "instances" if these number objects)',
            name,
        )


def _finite(array: np.ndarray) -> bool:
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())


def _error(facts: Facts, check: str, message: str, *files: str) -> None:
    facts.findings.append(Finding("error", check, message, files))
