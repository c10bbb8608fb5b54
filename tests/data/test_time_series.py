"""Time series: frames of one slice are its neighbours, by nibabel and NumPy; what is no series is refused."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medmdm.data.files.volumes import read_volume, volume_hash
from medmdm.data.reading import CaseReader
from medmdm.data.selection import Selection, select_training_images, slice_volumes
from medmdm.data.slices import LoadSliced, VolumeStore, slice_entries
from medmdm.data.time_series import check_time_series, frame_entries
from tests.data.dicom_files import write_series
from tests.made import refused
from tests.written import oblique, write_nifti

FRAMES = 5


def write(path: Path, axes: tuple[int, ...] = (6, 9, 4, FRAMES), **header: Any) -> Path:
    values = np.random.default_rng(list(path.name.encode())).integers(0, 3000, axes).astype(np.int16)
    image = nib.Nifti1Image(values, oblique((-1, 1, 1), (1, 0, 2)))
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def turned(path: Path) -> np.ndarray:
    """Return ``[frames, slices, rows, columns]``: slices to the head, rows to the back, columns to the left."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(3, 2, 1, 0)[:, :, ::-1, ::-1]


@pytest.mark.parametrize("context", [0, 1, 2])
def test_neighbours_are_frames_of_the_same_slice(context: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    entries = frame_entries({"image": str(path)}, VolumeStore(tmp_path / "store"))
    expected = turned(path)
    assert [(one["slice"], one["frame"]) for one in entries] == [(k, t) for k in range(4) for t in range(FRAMES)]
    load = LoadSliced("image", context)
    for entry in entries:
        k, t = entry["slice"], entry["frame"]
        frames = [min(max(t + step, 0), FRAMES - 1) for step in range(-context, context + 1)]
        assert np.array_equal(load(entry)["image"].numpy(), expected[frames, k])
        assert entry["position"] == k / 3
    assert "intensity_range" not in entries[0]


@pytest.mark.parametrize("nonzero", [False, True])
def test_one_range_for_all_frames(nonzero: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(2, 300, (20, 25, 12, FRAMES)) * np.arange(1, FRAMES + 1)  # grows brighter
    values[:4] = 0
    path = write_nifti(tmp_path / "a.nii.gz", values.astype(np.float32))
    entries = frame_entries({"image": str(path)}, VolumeStore(tmp_path / "store"), [2, 97], nonzero)
    (found,) = entries[0]["intensity_range"]
    kept = values[values != 0] if nonzero else values
    assert all(one["intensity_range"] == [found] for one in entries)
    for share, value in zip((2, 97), found, strict=True):
        assert 100 * (kept < value).mean() - 0.1 <= share <= 100 * (kept <= value).mean() + 0.1


def test_series_of_a_folder_train_and_are_held_out_whole(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "set" / f"{number}.nii", xyzt_units=2 | 16)
    selection = select_training_images(tmp_path / "set")
    settings = {"axis": "time", "context_slices": 1, "percentiles": [0, 100], "store": tmp_path / "store"}
    sliced = slice_volumes(selection, min_foreground=None, progress=False, **settings)
    assert (len(sliced.training), len(sliced.validation)) == (5 * 4 * FRAMES, 4 * FRAMES)
    assert "6 volumes cut into 120 slices, 0 of them left out as empty, counting each of their frames" in "\n".join(
        sliced.sentences
    )
    hashes = {volume_hash(read_volume(tmp_path / "set" / f"{n}.nii")) for n in range(6)}
    assert {one["volume_hash"] for one in (*sliced.training, *sliced.validation)} == hashes


def test_of_one_series_a_slab_is_held_out_at_all_times(tmp_path: Path) -> None:
    write(tmp_path / "set" / "one.nii", (6, 9, 13, FRAMES))
    settings = {"axis": "time", "context_slices": 1, "intensity_range": [0, 3000], "store": tmp_path / "store"}
    sliced = slice_volumes(select_training_images(tmp_path / "set"), min_foreground=None, progress=False, **settings)
    training, held = ({one["slice"] for one in part} for part in (sliced.training, sliced.validation))
    assert held
    assert training
    assert not training & held


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    for name, axes, header, sentence in (
        ("flat.nii", (6, 9, 4), {}, "flat.nii has the shape (6, 9, 4): slice_axis 'time' reads"),
        ("single.nii", (6, 9, 4, 1), {}, "two or more frames"),
        ("vectors.nii", (6, 9, 4, 1, 3), {"intent_code": 1007}, "two or more frames"),
        ("both.nii", (6, 9, 4, 2, 3), {}, "two or more frames"),
        ("matrices.nii", (6, 9, 4, 6), {"intent_code": 1005}, "its fourth axis is not time (intent_code 1005)"),
        ("spectra.nii", (6, 9, 4, 8), {"xyzt_units": 2 | 32}, "its fourth axis is not time (xyzt_units 32)"),
    ):
        path = write(tmp_path / name, axes, **header)
        refused(sentence.replace("(", r"\(").replace(")", r"\)"), check_time_series, str(path))
    colour = np.zeros((6, 9, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    refused("two or more frames", check_time_series, str(tmp_path / "colour.nii"))
    refused("is no such file", check_time_series, str(write_series(tmp_path / "dicom", np.zeros((3, 4, 5), np.int16))))
    series = [str(write(tmp_path / f"{name}.nii")) for name in "ab"]
    refused("one for each series", check_time_series, series)
    check_time_series(str(write(tmp_path / "said.nii", intent_code=2001, xyzt_units=2 | 8)))


def test_other_axes_read_such_files_as_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    entries = slice_entries({"image": str(path)}, VolumeStore(tmp_path / "store"))
    assert len(entries) == 4
    assert np.array_equal(LoadSliced("image")(entries[2])["image"].numpy(), turned(path)[:, 2])
    nothing = Selection(tmp_path, None, (), (), (), (), ())
    reader = CaseReader(nothing, {"slice_axis": "time", "intensity_range": [0, 1]}, tmp_path / "store")
    refused("frames of time series, which are not segmented", reader.read, {"case": "a", "image": str(path)})
