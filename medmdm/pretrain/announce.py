"""Saying which images a run uses, to the user and to the run's record."""

from __future__ import annotations

import logging
from typing import Any

from medmdm.check.sharing import quick_check
from medmdm.data.dataset import CropDataset
from medmdm.data.holdout import HeldOut
from medmdm.data.selection import Selection
from medmdm.runs.processes import is_main_process

logger = logging.getLogger(__name__)


def announce(selection: Selection, slices: Selection, held_out: HeldOut, dataset: CropDataset) -> None:
    """Log which images were found, which were left out, and where the preview crops come from.

    Args:
        selection: the files chosen.
        slices: the same, volumes cut into slices.
        held_out: the preview crops beside them.
        dataset: the training set.

    Raises:
        UserError: an image both trains and is held out.
    """
    shared = quick_check(selection)  # in every process, so that all of them end
    if not is_main_process():
        return
    for sentence in (*slices.sentences, held_out.sentence, *dataset.sentences):
        logger.info(sentence)
    for warning in (*slices.warnings, *shared):
        logger.warning(warning)


def data_record(selection: Selection, held_out: HeldOut, dataset: CropDataset) -> dict[str, Any]:
    """Return what ``run.json`` says of the training images; no file names and no patient ids, which may identify.

    Args:
        selection: the images chosen.
        held_out: the preview crops beside them.
        dataset: the training set, its images decoded.
    """
    data_list = selection.data_list
    return {
        "hash": dataset.data_hash,
        "images": len(dataset.data),
        "patients": len(dataset.patient_ids),
        "data_list": None if data_list is None else data_list.name,
        "licence": None if data_list is None else data_list.information.get("licence"),
        "citation": None if data_list is None else data_list.information.get("citation"),
        "transductive": selection.transductive,
        "preview_crops_seen_in_training": held_out.seen,
    }
