"""From scores to what is counted: class masks without specks and pinholes, instances, and their boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import softmax
from torch import Tensor

from medmdm.components import buildable
from medmdm.errors import UserError, nearest
from medmdm.metrics.detection import objects
from medmdm.metrics.instances import connected_objects
from medmdm.segment.watershed import cut_at_necks, cut_at_saddles, hover_heights, in_order

METHODS: dict[str, dict[str, float]] = {
    "components": {},
    "watershed": {"min_distance": 5.0, "smooth": 1.0, "depth": 0.75},
    "distance": {"min_distance": 3.0, "smooth": 1.0, "depth": 0.1},
    "hover": {"min_distance": 3.0, "smooth": 1.0, "depth": 0.2},
}
NEEDED = {"distance": "distance", "hover": "hv"}  # the map of objects that a method needs
ACTIVATIONS = ("softmax", "sigmoid")
AUTO = "auto"  # a setting that is left to the labels
Postprocessing = Callable[..., Mapping[str, np.ndarray | None]]
_PIECE = 1 << 22  # pixels that are counted at once


@buildable
@dataclass(frozen=True)
class PostProcess:
    """Turn the scores of an image or a volume into a mask of class numbers and, if asked for, a map of instances.

    In this order: choose the class of each pixel; keep the largest part of each class; remove small objects of each
    class; fill small holes; find instances.
    Objects are connected across faces and corners, holes across faces only.

    Args:
        argmax: take the class of the highest score. ``False`` needs a ``threshold``: the best class that is not
            background wins wherever it reaches that, even where background scores higher.
        threshold: score below which a pixel is background whatever wins. For a single channel of scores (class 1
            against background) it decides alone.
        remove_small_objects: connected parts of a class smaller than this become background. ``"auto"`` leaves it to
            the labels that a segmentation is fitted to, see :func:`medmdm.segment.label_defaults.follow_labels` (in
            evaluation and inference, to what the segmenter was saved with), and is 0 where there are none.
        fill_holes_below: background smaller than this that one class encloses becomes that class; background that
            touches the edge of the image, or several classes, stays.
        instances: ``None``; ``"components"``: connected parts of a class; ``"watershed"``: these cut where they are
            narrow (distance to the background, its maxima as seeds), or ``{"method": "watershed", "min_distance": 5,
            "smooth": 1, "depth": 0.75}`` with the least distance between two seeds, the standard deviation of the
            Gaussian that smooths the distance, and by how much a neck must be narrower (in half widths) than what it
            joins. ``"distance"`` and ``"hover"`` cut by the maps of a segmenter of :class:`medmdm.heads.MultiTaskHead`,
            along the valleys of its map ``distance``, or where those of its map ``hv`` say that an object ends; then
            ``depth`` is how much lower than what it joins, from 0 to 1. ``"auto"`` leaves it to the labels and is
            ``None`` elsewhere.
        background: number of the class that is no object.
        activation: ``"softmax"`` or ``"sigmoid"`` where scores are logits and a threshold means probabilities.
        in_mm: sizes are mm² (mm³ in volumes) and distances mm instead of pixels; calls then need the spacing.
        keep_largest: of the connected parts of each class all but the largest become background, for organs that are in
            one piece. ``"auto"`` leaves it to the labels in the same way: on where at least two labelled volumes have
            each class in one piece.

    Raises:
        UserError: an argument is out of range, unknown, or does not go with the others.

    Example:
        >>> scores = np.zeros((2, 4, 5)); scores[1, 1:3, 1:4] = 1
        >>> int(PostProcess(instances="components")(scores)["instances"].max())
        1
    """

    argmax: bool = True
    threshold: float | None = None
    remove_small_objects: float | str = 0
    fill_holes_below: float = 0
    instances: str | Mapping[str, Any] | None = None
    background: int = 0
    activation: str | None = None
    in_mm: bool = False
    keep_largest: bool | str = False

    def __post_init__(self) -> None:
        if not self.argmax and self.threshold is None:
            raise UserError("PostProcess: argmax is false and no threshold is given: set one of them.")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            hint = nearest(self.activation, ACTIVATIONS)
            raise UserError(f"PostProcess: activation is {self.activation!r}{hint}: use softmax, sigmoid or null.")
        for key in ("remove_small_objects", "fill_holes_below"):
            value = getattr(self, key)
            if isinstance(value, str) and (key, value) == ("remove_small_objects", AUTO):
                continue
            if isinstance(value, str) or not value >= 0:
                raise UserError(f"PostProcess: {key} is {getattr(self, key)!r}: give a size of 0 or more.")
        if not isinstance(self.keep_largest, bool) and self.keep_largest != AUTO:
            raise UserError(f"PostProcess: keep_largest is {self.keep_largest!r}: give true, false or 'auto'.")
        if not 0 <= self.background <= 255:
            raise UserError(f"PostProcess: background is {self.background!r}: give a class number from 0 to 255.")
        object.__setattr__(self, "instances", AUTO if self.instances == AUTO else _instances(self.instances))

    def __call__(
        self,
        scores: Tensor | ArrayLike,
        spacing: Sequence[float] | None = None,
        maps: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray | None]:
        """Process one image or volume.

        Args:
            scores: ``[K, *spatial]``, a channel for each class, or one channel for class 1 against background.
            spacing: mm between pixels along each spatial axis, for ``in_mm``.
            maps: of objects, ``[channels, *spatial]``, by name (:attr:`medmdm.heads.Prediction.maps`).

        Returns:
            ``mask``: ``[*spatial]`` uint8 class numbers. ``instances``: ``[*spatial]`` int32, 1..n in the order of
            their first pixels, each of one class, 0 is background; ``None`` unless asked for.

        Raises:
            UserError: the scores' shape or values do not fit the settings, or a spacing is missing.
        """
        values = np.asarray(scores.detach().cpu().float() if isinstance(scores, Tensor) else scores)
        if values.ndim < 2 or not 1 <= len(values) <= 256:
            raise UserError(f"PostProcess: the scores have the shape {values.shape}, expected [classes, *spatial].")
        self._steps(spacing, values.ndim - 1)
        return self.finished(self.classes(values), spacing, maps)

    @property
    def needed_map(self) -> str | None:
        """Name of the map of objects that instances are found by, None where the mask is enough."""
        return NEEDED.get(self.instances["method"]) if isinstance(self.instances, Mapping) else None

    def check_maps(self, maps: Collection[str]) -> None:
        """Refuse maps among which the needed one is not.

        Raises:
            UserError: it is not.
        """
        if (needed := self.needed_map) is not None and needed not in maps:
            method = self.instances["method"]  # type: ignore[index]
            need = f"instances is {method!r}, which needs the map {needed!r} beside the classes"
            raise UserError(f"PostProcess: {need}: fit a medmdm.heads.MultiTaskHead whose maps name it.")

    def finished(
        self,
        mask: np.ndarray,
        spacing: Sequence[float] | None = None,
        maps: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray | None]:
        """Do what follows the choice of :meth:`classes`; arguments and results are otherwise those of a call."""
        steps = self._steps(spacing, mask.ndim)
        least = 0.0 if isinstance(self.remove_small_objects, str) else self.remove_small_objects
        mask = largest_parts(mask, self.background) if self.keep_largest is True else mask
        mask = _without_small_objects(mask, least / math.prod(steps), self.background)
        mask = _without_holes(mask, self.fill_holes_below / math.prod(steps), self.background)
        if self.instances is None or self.instances == AUTO:
            return {"mask": mask, "instances": None}
        self.check_maps(maps or {})
        return {"mask": mask, "instances": self._split(mask, steps, maps or {})}

    def _steps(self, spacing: Sequence[float] | None, dimensions: int) -> tuple[float, ...]:
        """Return the distance between neighbours along each axis, in the unit that the settings are in."""
        if not self.in_mm:
            return (1.0,) * dimensions
        if spacing is None:
            fault = "in_mm is set, and the image's spacing is not known"
            raise UserError(f"PostProcess: {fault}: give it in the data list.")
        if len(spacing) != dimensions or not all(step > 0 for step in spacing):
            raise UserError(f"PostProcess: the spacing is {list(spacing)}, expected {dimensions} numbers above 0 (mm).")
        return tuple(float(step) for step in spacing)

    def classes(self, values: np.ndarray) -> np.ndarray:
        """Choose the class of each pixel by itself: scores ``[K, *spatial]`` -> uint8 class numbers ``[*spatial]``.

        Raises:
            UserError: as a call.
        """
        probabilities = values
        if self.threshold is not None and self.activation is not None:
            # Of both forms of the sigmoid this one does not overflow.
            is_softmax = self.activation == "softmax"
            probabilities = softmax(values, axis=0) if is_softmax else 0.5 * (1 + np.tanh(values / 2))
        elif self.threshold is not None and values.size and not -1e-3 <= values.min() <= values.max() <= 1 + 1e-3:
            found = f"threshold is {self.threshold} and the scores go from {values.min():.3g} to {values.max():.3g}"
            need = "set activation to softmax or sigmoid, for these are no probabilities"
            raise UserError(f"PostProcess: {found}: {need}.")
        if len(values) == 1:
            if self.threshold is None:
                raise UserError("PostProcess: one channel of scores has no largest: set a threshold.")
            if self.background != 0:
                raise UserError(f"PostProcess: background is {self.background}, expected 0 for one channel of scores.")
            return (probabilities[0] >= self.threshold).astype(np.uint8)
        if self.background >= len(values):
            raise UserError(f"PostProcess: background is {self.background}, but there are {len(values)} classes.")
        if self.argmax:
            best = probabilities.argmax(axis=0)
        else:
            others = [k for k in range(len(values)) if k != self.background]
            best = np.asarray(others)[probabilities[others].argmax(axis=0)]
        if self.threshold is not None:
            score = np.take_along_axis(probabilities, best[None], axis=0)[0]
            best = np.where(score >= self.threshold, best, self.background)
        return best.astype(np.uint8)

    def _split(self, mask: np.ndarray, steps: tuple[float, ...], maps: Mapping[str, np.ndarray]) -> np.ndarray:
        """Number the instances of all classes."""
        settings: dict[str, Any] = dict(self.instances)  # type: ignore[arg-type]
        method = settings.pop("method")
        instances = np.zeros(mask.shape, np.int32)
        for part in _by_class(mask, self.background):
            labels = connected_objects(part)
            if method == "watershed":
                labels = cut_at_necks(labels, steps, **settings)
            elif method in NEEDED:
                labels = cut_at_saddles(labels, self._heights(part, method, maps), steps, **settings)
            instances[part] = labels[part] + instances.max(initial=0)
        return in_order(instances)

    @staticmethod
    def _heights(part: np.ndarray, method: str, maps: Mapping[str, np.ndarray]) -> np.ndarray:
        values = np.asarray(maps[NEEDED[method]])
        wanted = (2 if method == "hover" else 1, *part.shape)
        if values.shape != wanted or (method == "hover" and part.ndim != 2):
            given = f"instances is {method!r}, and the map has the shape {values.shape} for a mask of {part.shape}"
            raise UserError(f"PostProcess: {given}{'; it is for pictures' if method == 'hover' else ''}.")
        return hover_heights(part, values) if method == "hover" else values[0]


def masks_alone(postprocess: Postprocessing) -> Postprocessing:
    """Return a post-processing that looks for no instances, where nobody asks for them; others' own stay."""
    return replace(postprocess, instances=None) if isinstance(postprocess, PostProcess) else postprocess


def boxes(instances: ArrayLike, mask: ArrayLike | None = None) -> pd.DataFrame:
    """Return a table of instances: a row each, by rising label.

    Args:
        instances: ``[H, W]`` or ``[D, H, W]`` whole numbers, 0 is background.
        mask: class numbers of the same shape, which the column ``class`` is read from; without them it is 1.

    Returns:
        Whole numbers: ``label``, ``min_row``, ``min_col``, ``max_row``, ``max_col`` (in volumes ``min_slice`` and
        ``max_slice`` before), ends excluded, ``area`` in pixels, ``class``.

    Raises:
        UserError: the shapes differ, or are of other dimensions.
    """
    instances = np.asarray(instances)
    if instances.ndim not in (2, 3):
        raise UserError(f"boxes: the instances have the shape {instances.shape}, expected [H, W] or [D, H, W].")
    classes = (instances > 0).astype(np.uint8) if mask is None else np.asarray(mask)
    if classes.shape != instances.shape:
        raise UserError(f"boxes: the mask has the shape {classes.shape}, but the instances {instances.shape}.")
    axes = ("slice", "row", "col")[-instances.ndim :]
    columns = ["label", *(f"min_{axis}" for axis in axes), *(f"max_{axis}" for axis in axes), "area", "class"]
    rows = [
        [label, *(p.start for p in place), *(p.stop for p in place), own.sum(), classes[place].flat[own.argmax()]]
        for label, place, own in objects(instances)
    ]
    return pd.DataFrame(np.array(rows, dtype=np.int64).reshape(len(rows), len(columns)), columns=columns)


def _instances(instances: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if instances is None:
        return None
    numbers: dict[str, Any] = {"method": instances} if isinstance(instances, str) else dict(instances)
    method = numbers.pop("method", "watershed")
    if method not in METHODS:
        hint = nearest(str(method), METHODS)
        raise UserError(f"PostProcess: instances is {method!r}{hint}: use {', '.join(METHODS)} or null.")
    defaults = METHODS[method]
    for key, value in numbers.items():
        if key not in defaults:
            hint = nearest(key, defaults)
            raise UserError(f"PostProcess: instances has the key {key!r}{hint}, which {method} does not take.")
        if not value >= 0:
            raise UserError(f"PostProcess: instances: {key} is {value!r}: give a number of 0 or more.")
    return {"method": method, **defaults, **numbers}


def _by_class(mask: np.ndarray, background: int) -> Iterator[np.ndarray]:
    return (mask == k for k in np.unique(mask) if k != background)


def _sizes(labels: np.ndarray) -> np.ndarray:
    """Return how many pixels each number has, as ``np.bincount`` does, which copies a whole image as 64-bit numbers."""
    sizes = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    flat = labels.ravel()
    for start in range(0, len(flat), _PIECE):
        sizes += np.bincount(flat[start : start + _PIECE], minlength=len(sizes))
    return sizes


def largest_parts(mask: np.ndarray, background: int = 0) -> np.ndarray:
    """Return a mask of class numbers with the largest connected part of each class, the first of equally large ones.

    :class:`monai.transforms.KeepLargestConnectedComponent` leaves open which of equally large ones that is.
    """
    result = mask.copy()
    for part in _by_class(mask, background):
        labels = connected_objects(part)
        sizes = _sizes(labels)
        sizes[0] = 0
        result[part & (labels != sizes.argmax())] = background
    return result


def _without_small_objects(mask: np.ndarray, least: float, background: int) -> np.ndarray:
    if least <= 0:
        return mask
    result = mask.copy()
    for part in _by_class(mask, background):
        labels = connected_objects(part)
        small = _sizes(labels) < least
        result[small[labels] & part] = background
    return result


def _without_holes(mask: np.ndarray, least: float, background: int) -> np.ndarray:
    """Fill each small part of the background that touches no edge and one class only with that class."""
    if least <= 0 or not mask.size:
        return mask
    labels = connected_objects(mask == background, corners=False)
    sizes = _sizes(labels)
    fillable = sizes < least
    fillable[0] = False
    for axis, size in enumerate(mask.shape):
        if size > 1:  # in an image kept as a volume of one slice everything touches the edge of that axis
            fillable[np.take(labels, [0, -1], axis=axis)] = False
    # The lowest and highest class among a hole's neighbours: they differ where several classes touch it.
    lowest, highest = np.full(len(sizes), 256), np.full(len(sizes), -1)
    for axis in range(mask.ndim):
        for a, b in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            here, there = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
            here[axis], there[axis] = a, b
            hole, neighbour = labels[tuple(here)], mask[tuple(there)]
            edge = (hole > 0) & (neighbour != background)
            np.minimum.at(lowest, hole[edge], neighbour[edge])
            np.maximum.at(highest, hole[edge], neighbour[edge])
    fillable &= lowest == highest
    filled = fillable[labels]
    result = mask.astype(np.uint8)
    result[filled] = lowest[labels[filled]]
    return result
