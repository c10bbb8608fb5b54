"""Use a saved segmenter: evaluate it on any data list, or write masks for images without labels."""

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

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.components import instantiate
from medmdm.data.reading import CaseReader
from medmdm.errors import UserError, counted, when_interrupted
from medmdm.files import atomic_write, claim, mark_outputs
from medmdm.heads.segmenter import Predictor
from medmdm.heads.task import Reading
from medmdm.progress import followed
from medmdm.reports import Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.log import keep_log
from medmdm.runs.record import find_provenance
from medmdm.segment.evaluation import LabelledData, Outputs, Postprocessing, evaluate, in_place
from medmdm.segment.postprocessing import boxes

logger = logging.getLogger(__name__)


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
        task: Mapping[str, Any] = self.plan["task"]
        return task

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
            made: Postprocessing = instantiate({"_target_": "medmdm.segment.PostProcess", **config})
        except UserError as error:
            own = f"a post-processing of its own, which is not imported because a file names it ({error})"
            raise UserError(f"{self.path}: it was saved with {own}: give it as 'postprocess'.") from error
        return made

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
        self.outputs.refuse_sources(self.data.entries())
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
        """Segment every image; return the masks' paths.

        Raises:
            UserError: a mask could be written over an image, or another process writes to the folder.
        """
        cases = self.reader.cases
        predictor = self.segmenter.predictor(self.outputs, self.inferer)
        entries = [*cases.training, *cases.validation, *cases.test, *cases.unlabeled]
        self.outputs.refuse_sources(entries)
        claim(Path(self.outputs.folder))
        masks = Path(self.outputs.folder) / "predictions"
        mark_outputs(masks)
        keep_log(self.outputs.folder)
        when_interrupted(f"{masks} keeps the masks that are written; the same command writes them all anew.")
        return segment_all(entries, self.reader, predictor, self.postprocess, self.outputs)


def segment_all(
    entries: Sequence[Mapping[str, Any]],
    reader: CaseReader,
    predictor: Predictor,
    postprocess: Postprocessing,
    outputs: Outputs,
) -> list[Path]:
    """Write masks of cases whose labels, where there are any, are not looked at; return their paths."""
    folder, tables, masks = Path(outputs.folder), [], []
    mark_outputs(folder / "predictions")
    for entry in followed(entries, "predicting"):
        case = reader.read({key: value for key, value in entry.items() if key != "label"})
        found = outputs.predict(case, predictor, postprocess)
        masks.append(folder / found.files["prediction"])
        if outputs.boxes and found.instances is not None:
            tables.append(boxes(in_place(found.instances, case), in_place(found.mask, case)).assign(case=case.name))
    logger.info("%s in %s", counted(len(masks), "mask"), folder / "predictions")
    if tables:
        atomic_write(folder / "boxes.csv", pd.concat(tables).to_csv(index=False))
    return masks
