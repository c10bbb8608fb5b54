"""The segmentation workflow: read, fit, save, predict, report."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

from medmdm.artifacts.backbone import PREPROCESSING, OpenBackbone
from medmdm.artifacts.pretrained import make_ledger
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.artifacts.weights import first_of
from medmdm.backbones.cache import CachedExtractor
from medmdm.components import to_config
from medmdm.data.added_labels import label_changes
from medmdm.data.identity import data_identity
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.errors import UserError, counted
from medmdm.files import file_hash, save_json
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.task import Fitter, Reading, check_normalize, view_sizes
from medmdm.intact import DamagedFileError
from medmdm.progress import Progress
from medmdm.reports import Report
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.runs.folder import RunFolder
from medmdm.runs.keys import differing_keys
from medmdm.runs.record import cases_ledger, find_provenance
from medmdm.segment.apply import origin_of
from medmdm.segment.cross_validation import FoldPredictor, cross_validated, divide
from medmdm.segment.evaluation import Outputs, evaluate
from medmdm.segment.label_defaults import follow_labels
from medmdm.segment.label_plan import LabelPlanner
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.likeness import seen
from medmdm.segment.one_by_one import segment_one, write_all
from medmdm.segment.postprocessing import PostProcess, Postprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """Fit a head (or a network) to the labelled training cases and evaluate it.

    Where the data list has no test case, the labelled ones are left out in turn
    (:mod:`medmdm.segment.cross_validation`; ``folds/`` holds those models), and the segmenter that is kept is fitted to
    all of them.

    The run folder receives ``segmenter.pt``, ``plan.json`` (what was chosen, and the evidence), ``run.json``,
    ``predictions/``, ``mean_mask.npz`` where all cases are of one grid, ``evaluation.json`` and the report. A run that
    was killed goes on: features come from the cache, and a segmenter that is there is not fitted again.

    Args:
        outputs: what to write, and the run folder.
        data: cases to learn from and to test on.
        backbone: see :func:`medmdm.artifacts.open_backbone`.
        head: how to fit; see :class:`medmdm.heads.Fitter`.
        reading: how images are read: windows, or whole.
        postprocess: probabilities → masks.
        report: scores the predictions.
        inferer: of MONAI's; None for what ``reading`` says.
        apply_to: further images to write masks of, into ``applied/``; None for the data list's ``unlabeled`` ones.
        include_backbone: save the backbone with the head, so that the file stands alone.
        seed: of the fit.
        config: merged config of the run, which a later session must share.

    Raises:
        UserError: the parts do not go together.
    """

    outputs: Outputs
    data: LabelledData
    backbone: OpenBackbone
    head: Fitter
    reading: Reading
    postprocess: Postprocessing
    report: Report
    inferer: Inferer | None = None
    apply_to: CaseReader | None = None
    include_backbone: bool = True
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.data.section not in ("test", "validation"):
            raise UserError(f"section must be 'test' or 'validation', got {self.data.section!r}.")
        name = type(self.head).__name__
        if self.head.needs_backbone and self.backbone.extractor is None:
            raise UserError(f"{name} needs a backbone: set backbone to a model.pt.")
        if self.head.needs_backbone and self.backbone.extractor is not None:
            check_normalize(self.backbone.extractor, self.reading.whole)
        if getattr(self.head, "changes_backbone", False) and not self.include_backbone:
            fault = f"{name} changes the backbone, so the head alone would be of no use"
            raise UserError(f"{fault}: set include_backbone to true.")
        if isinstance(self.postprocess, PostProcess):
            self.postprocess.check_maps(getattr(self.head, "maps", ()))
        for part in (self.postprocess, getattr(self.head, "network", None)):
            to_config(part)  # must be able to say what it was made of when the fit is done

    @property
    def model_path(self) -> Path:
        """The segmenter's file."""
        return Path(self.outputs.folder) / "segmenter.pt"

    def run(self) -> dict[str, float]:
        """Do what is not done yet; return mean Dice and IoU."""
        self.data.announce()
        support = self.data.support()
        postprocess, chosen = follow_labels(self.postprocess, self.data.cases.label_type, support)
        for sentence in chosen:
            logger.info(sentence)
        return replace(self, postprocess=postprocess)._run(support, self.postprocess)

    def _run(self, support: list[LoadedCase], given: Postprocessing) -> dict[str, float]:
        tested = list(support) if self.data.cross_validated else self.data.tested()
        # By its weights: another file under the same name must not be mistaken for the one that was fitted to.
        config = {**self.config, "backbone_sha256": self.backbone.identity}
        folder = Path(self.outputs.folder)
        others = self.data.others(support) if getattr(self.head, "uses_unlabelled", False) else []
        record = RunFolder(folder, config, {}, self.data.identity(tested, support, others), self.seed)
        self.outputs.refuse_sources(self.data.entries())
        for form in self.outputs.formats:
            unlabelled = self.data.cases.unlabeled if self.apply_to is None else self.apply_to.cases.test
            form.check(unlabelled, self.data.cases.class_names)
        record.open()
        if self.apply_to is not None:
            self.apply_to.cases.announce()
        known = self.data.cases.data_list
        for sentence in label_changes({} if known is None else known.information, [case.entry for case in support]):
            logger.info(sentence)
        for note in self._protocol(support).get("notes", ()):
            logger.warning("%s: it cannot be learnt from them.", note)
        plan = self._plan(support)
        if self.backbone.extractor is not None and self.head.needs_backbone and not self.model_path.is_file():
            logger.info(self.backbone.extractor.announce(view_sizes(support, self.reading)))
        fitted = self._predictor(self._model(self.model_path, support, others, plan))
        predictor: Predictor | FoldPredictor = fitted
        if self.data.cross_validated:
            parts = divide(support, self.seed)
            ledgers = plan.get("ledger"), cases_ledger(others)
            provenance = cross_validated(support, len(parts), *(find_provenance(tested, one) for one in ledgers))
            predictor = self._left_out(parts, support, others, plan, given)
        else:
            provenance = find_provenance(tested, plan.get("ledger"), cases_ledger([*support, *others]))
        protocol = {**self._protocol(support), "segmenter_sha256": file_hash(self.model_path)}
        protocol |= {
            "training_cases": [case.name for case in support],
            "training_patients": sorted(
                {str(case.entry["patient_id"]) for case in support if "patient_id" in case.entry}
            ),
        }
        applied = replace(self.outputs, folder=folder / "applied", boxes=True)
        unlabeled = self.data.cases.unlabeled if self.apply_to is None else self.apply_to.cases.test
        reader = self.apply_to or self.data.reader
        origin = origin_of(self.data.cases.class_names, file_hash(self.model_path), self.postprocess)
        if self.outputs.label_plan:
            head = self.head if isinstance(self.head, ClosedFormHead) else None
            planner = LabelPlanner(self.data, self.backbone, self.reading, head, seed=self.seed)
            try:
                logger.info("how many labels?\n%s", planner.run(folder))
            except UserError as error:
                logger.warning("There is no plan of further labels: %s", error)
        with contextlib.nullcontext() if self.data.cross_validated else self._passing():
            scores = evaluate(
                record, tested, self.data, predictor, self.postprocess, self.outputs, self.report, provenance, protocol,
                support,
            )  # fmt: skip
        if unlabeled:  # last: where one of them cannot be read, the scores are there
            logger.info("masks of %s without labels go to %s", counted(len(unlabeled), "image"), applied.folder)
            with self._passing():
                made = (segment_one(entry, reader, fitted, self.postprocess, applied, origin) for entry in unlabeled)
                write_all(unlabeled, made, applied)
        return scores

    def _plan(self, support: Sequence[LoadedCase]) -> dict[str, Any]:
        """Return how the segmenter reads images, and what its backbone saw."""
        plan = dict(self.backbone.plan)
        if plan.get("channels") is None:  # a network from scratch takes what it finds
            plan["channels"] = len(support[0].examples[0].image)
        return plan if self.head.needs_backbone else plan | {"ledger": make_ledger()}  # which a new network never saw

    def _left_out(
        self,
        parts: Sequence[Sequence[LoadedCase]],
        support: Sequence[LoadedCase],
        others: Sequence[LoadedCase],
        plan: Mapping[str, Any],
        given: Postprocessing,
    ) -> FoldPredictor:
        """Fit to all but each part in turn; ``given`` is the post-processing as it was set."""
        predictors: dict[str, Predictor] = {}
        settings: dict[str, Postprocessing] = {}
        fitting = Progress("cross-validation", len(parts))
        for number, part in enumerate(parts):
            logger.info("part %d of %d is left out", number + 1, len(parts))
            held = {case.name for case in part}
            kept = [case for case in support if case.name not in held]
            path = Path(self.outputs.folder) / "folds" / str(number) / "segmenter.pt"
            fold = replace(self, postprocess=follow_labels(given, self.data.cases.label_type, kept)[0])
            predictors |= dict.fromkeys(held, self._predictor(fold._model(path, kept, others, plan)))
            settings |= dict.fromkeys(held, fold.postprocess)
            fitting.tick()
        return FoldPredictor(predictors, settings)

    def _passing(self) -> contextlib.AbstractContextManager[None]:
        """Keep no features meanwhile: those of images that are read once would only fill the disk."""
        extractor = self.backbone.extractor
        return extractor.passing() if isinstance(extractor, CachedExtractor) else contextlib.nullcontext()

    def _predictor(self, model: torch.nn.Module) -> Predictor:
        return Predictor(
            model, self.reading, self.outputs.uncertainty, device=self.backbone.device, inferer=self.inferer
        )

    def _model(
        self, path: Path, support: Sequence[LoadedCase], others: Sequence[LoadedCase], plan: Mapping[str, Any]
    ) -> torch.nn.Module:
        """Learn and write the segmenter's file, or read the one that was fitted before."""
        protocol = self._protocol(support)
        known = {
            **protocol,
            "postprocess": to_config(self.postprocess),
            "ledger": cases_ledger([*support, *others]),
            "data": data_identity({"training": support}, others)["arrangement"],
            "preprocessing": {key: plan.get(key) for key in PREPROCESSING},
        }
        if path.is_file():
            logger.info("%s is there; it is not fitted again.", path)
            return self._load(path, known)
        task = self.data.task(support, others, self.reading, self.seed, self.backbone.device)
        logger.info("fitting to %s", counted(len(support), "labelled case"))
        fitted = self.head.fit(task, self.backbone.extractor)
        names = Pseudonyms(case.entry.get("patient_id") for case in support)
        listed = {**protocol, "training_cases": [names.clean(case.name) for case in support]}
        save_json({"protocol": listed, "head": protocol["head"], **fitted.evidence}, path.parent / "plan.json")
        known["images"] = seen(support)
        if "threshold" in fitted.evidence:
            known["threshold"] = fitted.evidence["threshold"]
        whole: dict[str, Any] = {"backbone": dict(plan), "task": known}
        if isinstance(fitted.model, PaddedNetwork):
            whole["network"] = to_config(self.head.network)  # type: ignore[attr-defined]
        else:
            whole["backbone_sha256"] = self.backbone.identity
        save_segmenter(path, fitted.model, whole, self.include_backbone)
        return fitted.model

    def _load(self, path: Path, known: Mapping[str, Any]) -> torch.nn.Module:
        """Read a segmenter that was fitted as the config says."""
        extractor = self.backbone.extractor
        backbone = None if extractor is None else (extractor.innermost.backbone, self.backbone.plan)
        try:
            model, plan = load_segmenter(path, backbone=backbone if self.head.needs_backbone else None)
        except DamagedFileError as error:
            raise UserError(f"{error} If you delete it, it is fitted again.") from error
        saved, wanted = plan.get("task", {}), json.loads(json.dumps(known))
        # Earlier versions wrote less, names of cases, and the path of the backbone, whose weights are compared.
        common = saved.keys() & wanted.keys() - {"backbone", "notes"}
        if differing := differing_keys({k: saved[k] for k in common}, {k: wanted[k] for k in common}):
            fault = f"{path} was fitted with other settings or images (it differs in {first_of(differing)})"
            raise UserError(f"{fault}: choose another run_dir, or delete that file to fit again.")
        if isinstance(model, Segmenter) and not plan["fine_tuned"] and extractor is not None:
            # The same weights and settings, which the run's record sees to, with the features that are cached.
            model.extractor = extractor
        return model.to(self.backbone.device)

    def _protocol(self, support: Sequence[LoadedCase]) -> dict[str, Any]:
        """Return how the model comes about, JSON-able, without anything that names a person or a computer."""
        extractor, cases = self.backbone.extractor, self.data.cases
        return {
            "backbone": self.backbone.name or None,
            "backbone_sha256": self.backbone.identity or None,
            "features": None if extractor is None else dict(extractor.config),
            "head": to_config(self.head, strict=False),
            "shots": len(support),
            "subset": self.data.subset,
            "seed": self.seed,
            "window": list(self.reading.window),
            "whole_images": self.reading.whole,
            "overlap": self.reading.overlap,
            "num_classes": cases.num_classes,
            "classes": list(cases.classes),
            "class_names": list(cases.class_names),
            "label_type": cases.label_type,
            "postprocess": to_config(self.postprocess),
            **({"notes": lacking} if (lacking := self.data.lacking(support, self.data.draw)) else {}),
        }
