"""A label whose axes run otherwise than its image's lies where its header says, on the image's grid, in every door."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medmdm.check import check
from medmdm.data.cases import select_cases
from medmdm.data.files.decoding import decode, decode_label
from medmdm.data.files.volumes import read_volume
from medmdm.data.reading import CaseReader
from medmdm.data.validity import ImageGrid, turned_onto
from medmdm.prepare import prepare
from medmdm.reports.case_files import read_case
from medmdm.runs.record import EvaluatedCase, Evaluation
from tests.made import refused
from tests.written import oblique, random, write_nifti

SHAPE = (6, 8, 10)
LABEL = random(SHAPE, "label").astype(np.uint8) % 3
IMAGE = (LABEL * 100 + random(SHAPE, "image") % 50).astype(np.int16)


def turned(array: np.ndarray, affine: np.ndarray, codes: str) -> nib.Nifti1Image:
    """The same voxels in the same places, axes in another order: by nibabel."""
    image = nib.Nifti1Image(array, affine)
    start = nib.io_orientation(affine)
    return image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(codes)))


CODES = ["".join(codes) for order in itertools.permutations(("LR", "AP", "IS")) for codes in itertools.product(*order)]


@pytest.mark.parametrize("affine", [np.diag([-1.0, -1.0, 2.5, 1.0]), oblique(), oblique((1, -1, 1), (2, 0, 1))],
                         ids=["LPS", "oblique", "oblique, swapped"])  # fmt: skip
def test_all_48_orientations(affine: np.ndarray, tmp_path: Path) -> None:
    image = ImageGrid(SHAPE, affine)
    for codes in CODES:
        nib.save(turned(LABEL, affine, codes), tmp_path / "l.nii")
        label = decode_label(tmp_path / "l.nii", image)
        assert np.array_equal(label.array[0], LABEL)
        assert label.affine is not None
        assert np.allclose(label.affine, affine, atol=1e-5)


def test_as_simpleitk_resamples(tmp_path: Path) -> None:
    write_nifti(tmp_path / "i.nii", IMAGE, oblique())
    nib.save(turned(LABEL, oblique(), "LAS"), tmp_path / "l.nii")
    image, label = (sitk.ReadImage(str(tmp_path / name)) for name in ("i.nii", "l.nii"))
    expected = sitk.GetArrayFromImage(sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor)).T
    assert np.array_equal(decode_label(tmp_path / "l.nii", read_volume(tmp_path / "i.nii").grid).array[0], expected)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "SRA", "PIR"])
def test_every_door(codes: str, tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])  # LPS
    for number in range(2):
        write_nifti(tmp_path / "s" / "images" / f"c{number}.nii.gz", IMAGE, affine)
        (tmp_path / "s" / "labels").mkdir(exist_ok=True)
        nib.save(turned(LABEL, affine, codes), tmp_path / "s" / "labels" / f"c{number}.nii.gz")
    (tmp_path / "p" / "predictions").mkdir(parents=True)
    nib.save(turned(LABEL, affine, "RAS"), tmp_path / "p" / "predictions" / "c0.nii.gz")
    entries = [
        {"image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz", "patient_id": f"p{number}"}
        for number in range(2)
    ]
    listed = {"name": "x", "labels": {"background": 0, "a": 1, "b": 2}, "training": entries[:1], "test": entries[1:]}
    (tmp_path / "s" / "dataset.json").write_text(json.dumps(listed))

    report = check(tmp_path / "s" / "dataset.json", progress=False)
    assert not [finding for finding in report.errors if finding.check.startswith("label")]

    prepare("volumes", tmp_path / "s", tmp_path / "out")
    for number in range(2):
        prepared = nib.load(tmp_path / "out" / "labels" / f"c{number}.nii.gz")
        assert np.array_equal(np.asanyarray(prepared.dataobj), LABEL)
        assert np.allclose(prepared.affine, affine)

    cases = select_cases(tmp_path / "s", tmp_path / "s" / "dataset.json")
    plan = {"intensity_range": [0, 300], "channels": 1, "slice_axis": "axial"}
    read = CaseReader(cases, plan, tmp_path / "store").read(cases.training[0])
    assert np.array_equal(read.truth, LABEL)
    assert np.allclose(read.label_affine, affine)
    assert read.window == ((0, 300),)
    for example in read.examples:  # an image's grey values say what its label must be
        assert np.array_equal(((example.image[0] + 1) * 150 / 100 + 1e-3).int().numpy(), example.label.numpy())

    paths = [tmp_path / kind / "c0.nii.gz" for kind in ("s/images", "s/labels", "p/predictions")]
    case = EvaluatedCase("c0", *paths)
    evaluation = Evaluation(tmp_path, "x", tmp_path, "test", ("background", "a", "b"), (case,))
    arrays = read_case(case, evaluation)
    assert np.array_equal(arrays.truth, LABEL)
    assert np.array_equal(arrays.prediction, LABEL)
    assert arrays.image is not None
    assert np.array_equal(arrays.image[0] // 100, LABEL)


def test_what_does_not_coincide_stays_refused(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    image = ImageGrid(SHAPE, affine)
    other = turned(LABEL, affine, "LAS")
    moved = other.affine.copy()
    moved[1, 3] += 1  # one row beside
    larger = np.diag([-1.1, -1.0, 2.5, 1.0])
    for name, array, wrong in (
        ("moved", np.asanyarray(other.dataobj), moved), ("larger", LABEL, larger), ("cut", LABEL[:5], affine),
        ("oblique", LABEL, oblique()),
    ):  # fmt: skip
        path = write_nifti(tmp_path / "s" / "labels" / "x.nii.gz", array, wrong)
        assert turned_onto(decode(path).grid, image)[1] is None, name
        write_nifti(tmp_path / "s" / "images" / "x.nii.gz", IMAGE, affine)
        refused("lies up to .* mm beside its image|is 5x8x10 but its image", prepare, "volumes", tmp_path / "s",
                tmp_path / f"out_{name}", test=0)  # fmt: skip
