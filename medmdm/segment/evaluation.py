"""Predict, write and score the cases of a section; what is left behind makes the report again without the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.data.cases import Cases
from medmdm.data.reading import LoadedCase
from medmdm.data.writers import write_map, write_mask
from medmdm.heads.prediction import Prediction, Predictor
from medmdm.metrics.pixels import mean_scores
from medmdm.runs.record import MAPS, EvaluatedCase, Evaluation, Provenance

__all__ = ["evaluate", "write_prediction"]

logger = logging.getLogger(__name__)


def write_prediction(
    folder: Path,
    case: LoadedCase,
    prediction: Prediction,
    processed: Mapping[str, np.ndarray | None],
    probabilities: bool = False,
    surprise: np.ndarray | None = None,
) -> dict[str, str]:
    """Write what was predicted for a case beside its source's grid; return the files by kind, relative to ``folder``.

    ``surprise`` is the map of :class:`medmdm.segment.Surprise`, ``[*spatial]`` on the file's grid, where asked for.

    A case that is a part of a picture is written in place: zeros fill the rest.
    """
    source = case.entry["image"][0] if isinstance(case.entry["image"], list) else case.entry["image"]
    uid = case.entry.get("series_uid")
    volume = case.slicing is not None
    masks, maps = (".nii.gz", ".nii.gz") if volume else (".png", ".tif")
    written = {}

    def put(kind: str, values: np.ndarray, suffix: str, write: Callable[..., Path]) -> None:
        name = f"predictions/{case.name}{'' if kind == 'prediction' else '_' + kind}{suffix}"
        write(folder / name, in_place(values, case), source, uid)
        written[kind] = name

    mask, instances = processed["mask"], processed.get("instances")
    assert mask is not None
    put("prediction", mask, masks, write_mask)
    if instances is not None:
        large = instances.max() > 65535 and not volume  # 16 bits are not enough for a PNG
        put("instances", instances, ".tif" if large else masks, write_mask)
    if probabilities:
        put("probabilities", prediction.probabilities, maps, write_map)
    if prediction.uncertainty is not None:
        put("uncertainty", prediction.uncertainty[0], maps, write_map)
        put("disagreement", prediction.uncertainty[1], maps, write_map)
    if surprise is not None:
        put("surprise", surprise, maps, write_map)
    return written


def in_place(values: np.ndarray, case: LoadedCase) -> np.ndarray:
    """Return values of a case's region in the whole picture, 0 around it."""
    region = case.entry.get("region")
    if region is None:
        return values
    from medmdm.data.files.pictures import image_size

    whole = np.zeros((*values.shape[:-2], *image_size(case.entry["image"])), values.dtype)
    rows = slice(*region.get("rows", (0, whole.shape[-2])))
    columns = slice(*region.get("columns", (0, whole.shape[-1])))
    whole[..., rows, columns] = values
    return whole


def evaluate(
    folder: Path,
    loaded: Sequence[LoadedCase],
    cases: Cases,
    predictor: Predictor,
    postprocess: Callable[..., dict[str, np.ndarray | None]],
    stamp: Mapping[str, Any],
    protocol: Mapping[str, Any],
    section: str,
    probabilities: bool = False,
    study: str | None = None,
    surprise: Predictor | None = None,
) -> dict[str, float]:
    """Predict and write every case, and write ``evaluation.json``, from which :mod:`medmdm.reports` makes the report.

    Args:
        folder: run folder.
        loaded: the cases.
        cases: the data set they are of.
        predictor: makes the predictions.
        postprocess: probabilities → masks, see :class:`medmdm.segment.PostProcess`.
        stamp: see :func:`medmdm.runs.provenance.ledger_stamp`.
        protocol: JSON-able: how the model came about.
        section: which section of the data list they are.
        probabilities: write them too.
        study: the ``study.csv`` whose learning curve the report shall show.
        surprise: reads maps of surprise; None for none.

    Returns:
        Mean Dice and IoU over the labelled cases.
    """
    records, scores = [], []
    for case in loaded:
        prediction = predictor.case(case)
        processed = postprocess(prediction.probabilities, case.spacing)
        surprising = None if surprise is None else surprise.values(case)[0]
        files = write_prediction(folder, case, prediction, processed, probabilities, surprising)
        if case.truth is not None:
            mask = processed["mask"]
            assert mask is not None
            scores.append(mean_scores(mask, case.truth, cases.num_classes, cases.ignore))
            logger.info("%s: Dice %.4f, IoU %.4f", case.name, scores[-1]["dice"], scores[-1]["iou"])
        records.append(_record(case, files, folder, Path(cases.dataset_dir)))
    information = {} if cases.data_list is None else dict(cases.data_list.information)
    name = cases.dataset_dir.name if cases.data_list is None else cases.data_list.name
    labelled = cases.data_list is not None
    Evaluation(
        folder=folder,
        # Labels that nobody drew are called so wherever the name of the data set is printed.
        dataset=f"{name} ({information['label_standard']})" if "label_standard" in information else name,
        dataset_dir=Path(cases.dataset_dir),
        section=section,
        class_names=tuple(cases.class_names if labelled else protocol["class_names"]),
        cases=tuple(records),
        ignore=cases.ignore,
        data_list={"name": name, **information},
        provenance=Provenance(stamp["kind"], tuple(stamp["overlapping"]), stamp["sentence"]),
        protocol=protocol,
        study=None if study is None else Path(study),
    ).save()
    if not scores:
        return {}
    return {name: float(np.nanmean([score[name] for score in scores])) for name in ("dice", "iou")}


def _record(case: LoadedCase, files: Mapping[str, str], folder: Path, dataset_dir: Path) -> EvaluatedCase:
    entry = case.entry
    images, patient = entry["image"], entry.get("patient_id")
    written = {kind: folder / name for kind, name in files.items()}
    return EvaluatedCase(
        name=case.name,
        image=[dataset_dir / image for image in images] if isinstance(images, list) else dataset_dir / images,
        label=dataset_dir / entry["label"] if entry.get("label") else None,
        prediction=written.get("prediction"),
        instances=written.get("instances"),
        maps={name: written[name] for name in MAPS if name in written},
        region=entry.get("region"),
        series_uid=entry.get("series_uid"),
        patient=None if patient is None else str(patient),
        spacing=case.spacing,
        columns={key: str(value) for key, value in entry.get("columns", {}).items() if value is not None},
    )
