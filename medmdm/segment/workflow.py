"""The segmentation workflow: read, fit, save, predict, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

from medmdm.artifacts.backbone import OpenBackbone
from medmdm.artifacts.pretrained import make_ledger
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.components import to_config
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError
from medmdm.files import save_json
from medmdm.heads.segmenter import PaddedNetwork, Predictor, Segmenter
from medmdm.heads.task import Fitter, Reading, Task, check_normalize, view_sizes
from medmdm.reports import Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.record import find_provenance, support_ledger
from medmdm.segment.evaluation import LabelledData, Outputs, Postprocessing, evaluate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """Fit a head (or a network) to the labelled training cases and evaluate it.

    The run folder receives ``segmenter.pt``, ``plan.json`` (what was chosen, and the evidence), ``run.json``,
    ``predictions/``, ``evaluation.json`` and the report. A run that was killed goes on: features come from the cache,
    and a segmenter that is there is not fitted again.

    Args:
        outputs: what to write, and the run folder.
        data: cases to learn from and to test on.
        backbone: see :func:`medmdm.artifacts.open_backbone`.
        head: how to fit; see :class:`medmdm.heads.Fitter`.
        reading: how images are read: windows, or whole.
        postprocess: probabilities → masks.
        report: scores the predictions.
        inferer: of MONAI's; None for what ``reading`` says.
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
            raise UserError(
                f"{name} changes the backbone, so the head alone would be of no use: set include_backbone to true."
            )
        for part in (self.postprocess, getattr(self.head, "network", None)):
            to_config(part)  # must be able to say what it was made of when the fit is done

    @property
    def model_path(self) -> Path:
        """The segmenter's file."""
        return Path(self.outputs.folder) / "segmenter.pt"

    def run(self) -> dict[str, float]:
        """Do what is not done yet; return mean Dice and IoU."""
        self.data.announce()
        support, tested = self.data.support(), self.data.tested()
        # By its weights: another file under the same name must not be mistaken for the one that was fitted to.
        config = {**self.config, "backbone_sha256": self.backbone.identity}
        record = RunFolder(Path(self.outputs.folder), config, {}, self.data.identity(tested, support), self.seed)
        self.outputs.refuse_sources(self.data.entries())
        record.open()
        protocol = self._protocol(support)
        for note in protocol.get("notes", ()):
            logger.warning("%s: it cannot be learnt from them.", note)
        plan: Mapping[str, Any] = self.backbone.plan
        if not self.head.needs_backbone:  # a network from scratch saw none of the images that a backbone saw
            plan = {**plan, "ledger": make_ledger()}
        if self.model_path.is_file():
            logger.info("%s is there; it is not fitted again.", self.model_path)
            model = self._load()
        else:
            if self.backbone.extractor is not None and self.head.needs_backbone:
                sizes = view_sizes([*support, *tested], self.reading)
                logger.info(self.backbone.extractor.announce(sizes))
            model = self._fit(support, protocol, plan)
        provenance = find_provenance(tested, plan.get("ledger"), support_ledger(support))
        predictor = Predictor(
            model, self.reading, self.outputs.uncertainty, device=self.backbone.device, inferer=self.inferer
        )
        return evaluate(
            record, tested, self.data, predictor, self.postprocess, self.outputs, self.report, provenance, protocol
        )

    def _fit(
        self, support: Sequence[LoadedCase], protocol: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> torch.nn.Module:
        """Learn, and write the segmenter's file."""
        examples = [example for case in support for example in case.examples]
        task = Task(examples, self.data.cases.num_classes, self.reading, self.seed, self.backbone.device)
        fitted = self.head.fit(task, self.backbone.extractor)
        save_json(
            {"protocol": protocol, "head": protocol["head"], **fitted.evidence}, self.model_path.parent / "plan.json"
        )
        known = {**protocol, "postprocess": to_config(self.postprocess), "ledger": support_ledger(support)}
        whole: dict[str, Any] = {"backbone": dict(plan), "task": known}
        if isinstance(fitted.model, PaddedNetwork):
            whole["network"] = to_config(self.head.network)  # type: ignore[attr-defined]
        else:
            whole["backbone_sha256"] = self.backbone.identity
        save_segmenter(self.model_path, fitted.model, whole, self.include_backbone)
        return fitted.model

    def _load(self) -> torch.nn.Module:
        """Return the segmenter that was fitted before."""
        backbone = self.backbone.path if self.head.needs_backbone else ""
        model, plan = load_segmenter(self.model_path, backbone=backbone or None)
        if isinstance(model, Segmenter) and not plan["fine_tuned"] and self.backbone.extractor is not None:
            # The same weights and settings, which the run's record sees to, with the features that are cached.
            model.extractor = self.backbone.extractor
        return model.to(self.backbone.device)

    def _protocol(self, support: Sequence[LoadedCase]) -> dict[str, Any]:
        """Return how the model comes about, JSON-able."""
        extractor, cases = self.backbone.extractor, self.data.cases
        return {
            "backbone": self.backbone.path or None,
            "backbone_sha256": self.backbone.identity or None,
            "features": None if extractor is None else dict(extractor.config),
            "head": to_config(self.head, strict=False),
            "shots": len(support),
            "subset": self.data.subset,
            "training_cases": [case.name for case in support],
            "seed": self.seed,
            "window": list(self.reading.window),
            "whole_images": self.reading.whole,
            "overlap": self.reading.overlap,
            "num_classes": cases.num_classes,
            "class_names": list(cases.class_names),
            "label_type": cases.label_type,
            **({"notes": lacking} if (lacking := self.data.lacking(support, self.data.draw)) else {}),
        }
