"""Scores without a test section: each labelled case is segmented by a model that was fitted to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer

from medmdm.data.reading import LoadedCase
from medmdm.data.splits import k_folds, patient_numbers
from medmdm.errors import UserError, counted
from medmdm.heads.predictor import Choice, Prediction, Predictor
from medmdm.heads.task import Reading
from medmdm.runs.record import Provenance
from medmdm.segment.postprocessing import Postprocessing

MOST_FOLDS = 5


def divide(support: Sequence[LoadedCase], seed: int = 0) -> list[list[LoadedCase]]:
    """Divide labelled cases into up to five parts that share no patient; with fewer, each patient is left out in turn.

    Regions of one image stay together too, see :func:`medmdm.data.splits.patient_groups`.

    Raises:
        UserError: all cases are of one patient.
    """
    by_name = {case.name: case for case in support}
    numbers = patient_numbers([case.entry for case in support])
    # Names, not paths: the same folds wherever the images lie.
    entries = [
        {**case.entry, "image": case.name, "patient_id": str(number)}
        for case, number in zip(support, numbers, strict=True)
    ]
    patients = len(set(numbers))
    if patients < 2:
        raise UserError(
            "There is no test section, and the labelled cases are of one patient, so none can be left out in turn: "
            "label one of another patient, or name a test section in the data list."
        )
    return [[by_name[str(e["image"])] for e in part] for part in k_folds(entries, min(MOST_FOLDS, patients), seed=seed)]


def cross_validated(
    support: Sequence[LoadedCase], folds: int, encoder: Provenance, unlabelled: Provenance
) -> Provenance:
    """Return what the report says of scores by cross-validation.

    Args:
        support: the labelled cases.
        folds: into how many parts they were divided.
        encoder: what the encoder has seen of them.
        unlabelled: what is known of them among the unlabelled images that each fit looked at.
    """
    named = all("patient_id" in case.entry for case in support)
    sharing = "share no patient" if named else "may share patients, for the list names none"
    sentence = (
        f"There is no test section: each of {counted(len(support), 'labelled case')} was segmented by a model fitted "
        f"to the others, in {folds} parts that {sharing}. The segmenter that is kept was fitted to all of them."
    )
    if encoder.labels_seen:
        sentence = f"{encoder.sentence} {sentence}"
    for name, seen in (("encoder", encoder), ("unlabelled images that every fit looks at", unlabelled)):
        if seen.kind != "inductive" and not seen.labels_seen:
            sentence += f" The {name}: {seen.sentence[0].lower()}{seen.sentence[1:]}"
    overlapping = tuple(sorted({*encoder.overlapping, *unlabelled.overlapping}))
    return Provenance("cross-validated", overlapping, sentence, encoder.labels_seen)


@dataclass(frozen=True)
class FoldPredictor:
    """Segment each case by the model that has not seen it; see :class:`medmdm.heads.Predictor`.

    Args:
        predictors: by case.
        postprocess: by case; what it leaves to the labels follows those of the other cases.
    """

    predictors: Mapping[str, Predictor]
    postprocess: Mapping[str, Postprocessing]

    def case(self, case: LoadedCase) -> Prediction:
        """Return what the model that was fitted without the case says of it."""
        return self.predictors[case.name].case(case)

    def choice(self, case: LoadedCase, choose: Callable[[np.ndarray], np.ndarray]) -> Choice | None:
        """Choose by the model that was fitted without the case; see :meth:`medmdm.heads.Predictor.choice`."""
        return self.predictors[case.name].choice(case, choose)

    @property
    def reading(self) -> Reading:
        """How all of them read images."""
        return self._any.reading

    @property
    def device(self) -> torch.device | str:
        """Where all of them compute."""
        return self._any.device

    @property
    def inferer(self) -> Inferer | None:
        """By which all of them read images."""
        return self._any.inferer

    @property
    def _any(self) -> Predictor:
        return next(iter(self.predictors.values()))
