"""What is written of each case: its mask, objects and maps, on the grid of the image's file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmdm.data.files.pictures import image_size
from medmdm.data.reading import LoadedCase
from medmdm.data.writers import write_map, write_mask
from medmdm.heads.prediction import Prediction, Predictor
from medmdm.segment.reconstruction_error import ReconstructionError

__all__ = ["Outputs", "Postprocessing", "Predicted", "in_place"]

Postprocessing = Callable[..., Mapping[str, np.ndarray | None]]


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
        surprise: writes maps of the reconstruction error; None for none. Images are read in the segmenter's windows.
        boxes: a table of the boxes of instances, where instances are found.
    """

    folder: str | os.PathLike[str]
    probabilities: bool = False
    uncertainty: bool = True
    surprise: ReconstructionError | None = None
    boxes: bool = False

    def predict(self, case: LoadedCase, predictor: Predictor, postprocess: Postprocessing) -> Predicted:
        """Predict a case and write what was asked for."""
        prediction = predictor.case(case)
        processed = postprocess(prediction.probabilities, case.spacing)
        mask, instances = processed["mask"], processed.get("instances")
        assert mask is not None
        maps = {}
        if prediction.uncertainty is not None:
            maps = {"uncertainty": prediction.uncertainty[0], "disagreement": prediction.uncertainty[1]}
        if self.surprise is not None:
            maps["surprise"] = predictor.others(self.surprise).values(case)[0]
        return Predicted(mask, instances, maps, self._write(case, prediction, mask, instances, maps))

    def _write(
        self,
        case: LoadedCase,
        prediction: Prediction,
        mask: np.ndarray,
        instances: np.ndarray | None,
        maps: Mapping[str, np.ndarray],
    ) -> dict[str, str]:
        """Write beside the source's grid; a case that is a part of a picture is written in place, 0 around it."""
        source = case.entry["image"][0] if isinstance(case.entry["image"], list) else case.entry["image"]
        volume = case.slicing is not None
        files = {}

        def put(kind: str, values: np.ndarray, suffix: str, write: Callable[..., Path]) -> None:
            files[kind] = f"predictions/{case.name}{'' if kind == 'prediction' else '_' + kind}{suffix}"
            write(Path(self.folder) / files[kind], in_place(values, case), source, case.entry.get("series_uid"))

        for_masks, for_maps = (".nii.gz", ".nii.gz") if volume else (".png", ".tif")
        put("prediction", mask, for_masks, write_mask)
        if instances is not None:
            large = instances.max() > 65535 and not volume  # 16 bits are not enough for a PNG
            put("instances", instances, ".tif" if large else for_masks, write_mask)
        if self.probabilities:
            put("probabilities", prediction.probabilities, for_maps, write_map)
        for name, values in maps.items():
            put(name, values, for_maps, write_map)
        return files


def in_place(values: np.ndarray, case: LoadedCase) -> np.ndarray:
    """Return values of a case's region in the whole picture, 0 around it."""
    region = case.entry.get("region")
    if region is None:
        return values
    whole = np.zeros((*values.shape[:-2], *image_size(case.entry["image"])), values.dtype)
    rows = slice(*region.get("rows", (0, whole.shape[-2])))
    columns = slice(*region.get("columns", (0, whole.shape[-1])))
    whole[..., rows, columns] = values
    return whole
