"""Use a saved segmenter: evaluate it on any data list, or write masks for images without labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from torch import nn

from medmdm.artifacts.export import channels_of
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.components import instantiate, to_config
from medmdm.data.files.slides import is_slide
from medmdm.data.reading import CaseReader
from medmdm.errors import UserError, counted, when_interrupted
from medmdm.files import atomic_write, file_hash, mark_outputs, sweep_temporaries
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.task import Reading
from medmdm.progress import Progress
from medmdm.reports import Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.record import find_provenance
from medmdm.segment.evaluation import Outputs, evaluate
from medmdm.segment.formats.base import CaseFormat, Origin, RunFormat, Segmented
from medmdm.segment.formats.coco import COCO
from medmdm.segment.formats.tables import BoxTable, ObjectTable
from medmdm.segment.journal import Journal
from medmdm.segment.label_defaults import follow_labels, follow_saved
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.postprocessing import Postprocessing
from medmdm.segment.slides import segment_slide

logger = logging.getLogger(__name__)
_Kind = TypeVar("_Kind")

#: Those with one file for all images.
FOR_ALL = (BoxTable, ObjectTable, COCO)
OF_IMAGES = ("ledger", "images")  # of a segmenter's task: what it was fitted to, which is no setting


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
    def network(self) -> nn.Module:
        """The model, ready for tools that trace or script a network at the size of its windows."""
        channels = channels_of(self.plan)
        if isinstance(self.model, Segmenter):
            self.model.extractor.innermost.prepare(self.reading.window, channels)
        if isinstance(self.model, (Segmenter, PaddedNetwork)):
            self.model.scripted_shape = (channels, *self.reading.window)
        return self.model

    @property
    def task(self) -> Mapping[str, Any]:
        """What it was fitted to: classes, windows, labelled cases, how their images look."""
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

    def settled(self, postprocess: Postprocessing) -> Postprocessing:
        """Return a post-processing with the segmenter's own settings where it leaves them to the labels."""
        return follow_saved(postprocess, lambda: self.postprocess)

    def run_folder(
        self, folder: str | os.PathLike[str], config: Mapping[str, Any], data: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Return the folder of what is made with it, known by the segmenter's hash: a file may come to hold another."""
        known = {"bundle": "mdm_infer", **config, "segmenter_sha256": file_hash(Path(self.path))}
        return RunFolder(Path(folder), known, {}, dict(data or {}), 0)

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
        device: where to compute; ``"meta"`` takes no memory for weights, to see whether everything fits.

    Raises:
        UserError: as :func:`medmdm.artifacts.load_segmenter`.
    """
    device = torch.device(device)
    loaded_on = "meta" if device.type == "meta" else "cpu"
    if for_maps and read_checkpoint(Path(path), loaded_on).get("kind") == "network":
        backbone = None
    model, plan = load_segmenter(path, backbone=backbone, device=loaded_on)
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
        handlers: MONAI's or ignite's; they hear of the mean scores as the metrics of an epoch.
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
    handlers: Sequence[Any] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        task, cases = self.segmenter.task, self.data.cases
        known = task.get("classes", range(task["num_classes"]))  # files of 0.2 do not say which of them are declared
        if cases.num_classes != task["num_classes"] or ("classes" in task and list(cases.classes) != list(known)):
            own, other = (
                ", ".join(f"{number} {names[number]}" for number in numbers)
                for numbers, names in ((known, task["class_names"]), (cases.classes, cases.class_names))
            )
            raise UserError(
                f"{self.segmenter.path} tells {len(known)} classes apart ({own}), but the data list has "
                f"{len(cases.classes)} ({other}): they must be the same."
            )
        for number, (own, listed) in enumerate(zip(task["class_names"], cases.class_names, strict=True)):
            unnamed = {"object", f"class {number}"}  # the list does not say
            if own.casefold() != listed.casefold() and not unnamed & {own, listed}:
                raise UserError(
                    f"{self.segmenter.path} calls class {number} {own!r}, the data list {listed!r}: they must be the "
                    "same; where they mean the same, rename it in the list."
                )

    def run(self) -> dict[str, float]:
        """Evaluate; return mean Dice and IoU."""
        self.data.announce()
        tested, task = self.data.tested(), self.segmenter.task
        record = self.segmenter.run_folder(self.outputs.folder, self.config, self.data.identity(tested))
        self.outputs.refuse_sources(self.data.entries())
        record.open()
        provenance = find_provenance(tested, self.segmenter.plan["backbone"].get("ledger"), task.get("ledger"))
        postprocess, chosen = follow_labels(self.segmenter.settled(self.postprocess), self.data.cases.label_type)
        for sentence in chosen:
            logger.info(sentence)
        # Files of medmdm 0.1 hold names of training cases and the path of the backbone.
        protocol = {k: v for k, v in task.items() if k not in (*OF_IMAGES, "training_cases")}
        if task.get("backbone"):
            protocol["backbone"] = Path(str(task["backbone"])).name
        path = Path(self.segmenter.path)
        protocol |= {"segmenter": path.name, "segmenter_sha256": file_hash(path)}
        protocol["postprocess"] = to_config(postprocess, strict=False)
        predictor = self.segmenter.predictor(self.outputs, self.inferer)
        made = predictor, postprocess, self.outputs, self.report
        scores = evaluate(record, tested, self.data, *made, provenance, protocol)
        tell(self.handlers, lambda _, means: [means], [scores], **scores)
        return scores


@dataclass(frozen=True)
class Inference:
    """Write masks for the images or volumes of a folder, or of a data list.

    The folder's ``run.json`` says what they were made with: the config, the segmenter's hash, versions, and under
    ``"images"`` the hash of each image's pixels, its files and where it is unlike what was learnt from. A folder of
    another segmenter or of other settings is refused; with the same ones it is added to.

    Args:
        outputs: what to write, and where ``predictions/`` goes.
        reader: of what :func:`medmdm.data.select_cases` gives with ``labelled=False``; all sections are segmented.
        segmenter: see :func:`open_segmenter`.
        postprocess: probabilities → masks.
        inferer: of MONAI's; None for how the segmenter read images when it was fitted.
        handlers: MONAI's or ignite's, for an engine whose iterations are the images; its ``state.batch`` is the
            image's entry, its ``state.output`` ``[{"foreground": share of the pixels}]``.
        overlays: for how many images an overlay is drawn (:func:`medmdm.segment.overlays.draw_overlay`).
        config: merged config of the run.
    """

    outputs: Outputs
    reader: CaseReader
    segmenter: OpenSegmenter
    postprocess: Postprocessing
    inferer: Inferer | None = None
    handlers: Sequence[Any] = ()
    overlays: int = 0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def run(self) -> Sequence[Path]:
        """Segment every image; return the masks' paths.

        Raises:
            UserError: a mask could be written over an image, the folder holds outputs of another segmenter or of other
                settings, or another process writes to it.
        """
        cases = self.reader.cases
        predictor = self.segmenter.predictor(self.outputs, self.inferer)
        entries = [*cases.training, *cases.validation, *cases.test, *cases.unlabeled]
        self.outputs.refuse_sources(entries)
        postprocess = self.segmenter.settled(self.postprocess)
        origin = origin_of(self.segmenter.task["class_names"], self.segmenter.path, postprocess)
        for form in self.outputs.formats:
            form.check(entries, origin.class_names)
        record = self.segmenter.run_folder(self.outputs.folder, self.config)
        record.open()
        where = Path(self.outputs.folder) / "predictions"
        when_interrupted(f"{where} keeps the masks that are written; the same command writes them all anew.")
        journal = Journal(record, entries, self.segmenter.task.get("images"), self.overlays)
        try:
            masks = segment_all(
                entries, self.reader, predictor, postprocess, self.outputs, origin, self.handlers, journal
            )
        finally:
            journal.save()
        record.finish(0)
        return masks


def origin_of(class_names: Sequence[str], path: str | os.PathLike[str], postprocess: Postprocessing) -> Origin:
    """Return what segments the cases, ``path`` being the segmenter's file."""
    return Origin(tuple(class_names), file_hash(Path(path)), getattr(postprocess, "background", 0))


def segment_all(
    entries: Sequence[Mapping[str, Any]],
    reader: CaseReader,
    predictor: Predictor,
    postprocess: Postprocessing,
    outputs: Outputs,
    origin: Origin,
    handlers: Sequence[Any] = (),
    journal: Journal | None = None,
) -> list[Path]:
    """Write masks of cases whose labels, where there are any, are not looked at; return their paths.

    ``handlers`` are attached as :class:`Inference` says; ``journal`` is told of each case; ``origin`` is what files for
    other programs say of the segmenter.
    """
    folder, masks = Path(outputs.folder), list[Path]()
    for_all: list[RunFormat] = [*([BoxTable()] if outputs.boxes else []), *_of_kind(outputs.formats, RunFormat)]
    pieces: dict[str, dict[str, Any]] = {form.file: {} for form in for_all}
    mark_outputs(folder / "predictions")
    sweep_temporaries(folder)

    def segment(engine: Engine, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not isinstance(entry["image"], list) and is_slide(entry["image"]):
            slide = segment_slide(entry, reader, predictor, postprocess, outputs)
            masks.append(folder / slide.found.files["prediction"])
            if journal is not None:
                journal.note(slide.case, slide.found, slide.tissue, slide=slide.facts)
            progress.tick()
            return [{"foreground": float(np.count_nonzero(slide.found.mask) / slide.found.mask.size)}]
        case = reader.read({key: value for key, value in entry.items() if key != "label"}, in_parts=True)
        found = outputs.predict(case, predictor, postprocess)
        masks.append(folder / found.files["prediction"])
        made = Segmented(folder, case, found.mask, found.instances, found.probabilities, origin)
        for form in _of_kind(outputs.formats, CaseFormat):
            found = replace(found, files={**found.files, **form.write(made)})
        for every in for_all:
            if (piece := every.describe(made)) is not None:
                pieces[every.file][case.name] = piece
        if journal is not None:
            journal.note(case, found)
        progress.tick()
        return [{"foreground": float(np.count_nonzero(found.mask) / found.mask.size)}]

    progress = Progress("predicting", len(entries))
    tell(handlers, segment, entries)
    logger.info("%s in %s", counted(len(masks), "mask"), folder / "predictions")
    _write_for_all(folder, for_all, pieces, journal)
    return masks


def _write_for_all(
    folder: Path, for_all: Sequence[RunFormat], pieces: Mapping[str, Mapping[str, Any]], journal: Journal | None
) -> None:
    """Write the files that tell of all cases together, with those of earlier sessions."""
    for kind in FOR_ALL:
        form = next((form for form in for_all if isinstance(form, kind)), None)
        content: Mapping[str, Any] | None = None if form is None else pieces[kind.file]
        if journal is not None:
            content = journal.merged(form or kind(), content)
        if content:
            atomic_write(folder / kind.file, (form or kind()).text(content))
        elif content is not None:
            (folder / kind.file).unlink(missing_ok=True)  # nothing that it said is left


def _of_kind(formats: Sequence[Any], kind: type[_Kind]) -> list[_Kind]:
    return [form for form in formats if isinstance(form, kind)]


@dataclass(frozen=True)
class Announced:
    """A workflow whose mean scores handlers of MONAI's hear of, as the metrics of an epoch.

    Args:
        workflow: whose ``run()`` returns scores by name, such as :class:`medmdm.segment.Segmentation`.
        handlers: MONAI's or ignite's.
    """

    workflow: Any
    handlers: Sequence[Any] = ()

    def run(self) -> dict[str, float]:
        """Run it; return its scores."""
        scores: dict[str, float] = self.workflow.run()
        tell(self.handlers, lambda _, means: [means], [scores], **scores)
        return scores


def tell(handlers: Sequence[Any], step: Callable[[Engine, Any], Any], data: Sequence[Any], **metrics: float) -> None:
    """Run an engine over ``data`` for handlers of MONAI's, which read ``metrics`` when its epoch is completed."""
    if not data:
        return
    engine = Engine(step)
    engine.logger = logging.getLogger(f"{__name__}.engine")
    engine.logger.setLevel(logging.CRITICAL)  # an error is told once, where it is caught
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(metrics))
    for handler in handlers:
        handler.attach(engine)
    engine.run(data, max_epochs=1)
