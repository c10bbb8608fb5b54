"""Use a saved segmenter: evaluate it on any data list, or write masks for images without labels."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.inferers import Inferer

from medmdm.components import to_config
from medmdm.data.reading import CaseReader
from medmdm.errors import UserError, when_interrupted
from medmdm.reports import Report
from medmdm.runs.cluster import Cluster
from medmdm.runs.record import find_provenance
from medmdm.segment.evaluation import Outputs, evaluate
from medmdm.segment.formats.base import Origin
from medmdm.segment.journal import Journal
from medmdm.segment.label_defaults import follow_labels
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.one_by_one import Finished, segment_one, tell, write_all
from medmdm.segment.postprocessing import Postprocessing
from medmdm.segment.saved_segmenter import OpenSegmenter

logger = logging.getLogger(__name__)
OF_IMAGES = ("ledger", "images")  # of a segmenter's task: what it was fitted to, which is no setting


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
        task, cases, known = self.segmenter.task, self.data.cases, list(self.segmenter.classes)
        if cases.num_classes != task["num_classes"] or ("classes" in task and list(cases.classes) != known):
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
        learnt = [known.get("ledger") for one in self.segmenter.every for known in (one.plan["backbone"], one.task)]
        provenance = find_provenance(tested, *learnt)
        postprocess, chosen = follow_labels(self.segmenter.settled(self.postprocess), self.data.cases.label_type)
        for sentence in chosen:
            logger.info(sentence)
        # Files of medmdm 0.1 hold names of training cases and the path of the backbone.
        protocol = {k: v for k, v in task.items() if k not in (*OF_IMAGES, "training_cases")}
        if task.get("backbone"):
            protocol["backbone"] = Path(str(task["backbone"])).name
        names = ", ".join(Path(one.path).name for one in self.segmenter.every)
        protocol |= {"segmenter": names, "segmenter_sha256": self.segmenter.sha256}
        protocol["postprocess"] = to_config(postprocess, strict=False)
        predictor = self.segmenter.predictor(self.outputs, self.inferer, self.data.reader)
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

    def run(self, cluster: Cluster | None = None) -> Sequence[Path]:
        """Segment every image; return the masks' paths.

        Args:
            cluster: whose workers segment the images; None segments them here. The files are the same.

        Raises:
            UserError: a mask could be written over an image, the folder holds outputs of another segmenter or of other
                settings, or another process writes to it; or as :class:`medmdm.runs.Cluster`.
        """
        cases = self.reader.cases
        cases.announce()
        entries = [*cases.training, *cases.validation, *cases.test, *cases.unlabeled]
        self.outputs.refuse_sources(entries)
        for form in self.outputs.formats:
            form.check(entries, self.segmenter.task["class_names"])
        record = self.segmenter.run_folder(self.outputs.folder, self.config)
        record.open()
        where = Path(self.outputs.folder) / "predictions"
        when_interrupted(f"{where} keeps the masks that are written; the same command writes them all anew.")
        journal = Journal(record, entries, self.segmenter.task.get("images"))
        tasks: dict[str, dict[str, Any]] = {
            str(entry["case"]): {"entry": entry, "overlay": number < self.overlays}
            for number, entry in enumerate(entries)
        }
        with contextlib.ExitStack() as stack:
            stack.callback(journal.save)
            if cluster is None or not tasks:
                done: Iterator[Finished | None] = (self.segment(**task) for task in tasks.values())
            else:
                done = stack.enter_context(cluster.workers()).in_order("segment", tasks)
            masks = write_all(entries, done, self.outputs, self.handlers, journal)
        record.finish(0)
        return masks

    @functools.cached_property
    def _one(self) -> Callable[..., Finished]:
        postprocess = self.segmenter.settled(self.postprocess)
        return functools.partial(
            segment_one,
            reader=self.reader,
            predictor=self.segmenter.predictor(self.outputs, self.inferer, self.reader),
            postprocess=postprocess,
            outputs=self.outputs,
            origin=origin_of(self.segmenter.task["class_names"], self.segmenter.sha256, postprocess),
            known=self.segmenter.task.get("images"),
        )

    def segment(self, entry: Mapping[str, Any], overlay: bool = False) -> Finished:
        """Segment an image and write its files; ``overlay``: draw one, too."""
        return self._one(entry, overlay=overlay)


def origin_of(class_names: Sequence[str], sha256: str, postprocess: Postprocessing) -> Origin:
    """Return what segments the cases, ``sha256`` being the hash of the segmenter's file."""
    return Origin(tuple(class_names), sha256, getattr(postprocess, "background", 0))


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
