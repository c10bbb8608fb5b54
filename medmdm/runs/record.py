"""What an evaluation leaves behind: the record ``evaluation.json`` from which, with the masks, a report is made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medmdm.artifacts.pretrained import make_ledger, patient_hashes
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError, counted, nearest
from medmdm.files import expanded
from medmdm.intact import load_record, save_record
from medmdm.labels import IGNORE, LABEL_TYPES
from medmdm.patients import patient_id
from medmdm.schemas import check_evaluation

EVALUATION_FILE = "evaluation.json"
PROVENANCES = ("inductive", "patients shared", "transductive", "unknown", "cross-validated")
MAPS = ("uncertainty", "disagreement", "surprise")  # of real numbers, which a case may come with
_FORMAT = 1
_REQUIRED = ("dataset", "dataset_dir", "num_classes", "cases")


@dataclass(frozen=True)
class Provenance:
    """What the encoder has seen of the test cases; ``"stamp"`` in the file.

    Args:
        kind: one of :data:`PROVENANCES`.
        overlapping: names of the cases that were seen, or whose patients were.
        sentence: the same for people.
        labels_seen: of how many images the encoder's pre-training saw the labels.
    """

    kind: str = "unknown"
    overlapping: tuple[str, ...] = ()
    sentence: str = ""
    labels_seen: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as files have it; without labels seen as they always had it."""
        return {key: value for key, value in asdict(self).items() if key != "labels_seen" or value}


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
            members, how badly the network restores the image (``surprise``, the reconstruction error).
        part: of the image, which is the case: its ``region``; the ``series_uid``, where a folder holds several.
        patient: the patient's id.
        spacing: mm per pixel, one number per axis; ``None`` where it is not known.
        columns: further columns of the data list, for subgroups.
        window: values of the image that are drawn black and white, a pair for all channels or one for each.
        object_scores: how sure each predicted object is, by rising number; of the map of objects, or without one of the
            mask's connected parts. ``None`` where it is not known.
    """

    name: str
    image: Path | list[Path]
    label: Path | None = None
    prediction: Path | None = None
    instances: Path | None = None
    maps: Mapping[str, Path] = field(default_factory=dict)
    part: Mapping[str, Any] = field(default_factory=dict)
    patient: str | None = field(default=None, repr=False)
    spacing: tuple[float, ...] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    window: tuple[tuple[float, float], ...] | None = None
    object_scores: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def region(self) -> Mapping[str, Any] | None:
        """Part of the image that is the case; ``None`` for the whole."""
        return self.part.get("region")

    @property
    def series_uid(self) -> str | None:
        """Which series, where a folder holds several."""
        return self.part.get("series_uid")

    @classmethod
    def of(cls, entry: Mapping[str, Any], run: Path, dataset_dir: Path = Path()) -> EvaluatedCase:
        """Return the case of an entry of ``evaluation.json``, whose paths count from the two folders."""
        images, patient, spacing = entry["image"], entry.get("patient_id"), entry.get("spacing")
        sure = entry.get("object_scores")
        written = {key: run / entry[key] for key in ("prediction", "instances", *MAPS) if entry.get(key)}
        return cls(
            name=str(entry["case"]),
            image=[dataset_dir / image for image in images] if isinstance(images, list) else dataset_dir / images,
            label=dataset_dir / entry["label"] if entry.get("label") else None,
            prediction=written.pop("prediction", None),
            instances=written.pop("instances", None),
            maps=written,
            part={key: entry[key] for key in ("region", "series_uid") if entry.get(key) is not None},
            patient=patient_id(None if patient == "" else patient),
            spacing=tuple(float(value) for value in spacing) if spacing else None,
            window=tuple((float(low), float(high)) for low, high in entry.get("window") or ()) or None,
            columns={str(key): str(value) for key, value in (entry.get("columns") or {}).items() if value is not None},
            object_scores=None if sure is None else tuple(float(value) for value in sure),
        )


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: what was predicted, of what data, and how.

    Args:
        folder: the run folder.
        dataset: name of the data set.
        dataset_dir: folder of its images and labels.
        section: of the data list.
        class_names: one per number from 0, the background first; ``None`` for a number that is no class.
        cases: in the order of the data list.
        ignore: label value that is left out; ``None`` if there is none.
        data_list: what the data list says of itself: licence, citation, split, ...
        provenance: what the encoder has seen.
        protocol: how the predictions came about.
        study: CSV of a study's cells, ``None`` without one.
        record_file: the run's own record; the file need not exist.
    """

    folder: Path
    dataset: str
    dataset_dir: Path
    section: str
    class_names: tuple[str | None, ...]
    cases: tuple[EvaluatedCase, ...]
    ignore: int | None = IGNORE
    data_list: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    study: Path | None = None
    record_file: str = "run.json"

    @property
    def num_classes(self) -> int:
        """One more than the largest class number."""
        return len(self.class_names)

    @property
    def classes(self) -> dict[int, str]:
        """The names of the classes by their numbers, the background first."""
        return {number: name for number, name in enumerate(self.class_names) if name is not None}

    @property
    def instance_labels(self) -> bool:
        """Whether the truth numbers objects rather than classes."""
        return self.data_list.get("label_type") == "instances"

    @property
    def record(self) -> dict[str, Any] | None:
        """The run's own record as it is now, ``None`` where it is missing.

        Raises:
            UserError: it cannot be read.
        """
        path = self.folder / self.record_file
        return _read(path) if path.is_file() else None

    def save(self) -> Path:
        """Write ``evaluation.json`` into the run folder, atomically, and return its path."""
        content = {
            "format": _FORMAT,
            "dataset": self.dataset,
            "dataset_dir": str(self.dataset_dir),
            "data_list": dict(self.data_list),
            "section": self.section,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "ignore": self.ignore,
            "stamp": self.provenance.as_dict(),
            "protocol": dict(self.protocol),
            "record": self.record_file,
            "cases": [_entry(case, self.folder, self.dataset_dir) for case in self.cases],
            "study": None if self.study is None else os.path.relpath(self.study, self.folder),
        }
        save_record(content, self.folder / EVALUATION_FILE)
        return self.folder / EVALUATION_FILE

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evaluation:
        """Read and check the ``evaluation.json`` of a run folder.

        Raises:
            UserError: it is missing, no JSON, of another format, or a key is missing or has a wrong value.
        """
        folder = Path(folder)
        path = folder / EVALUATION_FILE
        content = _read(path)
        if content.get("format") != _FORMAT:
            found = f"the format {content.get('format')!r} and this medmdm reads {_FORMAT}"
            raise UserError(f"{path} has {found}: evaluate again, or use the medmdm that wrote it.")
        missing = [key for key in _REQUIRED if key not in content]
        if missing:
            raise UserError(f"{path} has no {missing[0]!r}{nearest(missing[0], content)}: evaluate again.")
        check_evaluation(content, path)
        data_list = content.get("data_list") or {}
        kind = data_list.get("label_type") or "classes"
        if kind not in LABEL_TYPES:
            raise UserError(f"{path}: 'label_type' of the data list is {kind!r}: it must be classes or instances.")
        dataset_dir = expanded(str(content["dataset_dir"]))
        # A relative folder counts from where the program was started, or else from the run folder.
        if not dataset_dir.is_absolute() and not dataset_dir.is_dir() and (folder / dataset_dir).is_dir():
            dataset_dir = folder / dataset_dir
        study = content.get("study")
        return cls(
            folder=folder,
            dataset=str(content["dataset"]),
            dataset_dir=dataset_dir,
            section=str(content.get("section") or "test"),
            class_names=_class_names(content, path),
            cases=_cases(content["cases"], folder, dataset_dir, path),
            ignore=content.get("ignore", IGNORE),
            data_list=data_list,
            provenance=_provenance(content.get("stamp"), path),
            protocol=content.get("protocol") or {},
            study=None if study is None else folder / str(study),
            record_file=str(content.get("record") or "run.json"),
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return load_record(path)
    except FileNotFoundError as error:
        need = f"the folder that an evaluation wrote, with its {EVALUATION_FILE}"
        raise UserError(f"{path} does not exist: give {need}.") from error


def _class_names(content: Mapping[str, Any], path: Path) -> tuple[str | None, ...]:
    number = content["num_classes"]
    if type(number) is not int or number < 2:
        raise UserError(f"{path}: 'num_classes' is {number!r}: give a whole number from 2, the background included.")
    names = content.get("class_names") or ["background", *(f"class {k}" for k in range(1, number))]
    if len(names) != number:
        raise UserError(f"{path}: 'class_names' has {len(names)} names for {number} classes: give one per class.")
    return tuple(None if name is None else str(name) for name in names)


def _provenance(content: Any, path: Path) -> Provenance:
    if content is None:
        return Provenance(sentence="It is not known which images the encoder was trained on.")
    kind = content.get("kind")
    if kind not in PROVENANCES:
        known = f"{nearest(str(kind), PROVENANCES)}: use one of {', '.join(PROVENANCES)}."
        raise UserError(f"{path}: the stamp is {kind!r}{known}")
    overlapping = tuple(str(name) for name in content.get("overlapping") or ())
    return Provenance(kind, overlapping, str(content.get("sentence") or ""), int(content.get("labels_seen") or 0))


def _cases(entries: Any, run: Path, dataset_dir: Path, path: Path) -> tuple[EvaluatedCase, ...]:
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: 'cases' is empty: there is nothing to report.")
    cases: dict[str, EvaluatedCase] = {}
    for number, entry in enumerate(entries):
        for key in ("case", "image"):
            if not entry.get(key):
                raise UserError(f"{path}: cases[{number}] has no {key!r}{nearest(key, entry)}: evaluate again.")
        case = EvaluatedCase.of(entry, run, dataset_dir)
        if case.name in cases:
            raise UserError(f"{path} lists the case {case.name!r} twice: give each its own name.")
        cases[case.name] = case
    return tuple(cases.values())


def _entry(case: EvaluatedCase, run: Path, dataset_dir: Path) -> dict[str, Any]:
    """Return a case as the file holds it, paths from the folder that they count from."""

    def below(folder: Path, path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    image = case.image
    known = {**case.part, "patient_id": case.patient}
    return {
        "case": case.name,
        "image": [below(dataset_dir, one) for one in image] if isinstance(image, list) else below(dataset_dir, image),
        "label": below(dataset_dir, case.label),
        **{key: value for key, value in known.items() if value is not None},
        **({} if case.window is None else {"window": [list(pair) for pair in case.window]}),
        "spacing": None if case.spacing is None else list(case.spacing),
        "columns": dict(case.columns),
        "prediction": below(run, case.prediction),
        "instances": below(run, case.instances),
        **({} if case.object_scores is None else {"object_scores": list(case.object_scores)}),
        **{name: below(run, case.maps.get(name)) for name in MAPS},
    }


def cases_ledger(cases: Sequence[LoadedCase]) -> dict[str, Any]:
    """Return the ledger of the cases that a head saw, with or without their labels, in the form of a backbone's."""
    hashes = [digest for case in cases for digest in case.hashes]
    return make_ledger(hashes, [case.entry["patient_id"] for case in cases if "patient_id" in case.entry])


def find_provenance(cases: Sequence[LoadedCase], *ledgers: Mapping[str, Any] | None) -> Provenance:
    """Compare test cases with the images and patients that trained.

    Args:
        cases: that are tested.
        *ledgers: of the backbone's plan and of the labelled support: ``{"images": hashes, "patients": salted hashes,
            "salt": ...}``; None where it is not known what trained, ``"complete": False`` where there is more.

    Returns:
        The kind is the worst that is certain: "transductive", "patients shared", "unknown" where a ledger is missing,
        or "inductive". Where a pre-training saw labels, its sentence says so, of test images first of all.
    """
    found = _overlap(cases, *ledgers)
    labelled = {k: whole for ledger in ledgers if ledger for k, whole in ledger.get("labelled", {}).items()}
    if not labelled:
        return found
    hashes = {*labelled, *labelled.values()}
    tested = [case.name for case in cases if case.hashes[0] in hashes]
    saw = f"The encoder's pre-training saw the labels of {counted(len(labelled), 'image')}"
    told = f"{saw}, which count beside those that the segmenter is fitted to."
    if tested:
        those = f"THE LABELS OF {len(tested)} OF {len(cases)} TEST IMAGES WERE SEEN in the encoder's pre-training"
        told = f"{those}: these scores are no test of what it does on new images. {told}"
    return Provenance(found.kind, found.overlapping, f"{told} {found.sentence}", len(labelled))


def _overlap(cases: Sequence[LoadedCase], *ledgers: Mapping[str, Any] | None) -> Provenance:
    """Compare cases with images and patients; see :func:`find_provenance`."""
    known = [ledger for ledger in ledgers if ledger is not None]
    images = {digest for ledger in known for digest in ledger["images"]}
    seen = [case.name for case in cases if case.hashes[0] in images]
    if seen:
        sentence = f"{len(seen)} of {len(cases)} test images were seen in training, with or without labels."
        return Provenance("transductive", tuple(seen), sentence)
    patients = {case.name: patient_id(case.entry.get("patient_id")) for case in cases}
    ids = {patient for patient in patients.values() if patient is not None}
    hashed = [ledger for ledger in known if ledger["patients"]]
    shared_ids = {i for a in hashed for i in ids if patient_hashes([i], str(a["salt"]))[0] in a["patients"]}
    shared = [case.name for case in cases if patients[case.name] in shared_ids or case.hashes[1] in images]
    if shared:
        some = f"{len(shared)} of {len(cases)} are of patients (or parts of images) that training saw"
        sentence = f"The test images are new, but {some}, so the scores are for new images of known patients."
        return Provenance("patients shared", tuple(shared), sentence)
    if len(known) < len(ledgers) or not all(ledger.get("complete", True) for ledger in known):
        sentence = "It is not known which images the encoder was trained on: its weights come without a ledger."
        return Provenance("unknown", (), sentence)
    # A list without patient ids leaves a ledger of images alone: then nobody can say that the patients are new.
    named = all("patient_id" in case.entry for case in cases)
    named = named and all(ledger["patients"] or not ledger["images"] for ledger in known)
    more = (
        ", and none of the patients that the data lists name"
        if named
        else "; whether their patients were is not known, for the data lists do not name them all"
    )
    return Provenance("inductive", (), f"No test image was seen in training{more}.")
