"""How good the features are while pre-training goes on, so that one sees when to stop."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ignite.engine import Engine

from medmdm.artifacts.backbone import make_extractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.data.selection import Selection
from medmdm.data.splits import patient_numbers
from medmdm.errors import UserError, counted
from medmdm.files import is_main_process
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.pixel_sums import PixelSums
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading, Task
from medmdm.metrics.pixels import mean_scores
from medmdm.pretrain.log import Periodic
from medmdm.runs.record import find_provenance

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Probe(Periodic):
    """Every so many steps, fit a closed-form head on features of the averaged weights and score it on held-out images.

    Mean Dice and IoU go to ``engine.state.heldout`` for the log, as ``probe_dice`` and ``probe_iou``. The head is
    fitted to training cases of a labelled list. It is scored on the list's validation cases; without any, patients
    (cases where the list names none) are left out in turn. Test cases are never read: whoever chooses the step by them
    has nothing left to report on. The training does not notice: the weights are the same bits with and without.

    Args:
        plan: of the run, which says how images are read.
        dataset_dir: folder of the labelled images.
        data_list: their list, see :func:`medmdm.data.select_cases`; None for no probe at all.
        every: steps between two probes; there is also one before the first step and one after the last.
        shots: how many training cases, a seeded draw; None for all.
        head: default ridge regression.
        blocks: as the next three, see :func:`medmdm.backbones.make_extractor`.
        timesteps: t at which features are read.
        masking: of the images that are read.
        normalize: of the features.
        seed: of the masks and of the draw.
        slice_cache: folder of decoded volumes.

    Raises:
        UserError: before the first step: an image or label cannot be read, less than two patients (or cases) are
            labelled and there is no validation, or the network has no features to read.
    """

    plan: Mapping[str, Any]
    dataset_dir: str | os.PathLike[str]
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None
    every: int = 1000
    shots: int | None = 16
    head: ClosedFormHead = None  # type: ignore[assignment]
    blocks: str | Sequence[int] = "paper"
    timesteps: Sequence[int] | None = None
    masking: str = "seeded"
    normalize: str = "rms"
    seed: int = 0
    slice_cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        self.names = [] if self.data_list is None else ["probe_dice", "probe_iou"]
        if self.data_list is None:
            return
        if self.every < 1:
            raise UserError(f"The probe's interval must be at least 1 step, got {self.every}.")
        self.head = self.head or ClosedFormHead("ridge")
        self.cases = select_cases(self.dataset_dir, self.data_list, ("training", "validation"))
        if self.shots is not None:
            self.cases = self.cases.subset(min(self.shots, len(self.cases.training)), "seeded", self.seed)
        reader = CaseReader(self.cases, self.plan, self.slice_cache)
        self.folds = _folds(self.cases, list(reader.read_all(self.cases.training)), self.head.most_folds)
        self.validation = list(reader.read_all(self.cases.validation))
        if len(self.folds) < 2 and not self.validation:
            need = "two or more with a labelled pixel, or validation cases in its list"
            what = f"the probe leaves labelled patients (or cases) out in turn, so it needs {need}"
            raise UserError(f"{self.cases.dataset_dir}: {what}")

    def attach(self, engine: Engine) -> None:
        """Register the handler on a trainer, before the handler that writes the log."""
        if self.names:
            super().attach(engine)

    def first(self, engine: Engine) -> None:
        """Probe the untrained network, unless the run goes on from a checkpoint."""
        count = sum(len(fold) for fold in self.folds)
        held_out = (
            counted(len(self.validation), "validation case") if self.validation else "those that are left out in turn"
        )
        labelled = counted(count, "labelled training case")
        logger.info("probe: %s head on %s, scored on %s", self.head.method, labelled, held_out)
        if (self.plan.get("ledger") or {}).get("labelled"):
            scored = self.validation or [case for fold in self.folds for case in fold]
            logger.warning("probe: %s", find_provenance(scored, self.plan["ledger"]).sentence)
        self._extractor(engine)  # raises now what it would raise later
        super().first(engine)

    def __call__(self, engine: Engine) -> None:
        """Fit, predict, score."""
        if not is_main_process():
            return
        extractor = self._extractor(engine)
        reading = Reading(tuple(self.plan["crop_size"]))
        examples = [example for fold in self.folds for case in fold for example in case.examples]
        known = {"classes": self.cases.classes, "seed": self.seed, "device": engine.state.device}
        task = Task(examples, self.cases.num_classes, reading, **known)
        sums = [
            PixelSums.total(self.head.sums(e, task, extractor) for case in fold for e in case.examples)
            for fold in self.folds
        ]
        left_out = [(sums[:n] + sums[n + 1 :], fold) for n, fold in enumerate(self.folds)]
        rounds = [(sums, self.validation)] if self.validation else left_out
        found = []
        for parts, held_out in rounds:
            model = self.head.fit_sums(parts, task, extractor).model
            predictor = Predictor(model, reading, device=engine.state.device)
            for case in held_out:
                mask = predictor.case(case).probabilities.argmax(0)
                assert case.truth is not None
                found.append(mean_scores(mask, case.truth, self.cases.num_classes, self.cases.ignore))
        scores = {f"probe_{name}": float(np.nanmean([one[name] for one in found])) for name in ("dice", "iou")}
        self.leave(engine, scores)

    def _extractor(self, engine: Any) -> FeatureExtractor:
        # The extractor changes its network; the average is in evaluation mode and without gradients anyway.
        network = engine.optimization.averaged(engine.network)
        network = copy.deepcopy(network) if engine.optimization.ema is None else network
        settings = (self.blocks, self.timesteps, self.masking, None, self.normalize, self.seed)
        return make_extractor((network, self.plan), *settings)[0]


def _folds(cases: Selection, loaded: Sequence[LoadedCase], most: int) -> list[list[LoadedCase]]:
    """Return what is left out together: a patient's cases, in at most ``most`` parts."""
    known = [case for case in loaded if case.truth is not None and (case.truth != cases.ignore).any()]
    groups: dict[int, list[LoadedCase]] = {}
    for case, patient in zip(known, patient_numbers([case.entry for case in known]), strict=True):
        groups.setdefault(patient, []).append(case)
    names = list(groups)
    return [[case for name in names[n::most] for case in groups[name]] for n in range(min(most, len(names)))]
