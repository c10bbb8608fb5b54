"""DICOM folders as archives deliver them: what is no slice is left out and said, and nothing is still being decoded."""

import logging
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.dicom import choose_series
from medmdm.data.files.formats import is_dicom, is_volume
from medmdm.data.files.volumes import read_volume
from medmdm.data.folders import find_images
from medmdm.data.threads import decoding_threads
from medmdm.errors import UserError
from medmdm.prepare import prepare
from tests.bundle_runs import BUNDLES, run_python
from tests.data.dicom_files import structures, write_dicom, write_series
from tests.made import refused

SLICES = np.random.default_rng(0).integers(0, 900, (8, 10, 12)).astype(np.int16)
STORAGE = "1.2.840.10008.5.1.4.1.1."
KINDS = {"RTSTRUCT": "481.3", "RTPLAN": "481.5", "a report": "88.11", "a presentation state": "11.1",
         "key objects": "88.59", "a document": "104.1", "raw data": "66", "a registration": "66.1"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rs.dcm", "RS0001"])
def test_files_without_pixels(kind: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = write_series(tmp_path / "p" / "ct", SLICES)
    beside = structures(series / name, STORAGE + KINDS[kind])
    structures(tmp_path / "p" / "rt" / name, STORAGE + KINDS[kind])
    assert not is_dicom(beside)
    assert is_dicom(beside, pixels=False)
    assert not is_volume(tmp_path / "p" / "rt")
    assert np.array_equal(read_volume(series).array[0], np.swapaxes(SLICES, 0, 2))
    assert choose_series(series).warnings == (
        f"{series}: 1 file without pixels left out, such as structures or reports (first: {name})",
    )
    caplog.set_level(logging.WARNING)
    assert find_images(tmp_path).images == (series,)
    assert f"{tmp_path}: 2 DICOM files without pixels left out" in caplog.text
    assert "2 DICOM files without pixels left out" in prepare("volumes", tmp_path / "p", tmp_path / "out", test=0)


@pytest.mark.parametrize("kind", ["2", "4", "7", "481.1", "481.2", "66.4", "66.7"])
def test_kinds_with_pixels_are_images(kind: str, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", SLICES[0], {(0x0008, 0x0016): STORAGE + kind})
    assert is_dicom(path)
    assert not is_dicom(path, pixels=False)


@pytest.mark.parametrize("copied", ["same bytes", "same pixels under another UID", "whole series"])
def test_copies_of_slices(copied: str, tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", SLICES)
    files = sorted(series.iterdir())
    if copied == "same pixels under another UID":
        write_series(series, SLICES[:1], prefix="copy_", tags={(0x0008, 0x0018): "1.2.3.4.99"})
    for path in {"same bytes": files[2:3], "whole series": files}.get(copied, []):
        shutil.copy(path, series / f"{path.stem} (1).dcm")
    found = choose_series(series)
    assert {file.path.name for file in found.slices} == {path.name for path in files}
    assert len(found.warnings) == 1
    assert "left out, since the same slice is there twice" in found.warnings[0]
    assert np.array_equal(read_volume(series).array[0], np.swapaxes(SLICES, 0, 2))


def test_images_at_one_position_that_differ(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", SLICES)
    write_series(series, SLICES[:1] + 1, prefix="echo_")
    refused("several images at one position", read_volume, series)


def test_an_empty_file(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", SLICES)
    (series / "099.dcm").touch()
    assert "1 empty file left out, so that slices may be missing (first: 099.dcm)" in choose_series(series).warnings[0]
    assert np.array_equal(read_volume(series).array[0], np.swapaxes(SLICES, 0, 2))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.dcm").touch()
    refused(r"holds no DICOM image \(1 empty file left out", read_volume, tmp_path / "e")


def test_pixels_of_no_known_size(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", SLICES, tags={(0x0028, 0x0030): ""})
    assert "do not say how large pixels are, so that 1 mm is taken" in choose_series(series).warnings[0]


def test_threads_have_ended_after_an_error() -> None:
    running = threading.active_count()
    begun, ended = [], []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise UserError("x")
        time.sleep(0.05)
        ended.append(number)

    def all_of_it() -> None:
        with decoding_threads(2) as pool:
            list(pool.imap(work, range(50)))

    refused("x", all_of_it)
    assert threading.active_count() == running
    assert len(begun) == len(ended) + 1 < 50


@pytest.mark.slow
def test_an_error_beside_long_series_ends_with_status_1(tmp_path: Path) -> None:
    for patient in range(4):
        series = write_series(tmp_path / "s" / f"p{patient}", np.repeat(SLICES, 12, 0)[: 96 if patient else 8])
        if not patient:
            write_series(series, SLICES[:1] + 1, prefix="echo_")
    files = f"['{BUNDLES / 'mdm_pretrain.json'}', '{BUNDLES / 'overlays' / 'mr_slices.json'}']"
    arguments = ["--dataset_dir", str(tmp_path / "s"), "--crop_size", "[8,8]", "--max_steps", "1", "--slice_cache", "c"]
    made = run_python("-m", "monai.bundle", "run", "--config_file", files, *arguments, cwd=tmp_path, code=1)
    assert "several images at one position" in made.stderr
    assert sys.platform != "linux" or "FATAL" not in made.stderr
