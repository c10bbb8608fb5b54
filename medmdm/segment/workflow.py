"""The segmentation workflow: read, fit, save, evaluate, report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmdm.artifacts.backbone import OpenBackbone
from medmdm.artifacts.plan import make_ledger
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.data.cases import Cases
from medmdm.data.reading import CaseReader, LoadedCase, data_hash
from medmdm.errors import UserError
from medmdm.files import save_json
from medmdm.heads.padded import PaddedNetwork
from medmdm.heads.prediction import Predictor
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Fitter, Reading, Task, check_normalize
from medmdm.heads.views import view_sizes
from medmdm.reports import write_report
from medmdm.runs.folder import RunFolder
from medmdm.runs.provenance import ledger_stamp, support_ledger
from medmdm.segment.evaluation import evaluate
from medmdm.segment.reconstruction_error import Surprise, surprise_reader

__all__ = ["Segmentation"]

logger = logging.getLogger(__name__)


class Segmentation:
    """Fit a head (or a network) to the labelled training cases and evaluate it.

    The run folder receives ``segmenter.pt``, ``plan.json`` (what was chosen, and the evidence), ``run.json``,
    ``predictions/``, ``evaluation.json`` and the report. A run that was killed goes on: features come from the cache,
    and a segmenter that is there is not fitted again.

    Args:
        run_dir: the run folder.
        backbone: see :func:`open_backbone`.
        cases: training and test cases, see :func:`medmdm.data.select_cases`.
        head: how to fit; see :class:`medmdm.heads.task.Fitter`.
        head_config: its config, which tells a later run whether the segmenter in the folder is the same.
        config: merged config of the run.
        postprocess: probabilities → masks.
        postprocess_config: its config, which is kept in the segmenter's file.
        window: of the images that are read; None for the size of the backbone's training crops.
        whole: read images whole, where they fit.
        overlap: of windows.
        shots: number of training cases; None for all.
        rule: which: ``"paper"`` or ``"seeded"``, see :func:`medmdm.data.subset`.
        draw: seed of the subset.
        section: to evaluate, ``"test"`` or ``"validation"``.
        seed: of the fit.
        probabilities: write them.
        uncertainty: write maps of it.
        surprise: write its maps; None for none. It is read in the same windows.
        include_backbone: save the backbone with the head, so that the file stands alone.
        report: write the report.
        strict: a case that cannot be scored stops the report.
        study: the ``study.csv`` of a study, whose learning curve the report shows.
        slice_cache: folder of decoded volumes.
        device: where to compute.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        backbone: OpenBackbone,
        cases: Cases,
        head: Fitter,
        head_config: Mapping[str, Any],
        config: Mapping[str, Any],
        postprocess: Callable[..., dict[str, np.ndarray | None]],
        postprocess_config: Mapping[str, Any] | None = None,
        window: Sequence[int] | None = None,
        whole: bool = False,
        overlap: float = 0.2,
        shots: int | None = None,
        rule: str = "paper",
        draw: int = 0,
        section: str = "test",
        seed: int = 0,
        probabilities: bool = False,
        uncertainty: bool = True,
        surprise: Surprise | None = None,
        include_backbone: bool = True,
        report: bool = True,
        strict: bool = False,
        study: str | None = None,
        slice_cache: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if section not in ("test", "validation"):
            raise UserError(f"section must be 'test' or 'validation', got {section!r}.")
        if head.needs_backbone and backbone.extractor is None:
            raise UserError(f"{type(head).__name__} needs a backbone: set backbone to a model.pt.")
        if head.needs_backbone and backbone.extractor is not None:
            check_normalize(backbone.extractor, whole)
        if getattr(head, "changes_backbone", False) and not include_backbone:
            raise UserError(
                f"{type(head).__name__} changes the backbone, so the head alone would be of no use: set "
                "include_backbone to true."
            )
        if not getattr(cases, section):
            raise UserError(f"There is no {section} case to evaluate: correct the data list or choose another section.")
        self.folder = Path(run_dir)
        self.backbone = backbone
        self.cases = cases if shots is None else cases.subset(shots, rule, draw)
        self.head = head
        self.head_config = dict(head_config)
        self.config = dict(config)
        self.postprocess = postprocess
        self.postprocess_config = None if postprocess_config is None else dict(postprocess_config)
        self.reading = Reading(window or backbone.plan.get("crop_size") or (256, 256), whole, overlap)  # type: ignore[arg-type]
        self.shots = shots
        self.rule = rule
        self.draw = draw
        self.section = section
        self.seed = seed
        self.probabilities = probabilities
        self.uncertainty = uncertainty
        self.surprise = surprise
        self.include_backbone = include_backbone
        self.report = report
        self.strict = strict
        if study is not None and not Path(study).is_file():
            raise UserError(f"study names {study}, which does not exist: give the study.csv of a study.")
        self.study = study
        self.reader = CaseReader(cases, backbone.plan, slice_cache)
        self.device = torch.device(device)

    @property
    def model_path(self) -> Path:
        """The segmenter's file."""
        return self.folder / "segmenter.pt"

    def run(self) -> dict[str, float]:
        """Do what is not done yet; return mean Dice and IoU."""
        for sentence in self.cases.sentences:
            logger.info(sentence)
        for warning in self.cases.warnings:
            logger.warning(warning)
        support = list(self.reader.read_all(self.cases.training))
        tested = list(self.reader.read_all(getattr(self.cases, self.section)))
        data = {
            "hash": data_hash(training=support, **{self.section: tested}),
            "training_cases": len(support),
            f"{self.section}_cases": len(tested),
        }
        # By its weights: another file under the same name must not be mistaken for the one that was fitted to.
        config = {**self.config, "backbone_sha256": self.backbone.identity}
        record = RunFolder(self.folder, config, {}, data, self.seed)
        record.open()
        task = Task(
            [example for case in support for example in case.examples],
            self.cases.num_classes,
            self.reading,
            self.seed,
            self.device,
        )
        protocol = self._protocol(support)
        if self.model_path.is_file():
            logger.info("%s is there; it is not fitted again.", self.model_path)
            model = self._load()
        else:
            if self.backbone.extractor is not None and self.head.needs_backbone:
                sizes = view_sizes([*support, *tested], self.reading)
                logger.info(self.backbone.extractor.announce(sizes))
            fitted = self.head.fit(task, self.backbone.extractor)
            model = fitted.model
            save_json({"protocol": protocol, "head": self.head_config, **fitted.evidence}, self.folder / "plan.json")
            self._save(model, protocol, support)
        plan = self._backbone_plan()
        stamp = ledger_stamp(tested, plan.get("ledger"), support_ledger(support))
        logger.info("%s: %s", stamp["kind"], stamp["sentence"])
        predictor = Predictor(model, self.reading, uncertainty=self.uncertainty, device=self.device)
        scores = evaluate(
            self.folder, tested, self.cases, predictor, self.postprocess, stamp, protocol, self.section,
            self.probabilities, self.study, surprise_reader(self.surprise, predictor),
        )  # fmt: skip
        record.finish(0)
        if scores:
            logger.info("mean over %d cases: Dice %.4f, IoU %.4f", len(tested), scores["dice"], scores["iou"])
        if self.report:
            logger.info("report: %s", write_report(self.folder, strict=self.strict))
        return scores

    def _load(self) -> torch.nn.Module:
        """Return the segmenter that was fitted before."""
        backbone = self.backbone.path if self.head.needs_backbone else ""
        model, plan = load_segmenter(self.model_path, backbone=backbone or None)
        if isinstance(model, Segmenter) and not plan["fine_tuned"] and self.backbone.extractor is not None:
            # The same weights and settings, which the run's record sees to, with the features that are cached.
            model.extractor = self.backbone.extractor
        return model.to(self.device)

    def _protocol(self, support: Sequence[LoadedCase]) -> dict[str, Any]:
        return {
            "backbone": self.backbone.path or None,
            "backbone_sha256": self.backbone.identity or None,
            "features": None if self.backbone.extractor is None else dict(self.backbone.extractor.config),
            "head": self.head_config,
            "shots": len(support),
            "subset": None if self.shots is None else {"rule": self.rule, "draw": self.draw},
            "training_cases": [case.name for case in support],
            "seed": self.seed,
            "window": list(self.reading.window),
            "whole_images": self.reading.whole,
            "overlap": self.reading.overlap,
            "num_classes": self.cases.num_classes,
            "class_names": list(self.cases.class_names),
            "label_type": self.cases.label_type,
        }

    def _backbone_plan(self) -> dict[str, Any]:
        """What is said of reading and of what was seen; a network from scratch saw nothing but the support."""
        seen = {} if self.head.needs_backbone else {"ledger": make_ledger()}
        return {**self.backbone.plan, **seen}

    def _save(self, model: torch.nn.Module, protocol: Mapping[str, Any], support: Sequence[LoadedCase]) -> None:
        task = {
            **protocol,
            "postprocess": self.postprocess_config,
            "ledger": support_ledger(support),
        }
        plan: dict[str, Any] = {"backbone": self._backbone_plan(), "task": task}
        if isinstance(model, PaddedNetwork):
            plan["network"] = self.head_config["network"]
        else:
            plan["backbone_sha256"] = self.backbone.identity
        save_segmenter(self.model_path, model, plan, self.include_backbone)
