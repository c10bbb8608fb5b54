"""Scoring every case of an evaluation from its files, and setting aside the ones that are wrong."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medmdm.data.files.formats import is_volume
from medmdm.data.files.volumes import volume_geometry
from medmdm.data.validity import at_right_angles, voxel_sides
from medmdm.errors import UserError, counted, warn_once
from medmdm.metrics.baselines import all_foreground, all_foreground_means
from medmdm.metrics.detection import Matches, average_precision, match_boxes, object_boxes
from medmdm.metrics.instances import connected_objects, instance_scores
from medmdm.metrics.pixels import class_means, pixel_scores
from medmdm.progress import followed
from medmdm.reports.case_files import CaseArrays, read_case
from medmdm.reports.pictures import CasePicture, draw_case, picture_side
from medmdm.reports.rendering import COUNTS, METRICS, OBJECT_COUNTS, PER_CLASS
from medmdm.runs.mean_mask import read_mean_mask
from medmdm.runs.record import EvaluatedCase, Evaluation

_MICROSCOPY_MM = 0.02  # pixels smaller than this are given in micrometres
_TOLERANCE_MM = 1.0
_TOLERANCE_PIXELS = 2


@dataclass(frozen=True)
class Ruler:
    """The unit of all distances of a report."""

    unit: str  # "mm", "µm" or "pixels"
    factor: float  # of this unit in a millimetre; 0 where distances are in pixels
    tolerance: float  # by which outlines may differ and still agree, in this unit


@dataclass
class ScoredCase:
    """A case with its scores."""

    name: str
    number: int  # its place in the evaluation, from 0
    patient: str | None  # where it is shown: a pseudonym
    columns: Mapping[str, str]  # of the data list
    seen: bool  # whether the encoder saw the image or the patient, as far as the provenance says
    scores: dict[str, float]  # per_case.csv's numbers by column
    picture: CasePicture | None = None  # for the page; None where the files are gone
    files: tuple[str, str] = ("", "")  # names of the predicted mask and of the label
    matches: Matches | None = None  # of boxes, where it is known how sure the objects are

    @classmethod
    def of(cls, case: EvaluatedCase, number: int, evaluation: Evaluation, scores: dict[str, float]) -> ScoredCase:
        """Return a case of an evaluation with its scores, names and patient as in the evaluation."""
        seen = case.name in evaluation.provenance.overlapping
        return cls(case.name, number, case.patient, case.columns, seen, scores)


@dataclass(frozen=True)
class Excluded:
    """A case that could not be scored, and why, in one sentence."""

    name: str
    number: int
    reason: str


@dataclass
class Scores:
    """The outcome for all cases.

    Args:
        cases: those that were scored, in the order of the evaluation.
        excluded: the others.
        ruler: of the distances.
        notes: sentences that a reader of the numbers should know.
        source: ``"masks"``, or ``"per_case.csv"`` where they were read from there.
    """

    cases: list[ScoredCase]
    excluded: list[Excluded]
    ruler: Ruler
    notes: list[str] = field(default_factory=list)
    source: str = "masks"

    @property
    def means(self) -> dict[str, float]:
        """Mean ``dice`` and ``iou`` over the cases that have one (``case_mean`` of ``summary.json``), empty if none."""
        values = {key: [case.scores[key] for case in self.cases] for key in ("dice", "iou")}
        defined = {key: [value for value in column if math.isfinite(value)] for key, column in values.items()}
        return {key: float(np.mean(column)) for key, column in defined.items() if column}


def choose_ruler(evaluation: Evaluation) -> Ruler:
    """Choose the unit of distances: millimetres or micrometres if all cases say how large a pixel is, else pixels.

    Outlines agree within 1 mm; in micrometres and pixels within two pixels.
    """
    sizes = [spacing for case in evaluation.cases if (spacing := _spacing(case)) is not None]
    if len(sizes) < len(evaluation.cases):
        return Ruler("pixels", 0.0, float(_TOLERANCE_PIXELS))
    pixel = statistics.median(min(spacing) for spacing in sizes)
    if pixel >= _MICROSCOPY_MM:
        return Ruler("mm", 1.0, _TOLERANCE_MM)
    return Ruler("µm", 1000.0, float(f"{_TOLERANCE_PIXELS * pixel * 1000:.3g}"))


def score_cases(
    evaluation: Evaluation, surface: bool = True, arrays: Callable[[EvaluatedCase], CaseArrays] | None = None
) -> Scores:
    """Score and draw every case.

    Args:
        evaluation: the record.
        surface: also distances between outlines, which take most of the time.
        arrays: gives what a case's files hold, for those who have it in memory; a ``UserError`` that it raises sets
            the case aside. ``None``: the files are read.

    Returns:
        The scores; names of patients are as in the evaluation.
    """
    found = Scores([], [], choose_ruler(evaluation))
    side, mean_mask = picture_side(len(evaluation.cases)), read_mean_mask(evaluation.folder)
    for number, case in enumerate(followed(evaluation.cases, "scoring cases")):
        try:
            content = read_case(case, evaluation) if arrays is None else arrays(case)
            scores, matches = _score(case, content, evaluation, found.ruler, surface)
            scores |= _baselines(scores, content.truth, evaluation, mean_mask)
        except UserError as error:
            found.excluded.append(Excluded(case.name, number, str(error)))
            continue
        files = (case.prediction.name if case.prediction else "", case.label.name if case.label else "")
        picture = draw_case(content, evaluation.num_classes, side)
        scored = ScoredCase.of(case, number, evaluation, scores)
        found.cases.append(replace(scored, picture=picture, files=files, matches=matches))
    without, listed = sum(case.instances is None for case in evaluation.cases), len(evaluation.cases)
    if evaluation.instance_labels and without:
        which = f"{without} of {counted(listed, 'case')}" if without < listed or listed == 1 else f"all {listed} cases"
        instead = "the connected parts of the predicted mask count as objects, so that objects that touch count as one"
        found.notes.append(f"No map of objects was written for {which}: there {instead}.")
    return found


def _spacing(case: EvaluatedCase) -> tuple[float, ...] | None:
    for path in (case.label, case.prediction):  # volumes say it themselves
        if path is not None and path.exists() and is_volume(path):
            with contextlib.suppress(UserError):
                affine = volume_geometry(path)[1]
                if at_right_angles(affine):
                    return case.spacing or voxel_sides(affine)
                what = "are not at right angles (a tilted gantry?), so that distances are given in voxels, not in mm"
                warn_once(f"{path}: its axes {what}")
                return None
            break
    return case.spacing


def _score(
    case: EvaluatedCase, arrays: CaseArrays, evaluation: Evaluation, ruler: Ruler, surface: bool
) -> tuple[dict[str, float], Matches | None]:
    """Return the numbers of a case by column, and the matches of its boxes."""
    matches: Matches | None = None
    spacing: Sequence[float] | None = None
    if ruler.factor:  # of volumes by the order of the array's axes
        spacing = case.spacing if arrays.affine is None else voxel_sides(arrays.affine)
    by_class = pixel_scores(
        arrays.prediction,
        arrays.truth,
        evaluation.num_classes,
        spacing=None if spacing is None else [size * ruler.factor for size in spacing],
        ignore=evaluation.ignore if not evaluation.instance_labels else None,
        surface=surface,
        tolerance=ruler.tolerance,
    )
    by_class = {number: row for number, row in by_class.items() if number in evaluation.classes}
    scores = class_means(by_class, PER_CLASS)
    for number, row in by_class.items():
        keys = (*((key for key in PER_CLASS if key in row) if len(evaluation.classes) > 2 else ()), *COUNTS)
        scores |= {f"{key}_{number}": row[key] for key in keys}
    if arrays.truth_instances is not None:
        objects = arrays.predicted_instances
        if objects is None:
            objects = connected_objects(arrays.prediction)
        found = instance_scores(objects, arrays.truth_instances, hausdorff=surface)
        scores |= {key: found[key] for key in METRICS if METRICS[key].group == "objects" and key in found}
        scores |= {column: found[key] for key, column in OBJECT_COUNTS.items()}
        if arrays.object_scores is not None and len(arrays.object_scores) == found["n_pred"]:
            true_boxes = object_boxes(arrays.truth_instances)
            matches = match_boxes(object_boxes(objects), arrays.object_scores, true_boxes)
            scores |= average_precision([matches])
    scores |= {name: float(values.mean(dtype=np.float64)) for name, values in arrays.maps.items()}
    return scores, matches


def _baselines(
    scores: Mapping[str, float],
    truth: NDArray[np.integer],
    evaluation: Evaluation,
    mean_mask: NDArray[np.uint8] | None,
) -> dict[str, float]:
    """Return the columns of the masks that cost nothing."""
    numbers = [number for number in evaluation.classes if number]
    counts = {k: {name: scores[f"{name}_{k}"] for name in COUNTS} for k in numbers}
    found = {"all_foreground": (all_foreground(counts), all_foreground_means(counts))}
    if mean_mask is not None and mean_mask.shape == truth.shape:
        ignore = None if evaluation.instance_labels else evaluation.ignore
        rows = pixel_scores(mean_mask, truth, evaluation.num_classes, ignore=ignore, surface=False)
        rows = {number: rows[number] for number in numbers}
        found["mean_mask"] = rows, class_means(rows, ("dice", "iou"))
    several = len(numbers) > 1
    columns = {f"{name}_{key}": value for name, (_, means) in found.items() for key, value in means.items()}
    by_class = [
        (f"{name}_{key}_{k}", rows[k][key])
        for name, (rows, _) in found.items()
        for k in rows
        for key in ("dice", "iou")
    ]
    return columns | (dict(by_class) if several else {})
