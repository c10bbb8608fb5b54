"""DICOM SEG read back by pydicom and highdicom: pixels per referenced instance, place in space, codes, patient."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.data.files.volumes import Slicing, volume_geometry
from medmdm.segment import DicomSeg
from medmdm.segment.formats.base import Segmented
from tests.data.dicom_files import write_dicom, write_series
from tests.made import refused
from tests.segment.formats.made import NAMES, segmented

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

SHAPE = (9, 6, 5)  # columns, rows, slices
LIVER = ["10200004", "SCT", "Liver"]
FRAME = {(0x0020, 0x0052): "1.2.3.99"}
C, S = np.cos(0.4), np.sin(0.4)
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "flipped": (-1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (C, S, 0, -S * C, C * C, S),
}


def series(folder: Path, orientation: str = "axial", **tags: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 900, SHAPE[::-1]).astype(np.int16)
    return write_series(folder, pixels, orientation=ORIENTATIONS[orientation], tags={**FRAME, **tags})


def made(tmp_path: Path, source: Path, mask: np.ndarray) -> Segmented:
    shape, affine = volume_geometry(source)
    return segmented(tmp_path, mask, slicing=Slicing(shape, affine), entry={"image": str(source)})


def asymmetric() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2, 1] = 1
    mask[1, 3:5, 1] = 1
    mask[7, 0, 3:5] = 2
    mask[0, 0, 1] = 2
    return mask


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_instance_and_each_place_is_its_own(tmp_path: Path, orientation: str) -> None:
    source, mask = series(tmp_path / "series", orientation), asymmetric()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = DicomSeg().write(made(tmp_path, source, mask))["dicom_seg"]
    seg = hd.seg.segread(tmp_path / name)
    # By instance: the slice of the file that it was made from; which file is which slice only pydicom says.
    files = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, source.glob("*.dcm"))}
    normal = np.cross(ORIENTATIONS[orientation][:3], ORIENTATIONS[orientation][3:])
    order = sorted(files, key=lambda uid: float(np.dot(normal, files[uid].ImagePositionPatient)))
    for number in (1, 2):
        frames = seg.get_pixels_by_source_instance(
            order, segment_numbers=[number], assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(frames[..., 0], np.swapaxes(mask == number, 0, 2))
    assert {str(uid) for _, _, uid in seg.get_source_image_uids()} == set(order)
    # By place: each voxel of the SEG, mm by its own header, is that voxel of the volume by medmdm's affine (RAS).
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume_geometry(source)[1]
    expected = {number: {_place(affine @ [*ijk, 1]) for ijk in np.argwhere(mask == number)} for number in (1, 2)}
    found: dict[int, set[tuple[float, ...]]] = {1: set(), 2: set()}
    raw = pydicom.dcmread(tmp_path / name)
    shared = raw.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    gaps = [float(gap) for gap in shared.PixelMeasuresSequence[0].PixelSpacing]
    frames = raw.pixel_array.reshape(-1, raw.Rows, raw.Columns)
    for frame, group in zip(frames, raw.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            place = corner + cosines[:3] * gaps[1] * column + cosines[3:] * gaps[0] * row
            found[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber].add(_place(place))
    assert found == expected


def _place(point: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in np.round(np.asarray(point, float)[:3], 2) + 0.0)


def test_what_it_says(tmp_path: Path) -> None:
    source = series(tmp_path / "series")
    form = DicomSeg(codes={"gland": LIVER})
    path = tmp_path / form.write(made(tmp_path, source, asymmetric()))["dicom_seg"]
    read, of = pydicom.dcmread(path), pydicom.dcmread(next(source.glob("*.dcm")))
    assert (read.PatientID, read.PatientName) == (of.PatientID, of.PatientName) == ("PATIENT-4711", "DOE^JANE")
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (of.StudyInstanceUID, "1.2.3.99")
    assert read.SeriesInstanceUID != of.SeriesInstanceUID
    gland, tumour = read.SegmentSequence
    assert (gland.SegmentLabel, tumour.SegmentLabel) == NAMES[1:]
    assert (gland.SegmentAlgorithmType, gland.SegmentAlgorithmName) == ("AUTOMATIC", "medmdm")
    assert gland.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert gland.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "85756007"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert "segmenter_sha256" in str(read) or "abab" in str(read)
    # The same result again is the same file, another one another instance of the same series.
    before = path.read_bytes()
    form.write(made(tmp_path, source, asymmetric()))
    assert path.read_bytes() == before
    form.write(made(tmp_path, source, asymmetric()[::-1]))
    other = pydicom.dcmread(path)
    assert other.SOPInstanceUID != read.SOPInstanceUID
    assert other.SeriesInstanceUID == read.SeriesInstanceUID


def test_a_corrected_patient_gets_an_object_of_their_own(tmp_path: Path) -> None:
    source = series(tmp_path / "series")
    path = tmp_path / DicomSeg().write(made(tmp_path, source, asymmetric()))["dicom_seg"]
    before = pydicom.dcmread(path)
    for file in source.glob("*.dcm"):
        header = pydicom.dcmread(file)
        header.PatientID = "PATIENT-0815"
        header.save_as(file)
    DicomSeg().write(made(tmp_path, source, asymmetric()))
    after = pydicom.dcmread(path)
    assert after.PatientID == "PATIENT-0815"
    assert after.SOPInstanceUID != before.SOPInstanceUID


def test_nothing_found(tmp_path: Path) -> None:
    source = series(tmp_path / "series")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = DicomSeg().write(made(tmp_path, source, np.zeros(SHAPE, np.uint8)))["dicom_seg"]
    assert not pydicom.dcmread(tmp_path / name).pixel_array.any()


def test_what_is_refused(tmp_path: Path) -> None:
    refused("is no DICOM series", DicomSeg().check, [{"image": "x.nii.gz"}], NAMES)
    source = series(tmp_path / "series")
    DicomSeg().check([{"image": str(source)}], NAMES)
    refused("'glands' .did you mean 'gland'", DicomSeg({"glands": LIVER}).check, [], NAMES)
    for code in ("Liver", ["1", "SCT"], {"kind": LIVER}, ["1", "SCT", 3]):
        refused("code of 'gland' is", DicomSeg, {"gland": code})
    bare = write_series(tmp_path / "bare", np.zeros(SHAPE[::-1], np.int16))
    refused("has no FrameOfReferenceUID", DicomSeg().write, made(tmp_path, bare, asymmetric()))
    assert not list(tmp_path.glob("predictions/*"))


@pytest.mark.parametrize("tags", [
    {(0x0020, 0x0037): "1\\0\\0.000001\\0\\1\\0"}, {(0x0010, 0x0030): "unknown"},
])  # fmt: skip
def test_what_headers_round_or_hide_does_not_matter(tags: dict[Any, str], tmp_path: Path) -> None:
    source = series(tmp_path / "series")
    file = sorted(source.glob("*.dcm"))[2]
    header = pydicom.dcmread(file)
    write_dicom(file, header.pixel_array, {**FRAME, (0x0020, 0x0032): _text(header.ImagePositionPatient), **tags})
    DicomSeg().check([{"image": str(source)}], NAMES)
    name = DicomSeg().write(made(tmp_path, source, asymmetric()))["dicom_seg"]
    assert len(hd.seg.segread(tmp_path / name).get_source_image_uids()) == SHAPE[2]


@pytest.mark.parametrize(("tags", "said"), [
    ({(0x0020, 0x0052): "1.2.3.98"}, "another FrameOfReferenceUID"), ({(0x0020, 0x000D): "1.2.4"}, "another Study"),
    ({(0x0008, 0x0060): ""}, "no Modality"), ({(0x0020, 0x0052): ""}, "no FrameOfReferenceUID"),
])  # fmt: skip
def test_what_cannot_be_referred_to_is_refused_before_anything_is_read(
    tags: dict[Any, str], said: str, tmp_path: Path
) -> None:
    source = series(tmp_path / "series")
    file = sorted(source.glob("*.dcm"))[2]
    header = pydicom.dcmread(file)
    write_dicom(file, header.pixel_array, {**FRAME, (0x0020, 0x0032): _text(header.ImagePositionPatient), **tags})
    refused(said, DicomSeg().check, [{"image": str(source)}], NAMES)
    bare = write_series(tmp_path / "bare", np.zeros((3, 4, 5), np.int16), tags={**FRAME, (0x0020, 0x0037): ""})
    refused("bare: a DICOM SEG cannot refer to this series", DicomSeg().check, [{"image": str(bare)}], NAMES)


def _text(numbers: Any) -> str:
    return "\\".join(map(str, numbers))
