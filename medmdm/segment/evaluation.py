"""Predict and score the cases of a section; what is left behind makes the report again without the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.data.reading import LoadedCase
from medmdm.data.writers import write_map, write_mask
from medmdm.errors import UserError, counted
from medmdm.files import mark_outputs
from medmdm.heads.predictor import Predictor
from medmdm.metrics.instances import connected_objects
from medmdm.progress import followed
from medmdm.reports import CaseArrays, Report
from medmdm.runs.folder import RunFolder
from medmdm.runs.mean_mask import keep_mean_mask
from medmdm.runs.record import EvaluatedCase, Evaluation, Provenance
from medmdm.segment.cross_validation import FoldPredictor
from medmdm.segment.feature_panel import write_feature_panel
from medmdm.segment.formats.base import CaseFormat, Format, RunFormat
from medmdm.segment.formats.measurements import object_scores
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import AUTO, Postprocessing
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
        probabilities: ``[K, *spatial]``, where a format asks for them.
        object_scores: of labels of objects: the mean probability of each predicted object, by rising number.
    """

    mask: np.ndarray
    instances: np.ndarray | None
    maps: Mapping[str, np.ndarray]
    files: Mapping[str, str]
    probabilities: np.ndarray | None = None
    object_scores: Sequence[float] | None = None


@dataclass(frozen=True)
class Outputs:
    """What to write of each case, into ``predictions/`` of a folder.

    Args:
        folder: the run folder.
        probabilities: a map for each class.
        uncertainty: maps of entropy and of disagreement between the members of an ensemble.
        reconstruction_error: writes its maps; None for none. Images are read in the segmenter's windows.
        boxes: a table of the boxes of instances, where instances are found, of images whose labels are not looked at;
            their scores need the probabilities of the whole image in memory.
        formats: of :mod:`medmdm.segment.formats`: what else is written of such images.
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
    formats: Sequence[Format] = ()

    def __post_init__(self) -> None:
        for form in self.formats:
            if not isinstance(form, (CaseFormat, RunFormat)):
                given = f"write_formats holds {form!r}"
                raise UserError(f'{given}: give a list of formats such as [{{"_target_": "medmdm.segment.GeoJSON"}}].')
        kinds = [type(form).__name__ for form in self.formats]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise UserError(f"write_formats names {sorted(twice)[0]} twice: its files would have the same names.")
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
        if isinstance(predictor, FoldPredictor):
            postprocess = predictor.postprocess[case.name]
        kept = any(form.needs_probabilities for form in self.formats)
        # The table of boxes says how sure each is; a post-processing of the caller's own has them anyway.
        kept = kept or (self.boxes and getattr(postprocess, "instances", "") not in (None, AUTO))
        judged = case.instances is not None  # by the average precision of its objects, which ranks them
        made = make_masks(case, predictor, postprocess, self.probabilities or kept or judged)
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
        shares = {"probabilities": made.probabilities} if self.probabilities else {}
        for name, values in {**shares, **maps}.items():
            files[name] = self._write(f"_{name}", values, for_maps, write_map, case)
        scores = None
        if judged and made.probabilities is not None:
            scores = object_scores(
                connected_objects(mask) if instances is None else instances, mask, made.probabilities
            )
        return Predicted(mask, instances, maps, files, made.probabilities if kept else None, scores)

    def _write(self, kind: str, values: np.ndarray, suffix: str, write: Callable[..., Path], case: LoadedCase) -> str:
        """Write on the source's grid; a case that is a part of a picture is written in place, 0 around it."""
        name, image = f"predictions/{case.name}{kind}{suffix}", case.entry["image"]
        source = image[0] if isinstance(image, list) else image
        write(Path(self.folder) / name, case.in_place(values), source, case.entry.get("series_uid"))
        return name


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
    outputs = replace(outputs, formats=(), boxes=False)  # of images without labels; probabilities would stay for them
    mark_outputs(Path(outputs.folder) / "predictions")
    if outputs.report:
        write_feature_panel(tested, predictor, Path(outputs.folder))
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
        object_scores=predicted.object_scores,
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
        {key: one.entry.get(key) for key in kept}
        | dict(made.files, case=name, spacing=one.spacing, window=one.window, object_scores=made.object_scores)
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
