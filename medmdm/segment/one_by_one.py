"""Images segmented one after the other, here or by workers: what becomes of each, and the files that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ignite.engine import Engine, Events

from medmdm.data.files.slides import is_slide
from medmdm.data.reading import CaseReader
from medmdm.errors import counted
from medmdm.files import atomic_write, mark_outputs, sweep_temporaries
from medmdm.heads.predictor import Predictor
from medmdm.progress import Progress
from medmdm.segment.evaluation import Outputs
from medmdm.segment.formats.base import CaseFormat, Origin, RunFormat, Segmented
from medmdm.segment.formats.coco import COCO
from medmdm.segment.formats.tables import BoxTable, ObjectTable
from medmdm.segment.journal import Journal, Noted
from medmdm.segment.postprocessing import Postprocessing
from medmdm.segment.slides import segment_slide

logger = logging.getLogger(__name__)
_Kind = TypeVar("_Kind")

#: Forms with one file for all images.
FOR_ALL = (BoxTable, ObjectTable, COCO)


@dataclass(frozen=True)
class Finished:
    """What is known of a case that was segmented, whose files are written.

    Args:
        mask: its file, relative to the folder.
        foreground: share of its pixels.
        pieces: of the files for all cases, by their names.
        noted: for the journal.
    """

    mask: str
    foreground: float
    pieces: Mapping[str, Any] = field(repr=False)
    noted: Noted


def segment_one(
    entry: Mapping[str, Any],
    reader: CaseReader,
    predictor: Predictor,
    postprocess: Postprocessing,
    outputs: Outputs,
    origin: Origin,
    known: Mapping[str, Any] | None = None,
    overlay: bool = False,
) -> Finished:
    """Write the files of a case whose label, where there is one, is not looked at.

    ``origin`` is what files for other programs say of the segmenter; ``known`` is what its training images look like,
    see :class:`medmdm.segment.journal.Journal`.
    """
    folder, pieces = Path(outputs.folder), dict[str, Any]()
    if not isinstance(entry["image"], list) and is_slide(entry["image"]):
        slide = segment_slide(entry, reader, predictor, postprocess, outputs).written(outputs, origin)
        found = slide.found
        noted = Noted.of(slide.case, found, folder, known, overlay, slide.tissue, slide=slide.facts)
    else:
        case = reader.read({key: value for key, value in entry.items() if key != "label"}, in_parts=True)
        found = outputs.predict(case, predictor, postprocess)
        made = Segmented(folder, case, found.mask, found.instances, found.probabilities, origin)
        for form in _of_kind(outputs.formats, CaseFormat):
            found = replace(found, files={**found.files, **form.write(made)})
        pieces = {every.file: every.describe(made) for every in _for_all(outputs)}
        noted = Noted.of(case, found, folder, known, overlay)
    share = float(np.count_nonzero(found.mask) / found.mask.size)
    return Finished(found.files["prediction"], share, pieces, noted)


def write_all(
    entries: Sequence[Mapping[str, Any]],
    done: Iterator[Finished | None],
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
    pieces: dict[str, dict[str, Any]] = {form.file: {} for form in _for_all(outputs)}
    mark_outputs(folder / "predictions")
    sweep_temporaries(folder)

    def segment(engine: Engine, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        one = next(done)
        progress.tick()
        if one is None:
            return [{"foreground": float("nan")}]
        masks.append(folder / one.mask)
        for file, piece in one.pieces.items():
            if piece is not None:
                pieces[file][one.noted.name] = piece
        if journal is not None:
            journal.note(one.noted)
        return [{"foreground": one.foreground}]

    progress = Progress("predicting", len(entries))
    tell(handlers, segment, entries)
    logger.info("%s in %s", counted(len(masks), "mask"), folder / "predictions")
    _write_for_all(outputs, pieces, journal)
    for _ in done:  # what could not be done is told when all the rest is written
        pass
    return masks


def _write_for_all(outputs: Outputs, pieces: Mapping[str, Mapping[str, Any]], journal: Journal | None) -> None:
    folder = Path(outputs.folder)
    for kind in FOR_ALL:
        form = next((form for form in _for_all(outputs) if isinstance(form, kind)), None)
        content: Mapping[str, Any] | None = None if form is None else pieces[kind.file]
        if journal is not None:
            content = journal.merged(form or kind(), content)
        if content:
            text = (form or kind()).text(content)
            if journal is not None:
                journal.announce(kind.file, text)
            atomic_write(folder / kind.file, text)
        elif content is not None:
            (folder / kind.file).unlink(missing_ok=True)  # nothing that it said is left


def _for_all(outputs: Outputs) -> list[RunFormat]:
    return [*([BoxTable()] if outputs.boxes else []), *_of_kind(outputs.formats, RunFormat)]


def _of_kind(formats: Sequence[Any], kind: type[_Kind]) -> list[_Kind]:
    return [form for form in formats if isinstance(form, kind)]


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
