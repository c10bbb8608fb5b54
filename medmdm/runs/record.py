"""What an evaluation leaves behind: the record ``evaluation.json`` from which, with the masks, a report is made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.errors import UserError, nearest
from medmdm.labels import LABEL_TYPES

__all__ = ["EVALUATION_FILE", "MAPS", "STAMPS", "EvaluatedCase", "Evaluation", "Stamp", "load_evaluation"]

EVALUATION_FILE = "evaluation.json"
STAMPS = ("inductive", "patients shared", "transductive", "unknown")
MAPS = ("uncertainty", "disagreement", "surprise")  # of real numbers, which a case may come with
_FORMAT = 1
_REQUIRED = ("dataset", "dataset_dir", "num_classes", "cases")


@dataclass(frozen=True)
class Stamp:
    """What the encoder has seen of the test cases.

    Args:
        kind: one of :data:`STAMPS`.
        overlapping: names of the cases that were seen, or whose patients were.
        sentence: the same for people.
    """

    kind: str = "unknown"
    overlapping: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class EvaluatedCase:
    """One case of an evaluation and where its files are.

    Args:
        name: unique in the evaluation.
        image: file, folder of a DICOM series, or several sequences.
        label: the truth; ``None`` where the data list has none.
        prediction: the mask of class numbers; ``None`` where none was written.
        instances: the predicted map of objects, where one was written.
        maps: those of :data:`MAPS` that were written: the prediction's uncertainty, the disagreement of an ensemble's
            members, how badly the network restores the image (surprise).
        region: part of the image that is the case.
        series_uid: which series, where a folder holds several.
        patient: the patient's id.
        spacing: mm a pixel, one number an axis; ``None`` where it is not known.
        columns: further columns of the data list, for subgroups.
    """

    name: str
    image: Path | list[Path]
    label: Path | None = None
    prediction: Path | None = None
    instances: Path | None = None
    maps: Mapping[str, Path] = field(default_factory=dict)
    region: Mapping[str, Any] | None = None
    series_uid: str | None = None
    patient: str | None = field(default=None, repr=False)
    spacing: tuple[float, ...] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A checked ``evaluation.json``.

    Args:
        folder: the run folder.
        dataset: name of the data set.
        section: of the data list.
        class_names: one a class, the background first.
        ignore: label value that is left out; ``None`` if there is none.
        instance_labels: whether the truth numbers objects rather than classes.
        data_list: what the data list says of itself: licence, citation, split, ...
        stamp: what the encoder has seen.
        protocol: how the predictions came about.
        record: the run's own record (``run.json``), ``None`` where it is missing.
        cases: in the order of the data list.
        study: CSV of a study's cells, ``None`` without one.
    """

    folder: Path
    dataset: str
    section: str
    class_names: tuple[str, ...]
    ignore: int | None
    instance_labels: bool
    data_list: Mapping[str, Any]
    stamp: Stamp
    protocol: Mapping[str, Any]
    record: Mapping[str, Any] | None
    cases: tuple[EvaluatedCase, ...]
    study: Path | None = None

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.class_names)


def load_evaluation(run_dir: str | os.PathLike[str]) -> Evaluation:
    """Read and check the ``evaluation.json`` of a run folder.

    Raises:
        UserError: it is missing, no JSON, of another format, or a key is missing or has a wrong value.
    """
    folder = Path(run_dir)
    path = folder / EVALUATION_FILE
    content = _read(path)
    if content.get("format") != _FORMAT:
        raise UserError(
            f"{path} has the format {content.get('format')!r} and this medmdm reads {_FORMAT}: evaluate again, or use "
            "the medmdm that wrote it"
        )
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}{nearest(missing[0], content)}: evaluate again")
    names = _class_names(content, path)
    information = content.get("data_list") or {}
    kind = information.get("label_type") or "classes"
    if kind not in LABEL_TYPES:
        raise UserError(f"{path}: 'label_type' of the data list is {kind!r}: it must be classes or instances")
    dataset_dir = _find_folder(str(content["dataset_dir"]), folder)
    entries = content["cases"]
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: 'cases' is empty: there is nothing to report")
    cases = tuple(_case(entry, i, folder, dataset_dir, path) for i, entry in enumerate(entries))
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise UserError(f"{path} lists the case {case.name!r} twice: give each its own name")
        seen.add(case.name)
    record = folder / str(content.get("record") or "run.json")
    study = content.get("study")
    return Evaluation(
        folder=folder,
        dataset=str(content["dataset"]),
        section=str(content.get("section") or "test"),
        class_names=names,
        ignore=content.get("ignore", 255),
        instance_labels=kind == "instances",
        data_list=information,
        stamp=_stamp(content.get("stamp"), path),
        protocol=content.get("protocol") or {},
        record=_read(record) if record.is_file() else None,
        cases=cases,
        study=None if study is None else folder / str(study),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: give the folder that an evaluation wrote, with its {EVALUATION_FILE}"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check what it is") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): evaluate again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: it must be an object")
    return content


def _class_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    number = content["num_classes"]
    if type(number) is not int or number < 2:
        raise UserError(f"{path}: 'num_classes' is {number!r}: give a whole number from 2, the background included")
    names = content.get("class_names") or ["background", *(f"class {k}" for k in range(1, number))]
    if len(names) != number:
        raise UserError(f"{path}: 'class_names' has {len(names)} names for {number} classes: give one a class")
    return tuple(str(name) for name in names)


def _find_folder(dataset_dir: str, run: Path) -> Path:
    """A relative folder counts from where the program was started, or else from the run folder."""
    folder = Path(dataset_dir).expanduser()
    if not folder.is_absolute() and not folder.is_dir() and (run / folder).is_dir():
        return run / folder
    return folder


def _stamp(content: Any, path: Path) -> Stamp:
    if content is None:
        return Stamp(sentence="It is not known which images the encoder was trained on.")
    kind = content.get("kind")
    if kind not in STAMPS:
        raise UserError(f"{path}: the stamp is {kind!r}{nearest(str(kind), STAMPS)}: use one of {', '.join(STAMPS)}")
    overlapping = tuple(str(name) for name in content.get("overlapping") or ())
    return Stamp(kind, overlapping, str(content.get("sentence") or ""))


def _case(entry: Any, number: int, run: Path, dataset_dir: Path, path: Path) -> EvaluatedCase:
    where = f"{path}: cases[{number}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is a {type(entry).__name__}: it must be an object")
    for key in ("case", "image"):
        if not entry.get(key):
            raise UserError(f"{where} has no {key!r}{nearest(key, entry)}: evaluate again")
    images = entry["image"]
    patient, spacing = entry.get("patient_id"), entry.get("spacing")

    def below(folder: Path, key: str) -> Path | None:
        return folder / entry[key] if entry.get(key) else None

    return EvaluatedCase(
        name=str(entry["case"]),
        image=[dataset_dir / image for image in images] if isinstance(images, list) else dataset_dir / images,
        label=below(dataset_dir, "label"),
        prediction=below(run, "prediction"),
        instances=below(run, "instances"),
        maps={name: run / entry[name] for name in MAPS if entry.get(name)},
        region=entry.get("region"),
        series_uid=entry.get("series_uid"),
        patient=None if patient is None else str(patient),
        spacing=tuple(float(value) for value in spacing) if spacing else None,
        columns={str(key): str(value) for key, value in (entry.get("columns") or {}).items() if value is not None},
    )
