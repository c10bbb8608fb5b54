"""Images segmented one after the other, here or by workers: what becomes of each, and the files that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events

from medmdm.data.reading import CaseReader
from medmdm.errors import counted
from medmdm.files import atomic_write, mark_outputs, sweep_temporaries, table_text
from medmdm.heads.predictor import Predictor
from medmdm.progress import Progress
from medmdm.segment.evaluation import Outputs
from medmdm.segment.journal import BOXES, Journal, Noted
from medmdm.segment.postprocessing import Postprocessing, boxes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmented:
    """What is known of a case that was segmented, whose files are written.

    Args:
        mask: its file, relative to the folder.
        foreground: share of its pixels.
        boxes: of its objects, where they are looked for.
        noted: for the journal.
    """

    mask: str
    foreground: float
    boxes: pd.DataFrame | None
    noted: Noted


def segment_one(
    entry: Mapping[str, Any],
    reader: CaseReader,
    predictor: Predictor,
    postprocess: Postprocessing,
    outputs: Outputs,
    known: Mapping[str, Any] | None = None,
    overlay: bool = False,
) -> Segmented:
    """Write the files of a case whose label, where there is one, is not looked at.

    ``known`` is what the segmenter's training images look like, see :class:`medmdm.segment.journal.Journal`.
    """
    case = reader.read({key: value for key, value in entry.items() if key != "label"})
    found = outputs.predict(case, predictor, postprocess)
    table = None
    if outputs.boxes and found.instances is not None:
        table = boxes(case.in_place(found.instances), case.in_place(found.mask)).assign(case=case.name)
    share = float(np.count_nonzero(found.mask) / found.mask.size)
    return Segmented(found.files["prediction"], share, table, Noted.of(case, found, outputs.folder, known, overlay))


def write_all(
    entries: Sequence[Mapping[str, Any]],
    done: Iterator[Segmented | None],
    outputs: Outputs,
    handlers: Sequence[Any] = (),
    journal: Journal | None = None,
) -> list[Path]:
    """Take what becomes of each case, in their order, and write what they share; return the masks' paths.

    Args:
        entries: of the cases.
        done: gives what became of them, or None; it is asked for each only when the one before is dealt with.
        outputs: what is written, and where.
        handlers: are attached as :class:`Inference` says.
        journal: is told of each case.
    """
    folder, masks = Path(outputs.folder), list[Path]()
    tables: list[pd.DataFrame] = []
    mark_outputs(folder / "predictions")
    sweep_temporaries(folder)

    def segment(engine: Engine, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        one = next(done)
        progress.tick()
        if one is None:
            return [{"foreground": float("nan")}]
        masks.append(folder / one.mask)
        if one.boxes is not None:
            tables.append(one.boxes)
        if journal is not None:
            journal.note(one.noted)
        return [{"foreground": one.foreground}]

    progress = Progress("predicting", len(entries))
    tell(handlers, segment, entries)
    logger.info("%s in %s", counted(len(masks), "mask"), folder / "predictions")
    table = pd.concat(tables) if tables else None
    if journal is not None:
        table = journal.all_boxes(table, outputs.boxes)
    if table is not None:
        atomic_write(folder / BOXES, table_text(table))
    for _ in done:  # what could not be done is told when all the rest is written
        pass
    return masks


def tell(handlers: Sequence[Any], step: Callable[[Engine, Any], Any], data: Sequence[Any], **metrics: float) -> None:
    """Run an engine over ``data`` for handlers of MONAI's, which read ``metrics`` when its epoch is completed."""
    if not data:
        return
    engine = Engine(step)
    engine.logger = logging.getLogger(f"{__name__}.engine")
    engine.logger.setLevel(logging.CRITICAL)  # an error is told once, where it is caught
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(metrics))
    for handler in handlers:
        handler.attach(engine)
    engine.run(data, max_epochs=1)
