"""A saved segmenter, or an ensemble of several, ready to use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from medmdm.artifacts.export import channels_of
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.components import instantiate
from medmdm.data.reading import CaseReader
from medmdm.errors import UserError
from medmdm.files import file_hash
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.task import Reading
from medmdm.runs.folder import RunFolder
from medmdm.segment.ensemble import EnsemblePredictor
from medmdm.segment.evaluation import Outputs
from medmdm.segment.label_defaults import follow_saved
from medmdm.segment.postprocessing import PostProcess, Postprocessing


@dataclass(frozen=True)
class OpenSegmenter:
    """A segmenter ready to use, and what its plan says of how; or an ensemble of several, of which it is the first.

    Args:
        path: of its file.
        model: image → logits.
        plan: of its file.
        device: where it runs.
        others: the further segmenters of an ensemble; their post-processing is the first one's.

    Raises:
        UserError: the others tell other classes apart, or give other maps of objects.
    """

    path: str
    model: nn.Module = field(repr=False)
    plan: Mapping[str, Any] = field(repr=False)
    device: torch.device
    others: Sequence[OpenSegmenter] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for other in self.others:
            if other.classes != self.classes:
                found = f"{self.path} tells {self.classes} apart, {other.path} {other.classes}"
                raise UserError(f"segmenter: {found}: an ensemble is of segmenters of the same classes.")
            if other.maps != self.maps:
                found = f"{self.path} gives {self.maps}, {other.path} {other.maps}"
                raise UserError(f"segmenter: {found}: an ensemble is of segmenters of the same maps of objects.")

    @property
    def classes(self) -> dict[int, str]:
        """The names of its classes by their numbers."""
        task = self.task  # files of 0.2 do not say which of the classes are declared
        return {int(number): task["class_names"][number] for number in task.get("classes", range(task["num_classes"]))}

    @property
    def maps(self) -> list[str]:
        """The names of the maps of objects that it gives beside the classes."""
        return list(getattr(self.model, "maps", ()))

    @property
    def every(self) -> tuple[OpenSegmenter, ...]:
        """All segmenters of the ensemble."""
        return self, *self.others

    @property
    def sha256(self) -> str:
        """The hash of its file; of an ensemble that of the hashes, in their order."""
        hashes = [file_hash(Path(one.path)) for one in self.every]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    @property
    def network(self) -> nn.Module:
        """The model, ready for tools that trace or script a network at the size of its windows.

        Raises:
            UserError: it is an ensemble.
        """
        if self.others:
            raise UserError("segmenter: several segmenters, which may read an image differently, are no one network.")
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
        """Return a post-processing with the segmenter's own settings where it leaves them to the labels.

        Raises:
            UserError: it needs a map that the segmenter does not give.
        """
        settled = follow_saved(postprocess, lambda: self.postprocess)
        if isinstance(settled, PostProcess):
            settled.check_maps(self.maps)
        return settled

    def run_folder(
        self, folder: str | os.PathLike[str], config: Mapping[str, Any], data: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Return the folder of what is made with it, known by the segmenter's hash: a file may come to hold another."""
        known = {"bundle": "mdm_infer", **config, "segmenter_sha256": self.sha256}
        return RunFolder(Path(folder), known, {}, dict(data or {}), 0)

    def predictor(self, outputs: Outputs, inferer: Inferer | None, reader: CaseReader) -> Predictor:
        """Return what predicts with it the cases of ``reader``; an inferer is for the first of an ensemble alone."""
        further: dict[str, Any] = {"device": self.device, "inferer": inferer}
        if not self.others:
            return Predictor(self.model, self.reading, outputs.uncertainty, **further)
        others = [
            (CaseReader(reader.cases, one.plan["backbone"], reader.slice_cache), one.predictor(outputs, None, reader))
            for one in self.others
        ]
        return EnsemblePredictor(self.model, self.reading, outputs.uncertainty, **further, others=others)


def open_segmenter(
    path: str | os.PathLike[str] | Sequence[str],
    backbone: str | os.PathLike[str] | None = None,
    for_maps: bool = False,
    device: torch.device | str = "cpu",
) -> OpenSegmenter:
    """Open a file of :class:`medmdm.segment.Segmentation`.

    Args:
        path: the file; or several, for an ensemble whose probabilities are averaged. Each reads images as it was fitted
            to, so that they may be of slices along different axes.
        backbone: the weights file, for a segmenter that was saved without it.
        for_maps: the reconstruction error is read with the backbone, so that one may be given with any segmenter.
        device: where to compute; ``"meta"`` takes no memory for weights, to see whether everything fits.

    Raises:
        UserError: as :func:`medmdm.artifacts.load_segmenter`, or the segmenters do not fit together.
    """
    device = torch.device(device)
    if not isinstance(path, (str, os.PathLike)):
        if not path:
            raise UserError("segmenter is an empty list: name one file or several.")
        first, *others = [open_segmenter(one, backbone, for_maps, device) for one in path]
        return replace(first, others=others)
    loaded_on = "meta" if device.type == "meta" else "cpu"
    if for_maps and read_checkpoint(Path(path), loaded_on).get("kind") == "network":
        backbone = None
    model, plan = load_segmenter(path, backbone=backbone, device=loaded_on)
    return OpenSegmenter(str(path), model.to(device), plan, device)
