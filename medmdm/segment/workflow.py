"""The workflows: fit and evaluate a segmenter, evaluate a saved one, write masks of unlabelled images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.inferers import Inferer
from torch import nn

from medmdm.artifacts.backbone import OpenBackbone
from medmdm.artifacts.pretrained import make_ledger
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.components import instantiate, to_config
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.errors import UserError
from medmdm.files import atomic_write, save_json
from medmdm.heads.segmenter import PaddedNetwork, Predictor, Segmenter
from medmdm.heads.task import Fitter, Reading, Task, check_normalize, view_sizes
from medmdm.reports import Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.record import find_provenance, support_ledger
from medmdm.segment.evaluation import LabelledData, Outputs, Postprocessing, evaluate, in_place
from medmdm.segment.postprocessing import boxes

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
            fault = f"{name} changes the backbone, so the head alone would be of no use"
            raise UserError(f"{fault}: set include_backbone to true.")
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
        record.open()
        protocol = self._protocol(support)
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
        uncertainty, device = self.outputs.uncertainty, self.backbone.device
        predictor = Predictor(model, self.reading, uncertainty, device=device, inferer=self.inferer)
        return evaluate(
            record, tested, self.data, predictor, self.postprocess, self.outputs, self.report, provenance, protocol
        )

    def _fit(self, support: Sequence[LoadedCase], protocol: Mapping[str, Any], plan: Mapping[str, Any]) -> nn.Module:
        """Learn, and write the segmenter's file."""
        examples = [example for case in support for example in case.examples]
        task = Task(examples, self.data.cases.num_classes, self.reading, self.seed, self.backbone.device)
        fitted = self.head.fit(task, self.backbone.extractor)
        chosen = {"protocol": protocol, "head": protocol["head"], **fitted.evidence}
        save_json(chosen, self.model_path.parent / "plan.json")
        known = {**protocol, "postprocess": to_config(self.postprocess), "ledger": support_ledger(support)}
        whole: dict[str, Any] = {"backbone": dict(plan), "task": known}
        if isinstance(fitted.model, PaddedNetwork):
            whole["network"] = to_config(self.head.network)  # type: ignore[attr-defined]
        else:
            whole["backbone_sha256"] = self.backbone.identity
        save_segmenter(self.model_path, fitted.model, whole, self.include_backbone)
        return fitted.model

    def _load(self) -> nn.Module:
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
        }


@dataclass(frozen=True)
class OpenSegmenter:
    """A segmenter ready to use, and what its plan says of how.

    Args:
        path: of its file.
        model: image → logits.
        plan: of its file.
        device: where it runs.
    """

    path: str
    model: nn.Module = field(repr=False)
    plan: Mapping[str, Any] = field(repr=False)
    device: torch.device

    @property
    def task(self) -> Mapping[str, Any]:
        """What it was fitted to: classes, windows, labelled cases."""
        return self.plan["task"]

    @property
    def reading(self) -> Reading:
        """How images were read when it was fitted."""
        task = self.task
        return Reading(tuple(task["window"]), bool(task["whole_images"]), float(task["overlap"]))

    @property
    def postprocess(self) -> Postprocessing:
        """The post-processing that it was saved with.

        Raises:
            UserError: it is not medmdm's.
        """
        config = self.task.get("postprocess") or {"_target_": "medmdm.segment.PostProcess"}
        try:
            return instantiate({"_target_": "medmdm.segment.PostProcess", **config})
        except UserError as error:
            own = f"a post-processing of its own, which is not imported because a file names it ({error})"
            raise UserError(f"{self.path}: it was saved with {own}: give it as 'postprocess'.") from error

    def predictor(self, outputs: Outputs, inferer: Inferer | None) -> Predictor:
        """Return what predicts with it."""
        return Predictor(self.model, self.reading, outputs.uncertainty, device=self.device, inferer=inferer)


def open_segmenter(
    path: str | os.PathLike[str],
    backbone: str | os.PathLike[str] | None = None,
    for_maps: bool = False,
    device: torch.device | str = "cpu",
) -> OpenSegmenter:
    """Open a file of :class:`medmdm.segment.Segmentation`.

    Args:
        path: the file.
        backbone: the weights file, for a segmenter that was saved without it.
        for_maps: the reconstruction error is read with the backbone, so that one may be given with any segmenter.
        device: where to compute.

    Raises:
        UserError: as :func:`medmdm.artifacts.load_segmenter`.
    """
    if for_maps and read_checkpoint(Path(path)).get("kind") == "network":
        backbone = None
    model, plan = load_segmenter(path, backbone=backbone)
    device = torch.device(device)
    return OpenSegmenter(str(path), model.to(device), plan, device)


@dataclass(frozen=True)
class Evaluation:
    """Evaluate a saved segmenter on a section of any data list, and write the report.

    Args:
        outputs: what to write, and the run folder.
        data: with the section; its classes must be those of the segmenter.
        segmenter: see :func:`open_segmenter`.
        postprocess: probabilities → masks.
        report: scores the predictions.
        inferer: of MONAI's; None for how the segmenter read images when it was fitted.
        config: merged config of the run.

    Raises:
        UserError: the classes differ.
    """

    outputs: Outputs
    data: LabelledData
    segmenter: OpenSegmenter
    postprocess: Postprocessing
    report: Report
    inferer: Inferer | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        task, cases = self.segmenter.task, self.data.cases
        if cases.num_classes != task["num_classes"]:
            raise UserError(
                f"{self.segmenter.path} tells {task['num_classes']} classes apart ({', '.join(task['class_names'])}), "
                f"but the data list has {cases.num_classes} ({', '.join(cases.class_names)}): they must be the same."
            )

    def run(self) -> dict[str, float]:
        """Evaluate; return mean Dice and IoU."""
        self.data.announce()
        tested, task = self.data.tested(), self.segmenter.task
        record = RunFolder(Path(self.outputs.folder), dict(self.config), {}, self.data.identity(tested), 0)
        record.open()
        provenance = find_provenance(tested, self.segmenter.plan["backbone"].get("ledger"), task.get("ledger"))
        protocol = {**{k: v for k, v in task.items() if k != "ledger"}, "segmenter": self.segmenter.path}
        predictor = self.segmenter.predictor(self.outputs, self.inferer)
        return evaluate(
            record, tested, self.data, predictor, self.postprocess, self.outputs, self.report, provenance, protocol
        )


@dataclass(frozen=True)
class Inference:
    """Write masks for the images or volumes of a folder, or of a data list.

    Args:
        outputs: what to write, and where ``predictions/`` goes.
        reader: of what :func:`medmdm.data.select_cases` gives with ``labelled=False``; all sections are segmented.
        segmenter: see :func:`open_segmenter`.
        postprocess: probabilities → masks.
        inferer: of MONAI's; None for how the segmenter read images when it was fitted.
    """

    outputs: Outputs
    reader: CaseReader
    segmenter: OpenSegmenter
    postprocess: Postprocessing
    inferer: Inferer | None = None

    def run(self) -> Sequence[Path]:
        """Segment every image; return the masks' paths."""
        folder, cases = Path(self.outputs.folder), self.reader.cases
        predictor = self.segmenter.predictor(self.outputs, self.inferer)
        entries = [*cases.training, *cases.validation, *cases.test]
        tables, masks = [], []
        for number, entry in enumerate(entries, start=1):
            case = self.reader.read({key: value for key, value in entry.items() if key != "label"})
            found = self.outputs.predict(case, predictor, self.postprocess)
            masks.append(folder / found.files["prediction"])
            if self.outputs.boxes and found.instances is not None:
                tables.append(boxes(in_place(found.instances, case), in_place(found.mask, case)).assign(case=case.name))
            logger.info("%d of %d: %s", number, len(entries), masks[-1])
        if tables:
            atomic_write(folder / "boxes.csv", pd.concat(tables).to_csv(index=False))
        return masks
