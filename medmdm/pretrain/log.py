"""What a run shows while it goes on: held-out scores, progress bar, log lines, ``metrics.csv``, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from medmdm.check.sharing import quick_check
from medmdm.data.dataset import CropDataset
from medmdm.data.holdout import HeldOut
from medmdm.data.selection import Selection
from medmdm.errors import counted, refuse_full_disk
from medmdm.files import atomic_write, is_main_process, text_hash, world_size
from medmdm.intact import unreadable
from medmdm.progress import EVERY, Progress, duration
from medmdm.runs.processes import average, largest

logger = logging.getLogger(__name__)

_TIMED = slice(4, 6)  # of the columns: those that are other ones in every session
COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "images_per_second", "seconds")


class Periodic:
    """A handler that calls itself at step 0 of a new run, at every multiple of ``every``, and after the last step."""

    every: int

    @staticmethod
    def leave(engine: Engine, scores: Mapping[str, float]) -> None:
        """Leave held-out scores for the log, beside those of other handlers."""
        engine.state.heldout = {**(getattr(engine.state, "heldout", None) or {}), **scores}

    def attach(self, engine: Engine) -> None:
        """Register the handler on a trainer; before the handler that writes the log, if it leaves scores there."""
        engine.add_event_handler(Events.STARTED, self.first)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.maybe)

    def first(self, engine: Engine) -> None:
        """Act on the untrained network, unless the run goes on from a checkpoint."""
        if engine.state.iteration == 0:
            self(engine)

    def maybe(self, engine: Engine) -> None:
        """Act if it is time."""
        if engine.state.iteration % self.every == 0 or engine.state.iteration == engine.state.epoch_length:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class StepLog:
    """Write a line every so many steps, and one whenever held-out images were scored.

    Where steps are slow, the log says now and then how far it has come (:class:`medmdm.progress.Progress`).

    ``metrics.csv`` has one row per line: mean loss since the last row, learning rate and gradient norm of the step,
    speed and seconds since the session began, then the held-out scores; TensorBoard has the same, and the pictures of
    previews. When a run resumes, rows after the checkpoint are cut off, so that each step has one row. Attach it after
    the handler that scores held-out images. The trainer keeps a digest of the rows, but for speed and seconds, in its
    checkpoints; rows that changed since get a warning.

    Args:
        folder: the run folder.
        every: steps between two lines, at least 1.
        scores: names of the held-out scores that ``engine.state.heldout`` may hold, in the order of the columns.
        progress: show a progress bar; by default only in a terminal.
    """

    folder: str | Path
    every: int = 50
    scores: Sequence[str] = ()
    progress: bool | None = None
    writer: SummaryWriter | None = field(default=None, init=False)
    bar: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.folder) / "metrics.csv"
        self.columns = [*COLUMNS, *self.scores]

    def attach(self, engine: Engine) -> None:
        """Register the handler on a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        for event in (Events.COMPLETED, Events.TERMINATE, Events.EXCEPTION_RAISED):
            engine.add_event_handler(event, self.close)

    def start(self, engine: Engine) -> None:
        """Open the files, without rows after the step that the run goes on from."""
        self.begun = self.since = time.perf_counter()
        self.images = 0
        if not is_main_process():
            return
        kept = _rows_up_to(self.path, engine.state.iteration, self.columns)
        found, known = "", getattr(engine.state, "log_digest", None)
        for row in kept.splitlines()[1:]:
            found = _chained(found, row)
        if engine.state.iteration and known is not None and found != known:
            logger.warning(
                "%s has changed since it was written: what it says of earlier steps is not what was logged.", self.path
            )
        engine.state.log_digest = found
        atomic_write(self.path, kept)
        purge = engine.state.iteration + 1 if engine.state.iteration else None
        self.writer = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=purge)
        total = engine.state.epoch_length
        shown = sys.stderr.isatty() if self.progress is None else self.progress
        self.bar = tqdm(total=total, initial=engine.state.iteration, unit="step", disable=not shown)
        self.counter = Progress("training", total, engine.state.iteration)
        if engine.state.iteration == 0 and getattr(engine.state, "heldout", None):
            self.write(engine, {})

    def step(self, engine: Engine) -> None:
        """Count a step; write a line if one is due."""
        self.images += engine.state.output[0]["batch_size"]
        step, heldout = engine.state.iteration, getattr(engine.state, "heldout", None)
        due = step % self.every == 0 or step == engine.state.epoch_length or bool(heldout)
        if largest(due):  # what is held out is scored by one process; the mean loss is of all
            loss = average(engine.loss_sum / max(engine.loss_count, 1)).item()
            now = time.perf_counter()
            rate, gradient = engine.optimizer.param_groups[0]["lr"], engine.state.output[0]["grad_norm"].item()
            speed = self.images * world_size() / (now - self.since)
            values = (loss, rate, gradient, speed, now - self.begun)
            self.write(engine, dict(zip(COLUMNS[1:], values, strict=True)))
            engine.loss_sum.zero_()
            engine.loss_count = 0
            self.since, self.images = time.perf_counter(), 0
        if self.bar is not None:
            self.bar.update()
            self.counter.tick()
            rate = (self.bar.format_dict["rate"] or 0.0) * engine.state.output[0]["batch_size"] * world_size()
            loss = engine.state.output[0][Keys.LOSS].item()
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s", refresh=False)

    def write(self, engine: Engine, values: dict[str, float]) -> None:
        """Write a line of ``values`` and of the held-out scores, which are then used up."""
        step, heldout = engine.state.iteration, getattr(engine.state, "heldout", None) or {}
        engine.state.heldout = {}  # written once
        if not is_main_process():
            return
        row = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in {"step": step, **values, **heldout}.items()}
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(row)
        engine.state.log_digest = _chained(engine.state.log_digest, text.getvalue().rstrip("\n"))
        assert self.writer is not None
        with refuse_full_disk(self.path.parent):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
            for name, value in {**values, **heldout}.items():
                self.writer.add_scalar(name, value, step)
            if getattr(engine.state, "picture", None) is not None:
                self.writer.add_image("preview", engine.state.picture, step, dataformats="HWC")
                engine.state.picture = None  # shown once
            self.writer.flush()
        message = f"step {step}/{engine.state.epoch_length}"
        if values:
            batch_size = engine.state.output[0]["batch_size"] * world_size()
            left = (engine.state.epoch_length - step) * batch_size / values["images_per_second"]
            message += f"  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
            message += f"  {values['images_per_second']:.1f} images/s  {duration(left)} left"
        if heldout:
            message += "  held out: " + ", ".join(f"{name} {value:.3f}" for name, value in heldout.items())
        self.bar.clear()
        logger.info(message)
        self.bar.refresh()
        self.counter.next_line = time.perf_counter() + EVERY

    def close(self, engine: Engine, error: BaseException | None = None) -> None:
        """Close the files."""
        for opened in (self.writer, self.bar):
            if opened is not None:
                opened.close()
        if error is not None:
            raise error  # an ignite handler of EXCEPTION_RAISED must pass the exception on


def _chained(digest: str, row: str) -> str:
    """Return the digest of the rows before and a row, without its times: resuming must give the same bits."""
    values = row.split(",")
    del values[_TIMED]
    return text_hash(f"{digest} {','.join(values)}")


def _rows_up_to(path: Path, step: int, columns: Sequence[str]) -> str:
    """Return the text of a CSV up to ``step``; a row cut off by a kill has no line end and is dropped."""
    header = ",".join(columns) + "\n"
    if step == 0 or not path.exists():
        return header
    try:
        lines = path.read_bytes().split(b"\n")[1:-1]
    except OSError as error:
        raise unreadable(path, error) from error
    # A row by the number of its step; bytes that changed cost their rows, not the run.
    whole = re.compile(rb"(\d{1,18})(,[-+.\w]*){%d}" % (len(columns) - 1))
    found = [whole.fullmatch(line) for line in lines]
    if not all(found):
        logger.warning("%s is damaged: %s left out.", path, counted(found.count(None), "row", "is", "are"))
    return header + "".join(f"{row[0].decode()}\n" for row in found if row and int(row[1]) <= step)


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


def _arrangement(selection: Selection, held_out: HeldOut, dataset: CropDataset) -> str:
    """Return one SHA-256 for names, order, roles and given labels of the images, on which a run depends."""

    def place(entry: Mapping[str, Any]) -> list[Any]:
        image = entry["image"]
        images = image if isinstance(image, list) else [image]
        names = (
            [entry["name"]]
            if "name" in entry
            else [Path(os.path.relpath(one, selection.dataset_dir)).as_posix() for one in images]
        )
        return [names, *(entry.get(key) for key in ("region", "slice", "axis", "series_uid"))]

    content = {
        "training": [[*place(one), found] for one, found in zip(dataset.data, dataset.case_hashes, strict=True)],
        "held out": [[*place(one), found] for one, found in zip(held_out.crops, held_out.hashes(), strict=True)],
        "validation": [place(one) for one in selection.validation],
        **({"labels": dataset.label_hashes} if any(dataset.label_hashes) else {}),
    }
    return text_hash(json.dumps(content))


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
        "arrangement": _arrangement(selection, held_out, dataset),
        "images": dataset.num_images,
        "patients": len(dataset.patient_ids),
        "data_list": None if data_list is None else data_list.name,
        "licence": None if data_list is None else data_list.information.get("licence"),
        "citation": None if data_list is None else data_list.information.get("citation"),
        "transductive": selection.transductive,
        **({"labelled": len(dataset.labelled)} if dataset.labelled else {}),
        "preview_crops_seen_in_training": held_out.seen,
    }
