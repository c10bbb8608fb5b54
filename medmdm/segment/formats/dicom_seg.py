"""DICOM SEG: masks of a DICOM series as an object of its study, which viewers lay over the series."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import medmdm
from medmdm.data.files.dicom import choose_series, order_slices
from medmdm.data.files.dicom_header import read_header
from medmdm.data.files.formats import is_dicom, is_volume
from medmdm.data.lists import image_names
from medmdm.errors import UserError, nearest, need
from medmdm.files import atomic_file
from medmdm.segment.formats.base import CaseFormat, Origin, Segmented

Code = Sequence[str]
TISSUE = ("85756007", "SCT", "Tissue")
_LONGEST_LABEL = 64  # characters, of VR LO
# What a series must say so that a segmentation can refer to it, and what may be empty but must be there.
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "Modality")
_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID")
_DATE = r"\d{8}"
_FORMS = {"PatientBirthDate": _DATE, "StudyDate": _DATE, "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"}
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class DicomSeg(CaseFormat):
    """``predictions/<case>.seg.dcm``: a binary segment for each class, referring to the slices it was made from.

    The file belongs to the patient and the study of its source, whose names, ids and dates it holds. Algorithm type is
    AUTOMATIC; the algorithm is medmdm with its version, and the segmenter's hash is the device's serial number and a
    parameter of the algorithm. The same result has the same UIDs, and a file that holds it already stays as it is, so
    that an archive does not take it for another one. Needs highdicom (``pip install 'medmdm[interop]'``).

    Args:
        codes: class name → what it is: ``[value, scheme, meaning]`` of its type, or ``{"type": ..., "category": ...}``.
            Classes without one are SCT 85756007 "Tissue", and so is a category that is not given.
        series_description: of the new series.
        series_number: of the new series.

    Raises:
        UserError: highdicom is missing or a code is none.

    Source:
        DICOM PS3.3 A.51 (Segmentation IOD); https://highdicom.readthedocs.io
    """

    codes: Mapping[str, Any] = field(default_factory=dict)
    series_description: str = "medmdm segmentation"
    series_number: int = 900

    def __post_init__(self) -> None:
        need("DicomSeg", "highdicom", "interop")
        for name in self.codes:
            self._codes(name)

    def check(self, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        super().check(entries, class_names)
        for name in self.codes:
            if name not in class_names:
                hint = nearest(name, class_names)
                raise UserError(f"DicomSeg: codes names {name!r}{hint}: the classes are {', '.join(class_names)}.")
        for entry in entries:
            path = Path(image_names(entry)[0])
            if not (path.is_dir() and is_volume(path)) and not is_dicom(path):
                advice = "use it for series of DICOM files only, or leave it out of write_formats"
                raise UserError(f"{path} is no DICOM series, which DicomSeg would refer to: {advice}.")
            sources = source_images(path, entry.get("series_uid"))
            empty = np.zeros((len(sources), sources[0].Rows, sources[0].Columns), np.uint8)
            try:
                self._made(empty, sources, Origin(class_names, "0" * 64), "1.2", "1.3")
            except Exception as error:  # highdicom raises nearly anything on headers that it cannot follow
                reason = " ".join(str(error).split()) or type(error).__name__
                fault = f"a DICOM SEG cannot refer to this series ({reason})"
                raise UserError(f"{path}: {fault}: leave DicomSeg out of write_formats for it.") from error

    def write(self, made: Segmented) -> dict[str, str]:
        name = f"predictions/{made.case.name}.seg.dcm"
        sources = source_images(made.source, made.case.entry.get("series_uid"))
        pixels = np.swapaxes(made.mask, 0, 2)  # [slices, rows, columns]; volumes are [columns, rows, slices]
        self._save(made.folder / name, pixels, sources, made)
        return {"dicom_seg": name}

    def _save(self, path: Path, pixels: np.ndarray, sources: Sequence[Any], made: Segmented) -> None:
        from pydicom.uid import PYDICOM_ROOT_UID, generate_uid

        classes, sha256 = made.origin.foreground, made.origin.sha256
        settings = repr((dict(self.codes), self.series_description, self.series_number, medmdm.__version__))
        known = [str(sources[0].SeriesInstanceUID), sha256, settings]
        series_uid = generate_uid(PYDICOM_ROOT_UID, ["series", *known])
        instances = [str(source.SOPInstanceUID) for source in sources]
        # Whose it is may be corrected in the series, under the same UIDs.
        patient = repr([str(sources[0].get(key)) for key in _MAY_BE_EMPTY])
        content = [str(classes), np.ascontiguousarray(pixels).tobytes().hex(), patient, *instances]
        instance_uid = generate_uid(PYDICOM_ROOT_UID, ["instance", *known, *content])
        if _holds(path, instance_uid):
            return
        made_of = self._made(pixels, sources, made.origin, series_uid, instance_uid)
        with atomic_file(path) as file:
            made_of.save_as(file)

    def _made(
        self,
        pixels: np.ndarray,
        sources: Sequence[Any],
        origin: Origin,
        series_uid: str,
        instance_uid: str,
    ) -> Any:
        """Return highdicom's object of class numbers ``[slices, rows, columns]``."""
        import highdicom as hd
        from pydicom.sr.codedict import codes

        logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of each module that it copies
        classes, sha256 = origin.foreground, origin.sha256
        numbers = np.zeros(256, np.uint8)  # segments are numbered from 1 on without gaps
        for segment, number in enumerate(classes, start=1):
            numbers[number] = segment
        algorithm = hd.AlgorithmIdentificationSequence(
            name="medmdm", family=codes.DCM.ArtificialIntelligence, version=medmdm.__version__,
            parameters={"segmenter_sha256": sha256},
        )  # fmt: skip
        descriptions = []
        for segment, name in enumerate(classes.values(), start=1):
            kind, category = self._codes(name)
            label = name.replace("\\", "/")[:_LONGEST_LABEL]
            descriptions.append(
                hd.seg.SegmentDescription(
                    segment, label, category, kind, "AUTOMATIC", algorithm_identification=algorithm
                )
            )
        return hd.seg.Segmentation(
            source_images=sources, pixel_array=numbers[pixels], segmentation_type="BINARY",
            segment_descriptions=descriptions, series_instance_uid=series_uid, series_number=self.series_number,
            sop_instance_uid=instance_uid, instance_number=1, manufacturer="medmdm",
            manufacturer_model_name="medmdm", software_versions=medmdm.__version__, device_serial_number=sha256[:16],
            series_description=self.series_description, content_description="segmented by medmdm",
            omit_empty_frames=bool(numbers[pixels].any()), specific_character_set="ISO_IR 192",
        )  # fmt: skip

    def _codes(self, name: str) -> tuple[Any, Any]:
        """Return the coded type and category of a class."""
        from highdicom.sr import CodedConcept

        given = self.codes.get(name, TISSUE)
        both = given if isinstance(given, Mapping) else {"type": given}
        found = []
        for key in ("type", "category"):
            code = both.get(key, TISSUE)
            good = not isinstance(code, str) and len(code) == 3 and all(isinstance(part, str) and part for part in code)
            if not good or set(both) - {"type", "category"}:
                example = '["10200004", "SCT", "Liver"]'
                raise UserError(
                    f"DicomSeg: the code of {name!r} is {given!r}: give value, scheme and meaning, {example}."
                )
            found.append(CodedConcept(*code))
        return found[0], found[1]


def source_images(path: Path, series_uid: str | None = None) -> list[Any]:
    """Return the headers of the slices of a series (:class:`pydicom.Dataset`), in the order of the volume's third axis.

    Attributes that a study must have, but may leave empty, are there, empty where the file has them not.

    Args:
        path: folder of the series, or its only file.
        series_uid: which one, where the folder holds several.

    Raises:
        UserError: a header does not say what a segmentation has to refer to.
    """
    import pydicom

    series = choose_series(path, series_uid) if path.is_dir() else order_slices([read_header(path)], path)
    found: list[Any] = []
    for one in series.slices:
        header = pydicom.dcmread(one.path, stop_before_pixels=True, force=True)
        missing = [key for key in _NEEDED if not header.get(key)] + ["PixelSpacing"] * (not one.sized)
        if missing:
            fault = f"has no {missing[0]}, which a DICOM SEG must refer to"
            raise UserError(f"{one.path} {fault}: leave DicomSeg out of write_formats for this series.")
        for key in _SHARED:
            if found and header.get(key) != found[0].get(key):
                fault = f"has another {key} than {series.slices[0].path.name}, so that no DICOM SEG can refer to both"
                raise UserError(f"{one.path} {fault}: leave DicomSeg out of write_formats for this series.")
        for key in _MAY_BE_EMPTY:
            form = _FORMS.get(key)  # of dates, for which anonymisers write words
            text = str(header.get(key) or "")
            if key not in header or (form is not None and text and not re.fullmatch(form, text)):
                setattr(header, key, None)
        if found and "ImageOrientationPatient" in header:  # of one volume; headers round it
            header.ImageOrientationPatient = found[0].ImageOrientationPatient
        if not header.get("PixelSpacing") and one.sized:  # of radiographs under other names
            header.PixelSpacing = [_decimal(gap) for gap in reversed(one.spacing)]
        if not header.get("SliceThickness"):
            header.SliceThickness = _decimal(float(np.linalg.norm(series.affine[:3, 2])))
        found.append(header)
    return found


def _decimal(number: float) -> str:
    """Return a number as DICOM's decimal strings hold it, in 16 characters."""
    return f"{number:.9g}"


def _holds(path: Path, instance_uid: str) -> bool:
    """Whether a file is there and is that instance."""
    import pydicom

    with suppress(OSError, pydicom.errors.InvalidDicomError):
        return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) == instance_uid
    return False
