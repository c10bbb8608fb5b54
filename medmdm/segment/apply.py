"""Use a saved segmenter: evaluate it on any data list, or write masks for images without labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.data.cases import Cases
from medmdm.data.reading import CaseReader, data_hash
from medmdm.errors import UserError
from medmdm.heads.prediction import Predictor
from medmdm.heads.task import Reading
from medmdm.reports import write_report
from medmdm.runs.folder import RunFolder
from medmdm.runs.provenance import ledger_stamp
from medmdm.segment.evaluation import evaluate, in_place, write_prediction
from medmdm.segment.reconstruction_error import Surprise, surprise_reader

__all__ = ["Evaluation", "Inference"]

logger = logging.getLogger(__name__)

_POSTPROCESS = "medmdm.segment.PostProcess"
PostProcessing = Callable[..., dict[str, np.ndarray | None]]


class _Saved:
    """A segmenter's file, and what its plan says of how to use it."""

    def __init__(
        self,
        segmenter: str | os.PathLike[str],
        backbone: str | os.PathLike[str] | None,
        uncertainty: bool,
        device: torch.device | str,
        postprocess: PostProcessing | None,
        for_surprise: bool,
    ) -> None:
        if for_surprise and read_checkpoint(Path(segmenter)).get("kind") == "network":
            backbone = None  # only the map of surprise is read with it
        self.model, self.plan = load_segmenter(segmenter, backbone=backbone)
        self.task: Mapping[str, Any] = self.plan["task"]
        self.model.to(torch.device(device))
        self.predictor = Predictor(
            self.model,
            Reading(self.task["window"], bool(self.task["whole_images"]), float(self.task["overlap"])),
            uncertainty,
            device=device,
        )
        self.postprocess = postprocess or _from_config(segmenter, self.task.get("postprocess"))


def _from_config(segmenter: str | os.PathLike[str], config: Mapping[str, Any] | None) -> PostProcessing:
    """Make the post-processing that the segmenter was saved with."""
    from medmdm.segment.postprocessing import PostProcess

    config = dict(config or {})
    target = config.pop("_target_", _POSTPROCESS)
    if target != _POSTPROCESS:
        raise UserError(
            f"{segmenter}: it was saved with the post-processing {target}, which is not medmdm's and is not imported "
            "because a file names it: give it as 'postprocess'."
        )
    return PostProcess(**{key: value for key, value in config.items() if not key.startswith("_")})


class Evaluation:
    """Evaluate a saved segmenter on a section of any data list, and write the report.

    Args:
        run_dir: the run folder.
        segmenter: its file.
        cases: with the section; its classes must be those of the segmenter.
        config: merged config of the run.
        backbone: the weights file, for a segmenter that was saved without it.
        section: of the data list.
        postprocess: None for the segmenter's own.
        probabilities: write them.
        uncertainty: write maps of it.
        surprise: write its maps; None for none. It is read in the segmenter's windows.
        report: write the report.
        strict: a case that cannot be scored stops the report.
        slice_cache: folder of decoded volumes.
        device: where to compute.

    Raises:
        UserError: the classes differ, or the head belongs to another backbone.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        segmenter: str | os.PathLike[str],
        cases: Cases,
        config: Mapping[str, Any],
        backbone: str | os.PathLike[str] | None = None,
        section: str = "test",
        postprocess: PostProcessing | None = None,
        probabilities: bool = False,
        uncertainty: bool = True,
        surprise: Surprise | None = None,
        report: bool = True,
        strict: bool = False,
        slice_cache: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(run_dir)
        self.saved = _Saved(segmenter, backbone, uncertainty, device, postprocess, surprise is not None)
        known = self.saved.task["num_classes"]
        if cases.num_classes != known:
            raise UserError(
                f"{segmenter} tells {known} classes apart ({', '.join(self.saved.task['class_names'])}), but the data "
                f"list has {cases.num_classes} ({', '.join(cases.class_names)}): they must be the same."
            )
        if not getattr(cases, section, None):
            raise UserError(f"There is no {section} case to evaluate: correct the data list or choose another section.")
        self.segmenter = str(segmenter)
        self.cases = cases
        self.config = dict(config)
        self.section = section
        self.surprise = surprise_reader(surprise, self.saved.predictor)
        self.probabilities = probabilities
        self.report = report
        self.strict = strict
        self.slice_cache = slice_cache

    def run(self) -> dict[str, float]:
        """Evaluate; return mean Dice and IoU."""
        for sentence in (*self.cases.sentences, *self.cases.warnings):
            logger.info(sentence)
        backbone = self.saved.plan["backbone"]
        reader = CaseReader(self.cases, backbone, self.slice_cache)
        loaded = list(reader.read_all(getattr(self.cases, self.section)))
        data = {"hash": data_hash(**{self.section: loaded}), f"{self.section}_cases": len(loaded)}
        record = RunFolder(self.folder, self.config, {}, data, 0)
        record.open()
        stamp = ledger_stamp(loaded, backbone.get("ledger"), self.saved.task.get("ledger"))
        logger.info("%s: %s", stamp["kind"], stamp["sentence"])
        protocol = {**{k: v for k, v in self.saved.task.items() if k != "ledger"}, "segmenter": self.segmenter}
        scores = evaluate(
            self.folder, loaded, self.cases, self.saved.predictor, self.saved.postprocess, stamp, protocol,
            self.section, self.probabilities, surprise=self.surprise,
        )  # fmt: skip
        record.finish(0)
        logger.info("mean over %d cases: Dice %.4f, IoU %.4f", len(loaded), scores["dice"], scores["iou"])
        if self.report:
            logger.info("report: %s", write_report(self.folder, strict=self.strict))
        return scores


class Inference:
    """Write masks for the images or volumes of a folder, or of a data list.

    Args:
        output_dir: where ``predictions/`` goes.
        segmenter: its file.
        cases: what :func:`medmdm.data.select_cases` gives with ``labelled=False``; all sections are segmented.
        backbone: the weights file, for a segmenter that was saved without it.
        postprocess: None for the segmenter's own.
        probabilities: write them.
        uncertainty: write maps of it.
        surprise: write its maps; None for none. It is read in the segmenter's windows.
        boxes: write a table of the instances' boxes, where instances are found.
        slice_cache: folder of decoded volumes.
        device: where to compute.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        segmenter: str | os.PathLike[str],
        cases: Cases,
        backbone: str | os.PathLike[str] | None = None,
        postprocess: PostProcessing | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
        surprise: Surprise | None = None,
        boxes: bool = True,
        slice_cache: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(output_dir)
        self.saved = _Saved(segmenter, backbone, uncertainty, device, postprocess, surprise is not None)
        self.cases = cases
        self.surprise = surprise_reader(surprise, self.saved.predictor)
        self.probabilities = probabilities
        self.boxes = boxes
        self.slice_cache = slice_cache

    def run(self) -> Sequence[Path]:
        """Segment every image; return the masks' paths."""
        import pandas as pd

        from medmdm.files import atomic_write
        from medmdm.segment.postprocessing import boxes

        reader = CaseReader(self.cases, self.saved.plan["backbone"], self.slice_cache)
        entries = [*self.cases.training, *self.cases.validation, *self.cases.test]
        tables, masks = [], []
        for number, entry in enumerate(entries, start=1):
            case = reader.read({key: value for key, value in entry.items() if key != "label"})
            prediction = self.saved.predictor.case(case)
            processed = self.saved.postprocess(prediction.probabilities, case.spacing)
            surprising = None if self.surprise is None else self.surprise.values(case)[0]
            files = write_prediction(self.folder, case, prediction, processed, self.probabilities, surprising)
            masks.append(self.folder / files["prediction"])
            mask, instances = processed["mask"], processed["instances"]
            if self.boxes and instances is not None and mask is not None:
                tables.append(boxes(in_place(instances, case), in_place(mask, case)).assign(case=case.name))
            logger.info("%d of %d: %s", number, len(entries), masks[-1])
        if tables:
            atomic_write(self.folder / "boxes.csv", pd.concat(tables).to_csv(index=False))
        return masks
