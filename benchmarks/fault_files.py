"""The files that the program reads back, and what each is read as; for ``faults.py``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.backbones.cache import CachedExtractor
from medmdm.cli import main as command_line
from medmdm.data.files.decoding import decode, decode_label
from medmdm.data.lists import SECTIONS, load_data_list
from medmdm.data.slices import VolumeStore, open_slices
from medmdm.errors import UserError
from medmdm.intact import load_record
from medmdm.pretrain import Checkpoints
from medmdm.pretrain.log import COLUMNS, _rows_up_to
from medmdm.reports.study import read_study
from medmdm.runs.mean_mask import MEAN_MASK_FILE, keep_mean_mask, read_mean_mask
from medmdm.runs.record import Evaluation
from medmdm.segment import grid
from tests.damage.flips import files_of
from tests.made import made_extractor


@dataclass(frozen=True)
class File:
    """A file and its reader.

    Args:
        kind: what it is.
        path: where it lies.
        load: reads it, as the program does; what is computed again where it is damaged counts as read.
    """

    kind: str
    path: Path
    load: Callable[[], Any]

    def restore(self, whole: bytes) -> None:
        """Write the whole file again, and take away what was put aside."""
        self.path.write_bytes(whole)
        self.path.with_suffix(".damaged").unlink(missing_ok=True)


def weights(finished: Path, scratch: Path) -> Iterator[File]:
    """``model.pt``, ``segmenter.pt`` and checkpoints."""
    segmenter = finished / "segment" / "run" / "segmenter.pt"
    yield File("segmenter", segmenter, lambda: _state(*load_segmenter(segmenter)))
    path = finished / "pretrain" / "run" / "model.pt"
    if not path.is_file():
        return
    yield File("weights", path, lambda: _state(*load_pretrained(path)))
    checkpoints = Checkpoints(finished / "pretrain" / "run" / "checkpoints")
    older, newest = checkpoints.paths()

    def load() -> Any:
        found = checkpoints.load_newest()
        if found is not None and not newest.exists():  # put aside, with a warning; the run goes on from the one before
            raise UserError("the newest checkpoint is damaged")
        return found

    yield File("checkpoint", newest, load)
    whole = newest.read_bytes()

    def load_older() -> Any:
        newest.unlink(missing_ok=True)
        try:
            return checkpoints.load_newest()
        finally:
            newest.write_bytes(whole)

    yield File("checkpoint before", older, load_older)


def _state(network: torch.nn.Module, plan: Any) -> Any:
    return [network.state_dict(), plan]


def records(finished: Path, scratch: Path) -> Iterator[File]:
    """``run.json`` of every command, evaluations with their masks, cells, ``metrics.csv``."""
    for name in ("pretrain", "segment", "study", "infer", "evaluate"):
        path = finished / name / "run" / "run.json"
        if path.is_file():
            yield File(f"run.json of {name}", path, lambda path=path: load_record(path))  # type: ignore[misc]
    folder = finished / "segment" / "run"
    yield File("evaluation.json", folder / "evaluation.json", lambda: vars(Evaluation.load(folder)))
    keep_mean_mask(scratch, np.random.default_rng(0).integers(0, 2, (28, 40)).astype(np.uint8))
    yield File("mean mask", scratch / MEAN_MASK_FILE, lambda: read_mean_mask(scratch))
    for path in sorted((finished / "study" / "run" / "cells").glob("*.json")):
        content = load_record(path)
        # None: computed again.
        yield File("cell", path, lambda path=path, content=content: grid.finished(path, content["key"]) or content)  # type: ignore[misc]
    log = finished / "pretrain" / "run" / "metrics.csv"
    if not log.is_file():
        return
    # Their digest is in the checkpoint (tests/pretrain/test_log.py): that it is read is what counts here.
    yield File("metrics.csv", log, lambda: _rows_up_to(log, 6, list(COLUMNS)) and None)
    table = finished / "study" / "run" / "study.csv"
    # The table is made of the cells, and has no digest either.
    yield File("study.csv", table, lambda: read_study(table) is None)


def caches(finished: Path, scratch: Path) -> Iterator[File]:
    """Features and decoded volumes, which are computed again."""
    x = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    CachedExtractor(made_extractor(), scratch / "features")(x)
    (path,) = (scratch / "features").rglob("*.pt")
    yield File("features", path, lambda: CachedExtractor(made_extractor(), scratch / "features")(x))
    values = np.random.default_rng(0).integers(-500, 500, (12, 14, 5)).astype(np.int16)
    volume = scratch / "volume.nii"
    nib.save(nib.Nifti1Image(values, np.eye(4)), volume)
    store = VolumeStore(scratch / "decoded")

    def load() -> Any:
        open_slices.cache_clear()
        found = store.get(str(volume))
        return [open_slices(found.path).copy(), found.quantiles, found.foreground, found.digest]

    load()
    array = store.get(str(volume)).path
    yield File("slices", array, load)
    yield File("slices' record", array.with_suffix(".json"), load)


def prepared(finished: Path, scratch: Path) -> Iterator[File]:
    """What ``prepare`` wrote, read back by the command itself and by those that train."""
    folder = finished / "prepare" / "run"
    data_list = folder / "dataset.json"

    def again() -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            status = command_line(["prepare", "folder", str(scratch / "data"), str(folder)])
        if status:
            raise UserError(said.getvalue())
        return dict(sorted(files_of(folder).items()))

    again()
    yield File("prepared.jsonl", folder / "prepared.jsonl", again)
    yield File("dataset.json", data_list, again)

    def listed() -> Any:
        found = load_data_list(data_list)
        # Names that the user may change; images and labels must be those that were written.
        return [
            [decode(folder / entry["image"]).array, decode_label(folder / entry["label"], None).array]
            for name in SECTIONS
            for entry in getattr(found, name)
        ]

    yield File("data list", data_list, listed)
    for path in sorted((folder / "labels").glob("*.png"))[:2]:
        yield File("label", path, lambda path=path: decode_label(path, None).array)  # type: ignore[misc]
    mask = next((finished / "infer" / "run" / "predictions").glob("*.png"))
    yield File("predicted mask", mask, lambda: decode_label(mask, None).array)


KINDS: tuple[Callable[[Path, Path], Iterator[File]], ...] = (weights, records, caches, prepared)
