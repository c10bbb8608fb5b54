"""Where voxels lie, by headers that contradict themselves, lean, or say nothing.

Siblings: qform against sform for a label whose axes run otherwise, and the same for all images; a tilted gantry; DICOM
slices beside their line, without or with impossible directions, with pixels of no size, values that some rescale,
one series in two folders; NIfTI whose name denies that it is compressed.
"""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmdm.data.files.decoding import decode_label
from medmdm.data.files.dicom import choose_series
from medmdm.data.files.volumes import lies_in_one_place, read_volume
from medmdm.data.slices import VolumeStore, slice_entries
from medmdm.data.validity import at_right_angles, voxel_sides
from medmdm.prepare import prepare
from medmdm.reports.scoring import choose_ruler
from medmdm.runs.record import EvaluatedCase, Evaluation
from medmdm.segment.formats.measurements import measure
from tests.data.dicom_files import write_dicom, write_series
from tests.made import refused

STORED = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)  # slices, rows, columns
POSITION, DIRECTIONS, SIZES, SLOPE = (0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x0030), (0x0028, 0x1053)
FLIPPED = np.diag([-1.0, 1.0, 2.0, 1.0])
MIRRORED = np.array([[1.0, 0, 0, -4], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])  # the same box, x the other way
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


def two_places(path: Path, second: np.ndarray) -> Path:
    """An image whose sform flips x against its qform."""
    image = nib.Nifti1Image(VOXELS, FLIPPED)
    image.set_sform(FLIPPED, 2)
    image.set_qform(second, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def test_a_label_is_not_turned_by_a_place_that_the_header_contradicts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_places(tmp_path / "s/images/a.nii.gz", MIRRORED)
    label = tmp_path / "s/labels/a.nii.gz"
    label.parent.mkdir()
    # Of a program that believes the qform: voxel for voxel as the image, mirrored against its sform.
    nib.save(nib.Nifti1Image((VOXELS > 100).astype(np.uint8), MIRRORED), label)
    assert not lies_in_one_place(path)
    image = read_volume(path)
    assert "lies in two places" in caplog.text
    assert np.array_equal(image.array[0], VOXELS)
    why = "labels/a.nii.gz: the axes of a label and of its image run in other directions"
    refused(why, decode_label, label, image.grid)
    entry = {"image": str(path), "label": str(label)}
    refused(why, slice_entries, entry, VolumeStore(tmp_path / "store"))
    refused("the axes of a label", prepare, "volumes", tmp_path / "s", tmp_path / "out", test="0")
    # Voxel for voxel as the image: there is nothing to turn, whichever place is believed.
    shutil.copy(path, label)
    assert np.array_equal(decode_label(label, image.grid).array[0], VOXELS)
    assert len(slice_entries(entry, VolumeStore(tmp_path / "store"))) == 7


def test_places_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    moved = FLIPPED.copy()
    moved[0, 3] = 0.01
    assert lies_in_one_place(two_places(tmp_path / "near.nii", moved))
    moved[0, 3] = 1.0
    assert not lies_in_one_place(two_places(tmp_path / "far.nii", moved))


def test_the_volume_of_a_voxel_that_leans_is_its_determinant() -> None:
    affine = np.array([[0.7, 0, 0, 3], [0, 0.9, 1.2, 4], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        own = affine[:, [*order, 3]]
        assert not at_right_angles(own)
        sides = voxel_sides(own)
        assert np.prod(sides) == pytest.approx(abs(np.linalg.det(own[:3, :3])))
        assert sorted(sides) == pytest.approx([0.7, *sorted(sides)[1:]])
    straight = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * [0.5, 2, 3]
    assert at_right_angles(np.pad(straight, (0, 1)))
    assert voxel_sides(straight) == pytest.approx((0.5, 2, 3))
    block = np.ones((2, 3, 4), np.uint8)
    table = measure(block, block, spacing=voxel_sides(affine), shift=(0, 0, 0))
    assert table["volume_mm3"].item() == pytest.approx(24 * 0.7 * 0.9 * 3.0)


def test_distances_of_a_tilted_gantry_are_in_voxels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tilted = np.array([[1.0, 0, 0, 0], [0, 1, 0.7, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    for name, affine in (("tilted", tilted), ("straight", np.diag([1.0, 1, 2, 1]))):
        nib.save(nib.Nifti1Image(VOXELS.astype(np.uint8) % 2, affine), tmp_path / f"{name}.nii")
    units = {}
    for name in ("straight", "tilted"):
        path = tmp_path / f"{name}.nii"
        case = EvaluatedCase(name=name, image=path, prediction=path, label=path, spacing=(1.0, 1.0, 2.0))
        units[name] = choose_ruler(Evaluation(tmp_path, "a", tmp_path, "test", ("background", "a"), (case,))).unit
    assert units == {"straight": "mm", "tilted": "pixels"}
    assert "not at right angles" in caplog.text


def test_slices_beside_their_line_make_no_volume(tmp_path: Path) -> None:
    for k in range(6):
        write_dicom(tmp_path / "jump" / f"{k}.dcm", STORED[k], {POSITION: f"{12 * (k > 2)}\\0\\{2 * k}"})
        write_dicom(tmp_path / "tilt" / f"{k}.dcm", STORED[k], {POSITION: f"0\\{0.7 * k}\\{2 * k}"})
    refused("do not lie in one line", choose_series, tmp_path / "jump")
    assert choose_series(tmp_path / "tilt").affine[:3, 2].tolist() == pytest.approx([0, -0.7, 2])


@pytest.mark.parametrize(("tags", "said"), [
    ({DIRECTIONS: ""}, "do not say how slices lie in the patient"), ({SIZES: "0\\0"}, "how large pixels are"),
    ({SIZES: ""}, "how large pixels are"),
])  # fmt: skip
def test_what_headers_do_not_say_is_said(tags: dict, said: str, tmp_path: Path) -> None:
    series = choose_series(write_series(tmp_path / "s", STORED, tags=tags))
    assert any(said in sentence for sentence in series.warnings)
    assert not choose_series(write_series(tmp_path / "t", STORED)).warnings


def test_directions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", STORED[0], {DIRECTIONS: "1\\0\\0\\1\\0\\0"})
    refused("no two directions at right angles", choose_series, tmp_path)


def test_values_that_only_some_slices_rescale_are_refused(tmp_path: Path) -> None:
    for k in range(4):
        slope = {} if k == 2 else {SLOPE: "2"}
        write_dicom(tmp_path / f"{k}.dcm", STORED[k], {POSITION: f"0\\0\\{2 * k}", **slope})
    refused("2.dcm has no RescaleSlope", choose_series, tmp_path)


def test_a_series_in_two_folders_is_said(tmp_path: Path) -> None:
    for k in range(6):
        write_dicom(tmp_path / f"s/D{k % 2}/{k}.dcm", STORED[k], {POSITION: f"0\\0\\{2 * k}"})
    assert "lies in 2 folders (D0, D1)" in prepare("volumes", tmp_path / "s", tmp_path / "out", test="0")


def test_a_name_that_denies_the_compression(tmp_path: Path) -> None:
    plain = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(VOXELS, FLIPPED), plain)
    shutil.copy(plain, tmp_path / "b.nii.gz")
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain.read_bytes()))
    refused(r"b.nii.gz is not compressed, .* ends in .nii\.$", read_volume, tmp_path / "b.nii.gz")
    refused(r"c.nii is compressed, .* ends in .nii.gz\.$", read_volume, tmp_path / "c.nii")
