"""Predict and score the cases of a section; what is left behind makes the report again without the model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmdm.data.identity import data_identity
from medmdm.data.lists import SECTIONS
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.data.selection import Selection
from medmdm.data.splits import default_rule
from medmdm.data.transforms.augmentation import modality_of
from medmdm.data.writers import write_map, write_mask
from medmdm.errors import UserError, counted
from medmdm.files import mark_outputs
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading, Task
from medmdm.metrics.baselines import mean_mask
from medmdm.progress import followed
from medmdm.reports import CaseArrays, Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.mean_mask import keep_mean_mask
from medmdm.runs.record import EvaluatedCase, Evaluation, Provenance
from medmdm.segment.cross_validation import FoldPredictor
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import Postprocessing
from medmdm.segment.reconstruction_error import ReconstructionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predicted:
    """What was predicted for a case, and the files that hold it.

    Args:
        mask: class numbers, ``[*spatial]`` on the grid of the case.
        instances: numbers of objects, where the post-processing finds them.
        maps: ``[*spatial]`` float32 by name: ``uncertainty``, ``disagreement``, ``surprise``, those that were made.
        files: by kind, relative to the folder.
    """

    mask: np.ndarray
    instances: np.ndarray | None
    maps: Mapping[str, np.ndarray]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Outputs:
    """What to write of each case, into ``predictions/`` of a folder.

    Args:
        folder: the run folder.
        probabilities: a map for each class.
        uncertainty: maps of entropy and of disagreement between the members of an ensemble.
        reconstruction_error: writes its maps; None for none. Images are read in the segmenter's windows.
        boxes: a table of the boxes of instances, where instances are found.
        report: the tables and pages of the report.
        study: the ``study.csv`` of a study, whose learning curve the report shows.
        label_plan: what more labels would give, see :class:`medmdm.segment.LabelPlanner`.

    Raises:
        UserError: there is no such study.
    """

    folder: str | os.PathLike[str]
    probabilities: bool = False
    uncertainty: bool = True
    reconstruction_error: ReconstructionError | None = None
    boxes: bool = False
    report: bool = True
    study: str | os.PathLike[str] | None = None
    label_plan: bool = False

    def __post_init__(self) -> None:
        if self.study is not None and not Path(self.study).is_file():
            raise UserError(f"study names {self.study}, which does not exist: give the study.csv of a study.")

    def refuse_sources(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """See that no mask can be written over what it is made from, before anything is written.

        Raises:
            UserError: an image or a label lies where the masks go.
        """
        masks = (Path(self.folder) / "predictions").resolve()
        for entry in entries:
            images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
            for source in (*images, *([entry["label"]] if entry.get("label") else [])):
                if masks in (real := Path(source).resolve()).parents or masks == real:
                    where = Path(self.folder) / "predictions"
                    place = f"{where}, where the masks are written, and could be written over"
                    raise UserError(f"{source} lies in {place}: choose another folder to write to.")

    def predict(self, case: LoadedCase, predictor: Predictor | FoldPredictor, postprocess: Postprocessing) -> Predicted:
        """Predict a case and write what was asked for."""
        made = make_masks(case, predictor, postprocess, self.probabilities)
        mask, instances = made.mask, made.instances
        maps = {}
        if made.uncertainty is not None:
            maps = {"uncertainty": made.uncertainty[0], "disagreement": made.uncertainty[1]}
        if self.reconstruction_error is not None:
            model, device = self.reconstruction_error.to(predictor.device), predictor.device
            reader = Predictor(model, predictor.reading, device=device, inferer=predictor.inferer)
            maps["surprise"] = reader.values(case)[0]
        for_masks, for_maps = (".nii.gz", ".nii.gz") if case.slicing is not None else (".png", ".tif")
        files = {"prediction": self._write("", mask, for_masks, write_mask, case)}
        if instances is not None:
            large = instances.max() > 65535 and case.slicing is None  # 16 bits are not enough for a PNG
            suffix = ".tif" if large else for_masks
            files["instances"] = self._write("_instances", instances, suffix, write_mask, case)
        shares = {} if made.probabilities is None else {"probabilities": made.probabilities}
        for name, values in {**shares, **maps}.items():
            files[name] = self._write(f"_{name}", values, for_maps, write_map, case)
        return Predicted(mask, instances, maps, files)

    def _write(self, kind: str, values: np.ndarray, suffix: str, write: Callable[..., Path], case: LoadedCase) -> str:
        """Write on the source's grid; a case that is a part of a picture is written in place, 0 around it."""
        name, image = f"predictions/{case.name}{kind}{suffix}", case.entry["image"]
        source = image[0] if isinstance(image, list) else image
        write(Path(self.folder) / name, case.in_place(values), source, case.entry.get("series_uid"))
        return name


@dataclass(frozen=True)
class LabelledData:
    """The cases that a head learns from, and those that it is tested on.

    Args:
        reader: reads cases as the backbone was trained; knows the data set.
        section: that is tested.
        shots: number of training cases; None for all.
        rule: which: ``"paper"`` or ``"seeded"``, see :func:`medmdm.data.subset`; None for the paper's rule on its two
            sets, GlaS and MoNuSeg, and the seeded one on all others.
        draw: seed of the subset.

    Raises:
        UserError: the section is empty, or there are fewer training cases than shots.
    """

    reader: CaseReader
    section: str = "test"
    shots: int | None = None
    rule: str | None = None
    draw: int = 0

    def __post_init__(self) -> None:
        if self.rule is None:
            known = self.cases.data_list
            object.__setattr__(self, "rule", default_rule(None if known is None else known.name))
        if not getattr(self.cases, self.section, None) and not self.cross_validated:
            others = ", ".join(name for name in SECTIONS if getattr(self.cases, name)) or "none"
            need = f"correct the data list or choose another section (with cases: {others})"
            raise UserError(f"There is no {self.section} case to evaluate: {need}.")
        if self.shots is not None:
            self.draw_support(self.shots, self.draw)

    @property
    def cases(self) -> Selection:
        """The data set."""
        return self.reader.cases

    @property
    def cross_validated(self) -> bool:
        """Whether there is no test case, so that labelled training cases are left out in turn."""
        return self.section == "test" and not self.cases.test and bool(self.cases.training)

    @property
    def subset(self) -> dict[str, Any] | None:
        """How the training cases were chosen, None for all of them."""
        return None if self.shots is None else {"rule": self.rule, "draw": self.draw}

    def draw_support(self, shots: int, draw: int) -> Sequence[dict[str, Any]]:
        """Return the entries of so many training cases."""
        return self.cases.subset(shots, str(self.rule), draw).training

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of all cases that are used."""
        return [*self.cases.training, *self.cases.validation, *self.cases.test]

    def support(self) -> list[LoadedCase]:
        """Read the training cases."""
        entries = self.cases.training if self.shots is None else self.draw_support(self.shots, self.draw)
        return [self.reader.read(entry) for entry in followed(entries, "reading labelled images")]

    def tested(self) -> list[LoadedCase]:
        """Read the cases to test on."""
        return [self.reader.read(e) for e in followed(getattr(self.cases, self.section), "reading images to test on")]

    def others(self, support: Sequence[LoadedCase]) -> list[LoadedCase]:
        """Read the unlabelled cases, and the training cases that are not in the support, without their labels."""
        names = {case.name for case in support}
        rest = [entry for entry in self.cases.training if str(entry["case"]) not in names]
        entries = [*rest, *self.cases.unlabeled]
        without = [{k: v for k, v in entry.items() if k != "label"} for entry in entries]
        return [self.reader.read(entry) for entry in followed(without, "reading unlabelled images")]

    def task(
        self,
        support: Sequence[LoadedCase],
        others: Sequence[LoadedCase],
        reading: Reading,
        seed: int,
        device: torch.device,
    ) -> Task:
        """Return what is to be learnt from the support, with the images of other cases as unlabelled ones."""
        examples = [example for case in support for example in case.examples]
        unlabelled = [example.image for case in others for example in case.examples]
        known = self.cases.data_list
        told = "" if known is None else json.dumps(known.information.get("modality", ""))
        modality = modality_of(told, is_volume=support[0].slicing is not None, channels=len(examples[0].image))
        classes = self.cases.classes
        return Task(examples, self.cases.num_classes, reading, seed, device, unlabelled, modality, classes)

    def mean_mask(self, support: Sequence[LoadedCase], tested: Sequence[LoadedCase]) -> NDArray[np.uint8] | None:
        """Return the mean of the support's masks, None where it and the cases to test on are not all of one grid.

        That is one shape, and for volumes one spacing.
        """
        first = support[0]
        if any(case.shape != first.shape for case in [*support, *tested]):
            return None
        spacings = [case.spacing for case in [*support, *tested] if case.slicing is not None]
        if not np.allclose(np.array(spacings, float), np.array(spacings[:1], float), rtol=1e-3):
            return None
        labels = [case.truth for case in support if case.truth is not None]
        return mean_mask(labels, self.cases.num_classes, self.cases.ignore)

    def identity(
        self, tested: Sequence[LoadedCase], training: Sequence[LoadedCase] = (), others: Sequence[LoadedCase] = ()
    ) -> dict[str, Any]:
        """Return what a run's record says of the images: hashes of their pixels and order, and how many there are."""
        left_out = "test" if self.cross_validated else None
        read = {"training": training, self.section: tested}
        return data_identity({name: cases for name, cases in read.items() if cases and name != left_out}, others)

    def lacking(self, support: Sequence[LoadedCase], draw: int) -> list[str]:
        """Return a sentence for each class that a head cannot learn from these cases."""
        seen = {int(number) for case in support for example in case.examples for number in example.label.unique()}
        which = f"none of the {len(support)} labelled images holds class"
        which = which if len(support) > 1 else "the labelled image does not hold class"
        absent = (number for number in self.cases.classes if number not in seen)
        return [f"{which} {number} {self.cases.class_names[number]} (draw {draw})" for number in absent]

    def announce(self) -> None:
        """Log what was chosen, and what the user should act on."""
        for sentence in self.cases.sentences:
            logger.info(sentence)
        for warning in self.cases.warnings:
            logger.warning(warning)


def evaluate(
    run: RunFolder,
    tested: list[LoadedCase],
    data: LabelledData,
    predictor: Predictor | FoldPredictor,
    postprocess: Postprocessing,
    outputs: Outputs,
    report: Report,
    provenance: Provenance,
    protocol: Mapping[str, Any],
    support: Sequence[LoadedCase] = (),
) -> dict[str, float]:
    """Predict, write and score every case; write ``evaluation.json`` and, where asked for, the report's pages.

    Args:
        run: is finished when the cases are scored.
        tested: the cases; each gives up its images when it was predicted, so that memory lasts for what is kept.
        data: that they are of.
        predictor: makes the predictions.
        postprocess: probabilities → masks, see :class:`medmdm.segment.PostProcess`.
        outputs: what to write.
        report: scores them.
        provenance: see :func:`medmdm.runs.record.find_provenance`.
        protocol: JSON-able: how the model came about.
        support: the labelled cases that it learnt from, where they are known: the mean of their masks is written too.

    Returns:
        Mean Dice and IoU over the labelled cases, as in ``summary.json``.
    """
    logger.info("%s: %s", provenance.kind, provenance.sentence)
    mark_outputs(Path(outputs.folder) / "predictions")
    found: dict[str, tuple[LoadedCase, Predicted]] = {}
    for number, case in enumerate(followed(tested, "predicting")):
        found[case.name] = replace(case, examples=()), outputs.predict(case, predictor, postprocess)
        tested[number] = found[case.name][0]
    evaluation = _record(found, data, outputs, provenance, protocol)
    keep_mean_mask(evaluation.folder, data.mean_mask(support, tested) if support else None)
    evaluation.save()
    scores = report.score(evaluation, lambda case: _arrays(*found[case.name]))
    for scored in scores.cases:
        logger.info("%s: Dice %.4f, IoU %.4f", scored.name, scored.scores["dice"], scored.scores["iou"])
    if scores.means:
        logger.info(
            "mean over %s: Dice %.4f, IoU %.4f", counted(len(tested), "case"), scores.means["dice"], scores.means["iou"]
        )
    run.finish(0)
    if outputs.report:
        logger.info("report: %s", report.write(evaluation, scores))
    return scores.means


def _arrays(case: LoadedCase, predicted: Predicted) -> CaseArrays:
    """Return what the files of a case hold, which were decoded before."""
    if case.truth is None:
        raise UserError(f"{case.name} has no label in the data list: it cannot be scored.")
    return CaseArrays(
        truth=case.truth,
        prediction=predicted.mask,
        truth_instances=case.instances,
        predicted_instances=predicted.instances,
        image=case.pixels(),
        # In the order of a NIfTI file's memory, so that their means round as those read from files do.
        maps={k: v if case.slicing is None else np.asfortranarray(v) for k, v in predicted.maps.items()},
        affine=case.label_affine,
        window=case.window,
    )


def _record(
    found: Mapping[str, tuple[LoadedCase, Predicted]],
    data: LabelledData,
    outputs: Outputs,
    provenance: Provenance,
    protocol: Mapping[str, Any],
) -> Evaluation:
    cases, folder = data.cases, Path(outputs.folder)
    kept = ("image", "label", "region", "series_uid", "patient_id", "columns")  # of an entry of the data list
    entries = [
        {key: one.entry.get(key) for key in kept} | dict(made.files, case=name, spacing=one.spacing, window=one.window)
        for name, (one, made) in found.items()
    ]
    information = {} if cases.data_list is None else dict(cases.data_list.information)
    name = cases.dataset_dir.name if cases.data_list is None else cases.data_list.name
    return Evaluation(
        folder=folder,
        # Labels that nobody drew are called so wherever the name of the data set is printed.
        dataset=f"{name} ({information['label_standard']})" if "label_standard" in information else name,
        dataset_dir=Path(cases.dataset_dir),
        section="training" if data.cross_validated else data.section,
        class_names=tuple(name if number in cases.classes else None for number, name in enumerate(cases.class_names)),
        cases=tuple(EvaluatedCase.of(entry, folder) for entry in entries),
        ignore=cases.ignore,
        data_list={"name": name, **information},
        provenance=provenance,
        protocol=protocol,
        study=None if outputs.study is None else Path(outputs.study),
    )
