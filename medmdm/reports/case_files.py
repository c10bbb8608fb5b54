"""Reading the files of one evaluated case, and saying what is wrong with them before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmdm.data.files.decoding import Decoded, decode, decode_label
from medmdm.data.lists import label_names
from medmdm.data.meaning import white_of, with_ones
from medmdm.data.transforms.spatial import cut_region
from medmdm.data.validity import ImageGrid, check_finite, check_known, check_same_grid, label_numbers
from medmdm.errors import UserError, counted
from medmdm.runs.record import EvaluatedCase, Evaluation


@dataclass(frozen=True)
class CaseArrays:
    """What the files of a case hold, all on the image's grid; of a case that is a region, the region alone.

    Args:
        truth: numbers of classes, ``[*spatial]``, whole numbers of any type; may hold the ignored value. Where labels
            number objects: 1 where there is an object, 0 elsewhere.
        prediction: numbers of classes, ``[*spatial]``.
        truth_instances: numbers of objects, ``[*spatial]``, ``None`` where the truth holds classes.
        predicted_instances: the same for the prediction, ``None`` where none were written.
        image: ``[C, *spatial]`` as read from the file, in the file's type, not scaled: its picture is made of it.
            ``None`` where the file is gone, so that only the picture is missing.
        maps: of real numbers, float32 ``[*spatial]``: those of :data:`medmdm.runs.record.MAPS` that were written.
        object_scores: of the predicted objects, see :class:`medmdm.runs.record.EvaluatedCase`.
        window: values of the image that are drawn black and white, a pair for all channels or one for each; ``None``:
            0 and 255 of 8 bits, else percentiles of what is drawn.
        affine: of a volume, array index → mm in RAS, as its label says, ``[4, 4]``; ``None`` for pictures.
    """

    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]
    truth_instances: NDArray[np.integer] | None = None
    predicted_instances: NDArray[np.integer] | None = None
    image: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    affine: np.ndarray | None = None
    window: Sequence[tuple[float, float]] | None = None
    object_scores: Sequence[float] | None = None


def read_case(case: EvaluatedCase, evaluation: Evaluation) -> CaseArrays:
    """Decode a case.

    Args:
        case: of the evaluation.
        evaluation: says which numbers labels may have.

    Raises:
        UserError: one sentence that names the case: a file is missing or unreadable, sizes or affines differ, or a
            value is no class.
    """
    if case.label is None:
        raise UserError(f"{case.name} has no label in the data list: it cannot be scored")
    if not case.label.exists():
        raise UserError(f"{case.name} has no truth, for its label {case.label.name} is missing")
    if case.prediction is None:
        raise UserError(f"{case.name} has a truth, but no prediction was written for it: evaluate again")
    if not case.prediction.exists():
        raise UserError(f"{case.name} has a truth, but its predicted mask {case.prediction.name} is missing")
    paths = case.image if isinstance(case.image, list) else [case.image]
    there = all(path.exists() for path in paths)
    image = _named(case, "image", decode, case.image, case.series_uid) if there else None
    predicted = _named(case, "predicted mask", decode_label, case.prediction, None if image is None else image.grid)
    predicted = _with_ones(predicted, evaluation)
    whole = image if image is not None else predicted  # outlines are drawn into a mask of this size
    label = _named(case, "label", decode_label, case.label, whole.grid)
    if not evaluation.instance_labels:
        label = _with_ones(label, evaluation)
    truth = _part(case, label, "label", None)
    size = truth.array.shape[1:]
    prediction = _part(case, predicted, "predicted mask", size)
    image = None if image is None else _part(case, image, "image", size)
    for what, one in (("predicted mask", prediction), ("image", image)):
        if one is not None:
            check_same_grid(one.grid, truth.grid, f"{case.name}: the {what}", "the label", "evaluate again")
    classes = _numbers(case, "label", truth)
    predicted_classes = _numbers(case, "predicted mask", prediction)
    _check_classes(case, "predicted mask", predicted_classes, evaluation, 0)
    objects = classes if evaluation.instance_labels else None
    if objects is not None:
        classes = (objects > 0).astype(np.uint8)
    else:
        _check_classes(case, "label", classes, evaluation, evaluation.ignore)
    return CaseArrays(
        truth=classes,
        prediction=predicted_classes,
        truth_instances=objects,
        predicted_instances=_instances(case, truth.grid, size),
        image=None if image is None else image.array,
        maps={name: _map(case, name, path, truth.grid, size) for name, path in case.maps.items() if path.exists()},
        affine=truth.affine,
        window=case.window,
        object_scores=case.object_scores,
    )


def _with_ones(mask: Decoded, evaluation: Evaluation) -> Decoded:
    """Return a mask of 0 and 255, as programs draw them, with 1 in place of the white."""
    classes = (0, 1) if evaluation.instance_labels else label_names(evaluation.data_list)
    white = white_of(np.unique(mask.array), classes)
    return mask if white is None else replace(mask, array=with_ones(mask.array, (white,)))


def _named(case, what, read, *arguments) -> Decoded:  # type: ignore[no-untyped-def]
    """Read a file; whatever its reader complains of is said of this case."""
    try:
        return read(*arguments)
    except UserError as error:
        raise UserError(f"{case.name}: the {what} cannot be used, {error}") from error


def _part(case: EvaluatedCase, whole: Decoded, what: str, size: tuple[int, ...] | None) -> Decoded:
    """Cut the case out of what is given for the whole image, and check its size.

    ``size`` is the label's; ``None`` for the label itself. Masks may be written for the part alone.
    """
    array = whole.array
    if what != "image" and array.shape[0] != 1:
        raise UserError(
            f"{case.name}: the {what} has {counted(array.shape[0], 'channel')}, but masks have one number per pixel"
        )
    if case.region is not None and (size is None or array.shape[1:] != size):
        array = cut_region(array, case.region, f"{case.name}: the {what}")
    if size is not None and array.shape[1:] != size:
        found = f"the {what} is {Decoded(array).size} and the label {'x'.join(map(str, size))}"
        raise UserError(f"{case.name}: {found}: they must have one size")
    return Decoded(array, whole.affine)


def _numbers(case: EvaluatedCase, what: str, mask: Decoded) -> NDArray[np.integer]:
    return label_numbers(mask.array, f"{case.name}: the {what}")[0]


def _check_classes(
    case: EvaluatedCase, what: str, mask: NDArray[np.integer], evaluation: Evaluation, ignore: int | None
) -> None:
    if not mask.size:
        raise UserError(f"{case.name}: the {what} has no pixels")
    if mask.max() >= evaluation.num_classes or len(evaluation.classes) < evaluation.num_classes:
        check_known(mask, evaluation.classes, ignore, f"{case.name}: the {what}", evaluation.classes)


def _instances(case: EvaluatedCase, grid: ImageGrid, size: tuple[int, ...]) -> NDArray[np.integer] | None:
    if case.instances is None:
        return None
    what = "map of objects"
    if not case.instances.exists():
        raise UserError(f"{case.name}: its {what} {case.instances.name} is missing")
    return _numbers(case, what, _part(case, _named(case, what, decode_label, case.instances, grid), what, size))


def _map(case: EvaluatedCase, what: str, path: Path, grid: ImageGrid, size: tuple[int, ...]) -> np.ndarray:
    values = _part(case, _named(case, f"{what} map", decode_label, path, grid), f"{what} map", size).array[0]
    check_finite(values, f"{case.name}: the {what} map")
    return values.astype(np.float32)
