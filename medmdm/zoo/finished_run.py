"""A run folder as what can be packed: which kind of run it is, what it learnt, and how well it went."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.artifacts.export import channels_of
from medmdm.artifacts.weights import read_checkpoint
from medmdm.data.files.volumes import WHOLE
from medmdm.errors import UserError, counted
from medmdm.files import file_hash, text_of
from medmdm.intact import load_record
from medmdm.reports.summary import HEADLINES, SUMMARY_FILE
from medmdm.runs.folder import WEIGHTS

KINDS = dict(zip(("mdm_pretrain", "mdm_segment"), WEIGHTS, strict=True))  # of run, and the weights file of each


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    Args:
        folder: of the run.
        bundle: ``"mdm_pretrain"`` or ``"mdm_segment"``.
        record: its ``run.json``.
        plan: of its weights file.
    """

    folder: Path
    bundle: str
    record: Mapping[str, Any] = field(repr=False)
    plan: Mapping[str, Any] = field(repr=False)

    @property
    def segments(self) -> bool:
        """Whether it learnt to segment."""
        return self.bundle == "mdm_segment"

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.folder / KINDS[self.bundle]

    @property
    def task(self) -> Mapping[str, Any]:
        """Of a segmenting run, what its segmenter was fitted to."""
        return self.plan["task"] if self.segments else {}

    @property
    def images(self) -> Mapping[str, Any]:
        """The plan by which images are read."""
        return self.plan["backbone"] if self.segments else self.plan

    @property
    def reads_whole_volumes(self) -> bool:
        """Whether its network is given volumes, and not their slices."""
        return self.images.get("slice_axis") == WHOLE

    @property
    def labels_seen(self) -> str:
        """What its pre-training saw of labels, for a sentence."""
        labelled = (self.images.get("ledger") or {}).get("labelled")
        return f"with the labels of {counted(len(labelled), 'image')}" if labelled else "without labels"

    @property
    def channels(self) -> int:
        """Of the images that the network reads."""
        return channels_of(self.plan) if self.segments else int(self.plan["channels"])

    @property
    def window(self) -> list[int]:
        """Rows and columns (of volumes slices, rows and columns) that the network reads at once."""
        return [int(n) for n in (self.task["window"] if self.segments else self.plan["crop_size"])]

    @functools.cached_property
    def summary(self) -> Mapping[str, Any]:
        """What the report says in numbers; empty where there is none."""
        path = self.folder / SUMMARY_FILE
        if not self.segments or not path.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(text_of(path.read_bytes()))
        except ValueError as error:
            raise UserError(f"{path} is damaged: write it again with python -m medmdm report {self.folder}.") from error
        return content

    @property
    def metrics(self) -> dict[str, float]:
        """Mean scores of the test images, or what a pre-training measured last on its preview crops."""
        if self.segments:
            scores = self.summary.get("scores", {})
            found = {f"mean_{key}": scores[key]["mean"] for key in HEADLINES if key in scores}
        else:
            path, found = self.folder / "metrics.csv", {}
            rows = list(csv.DictReader(text_of(path.read_bytes()).splitlines())) if path.is_file() else []
            for key in rows[0] if rows else ():
                last = [row[key] for row in rows if row[key]][-1:]
                found |= {key: float(last[0])} if last and key.startswith(("ssim_t", "psnr_t")) else {}
        return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def open_run(folder: str | os.PathLike[str]) -> FinishedRun:
    """Open the folder of a pre-training or of a segmenting run.

    Raises:
        UserError: it is neither, has no weights, or other ones than its record says.
    """
    folder = Path(folder)
    try:
        record = load_record(folder / "run.json")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no run.json: name the folder of a pre-training or of a segmenting run."
        ) from error
    config = record.get("config")
    bundle = str(config.get("bundle")) if isinstance(config, dict) else None
    if bundle not in KINDS:
        of = f"of {bundle}" if bundle in ("mdm_study", "mdm_evaluate", "mdm_infer") else "of no known kind"
        raise UserError(f"{folder} is a run {of}: a run of medmdm pretrain or medmdm segment can be packed.")
    path = folder / KINDS[bundle]
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name}: let the run end first (the same command goes on).")
    known = record.get("weights", {}).get(path.name)
    if known is None:
        raise UserError(
            f"{folder}/run.json does not say that the run has ended: let it end (the same command goes on)."
        )
    if known != file_hash(path):
        raise UserError(f"{path} is not the file that run.json tells of: it was changed or comes from another run.")
    found = FinishedRun(folder, bundle, record, read_checkpoint(path)["plan"])
    if found.reads_whole_volumes and not found.segments:
        raise UserError(f"{folder} restores volumes whole: a pre-training on pictures or slices can be packed.")
    return found
