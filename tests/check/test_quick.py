"""The check at the start of training: cheap, and silent where nothing is wrong."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from medmdm.check.sharing import quick_check
from medmdm.data.selection import select_training_images
from tests.check.conftest import DataSet
from tests.made import refused


def selection(data: DataSet, **arguments):
    data.write()
    return select_training_images(data.folder, **arguments)


def test_sound_data_and_folders_without_a_list(data: DataSet) -> None:
    assert quick_check(selection(data)) == []
    assert quick_check(selection(data, data_list="none")) == []


def test_copies_are_refused_under_any_name(data: DataSet) -> None:
    shutil.copy(data.folder / "a1.png", data.folder / "b0.png")
    refused(r"b0\.png is in test and a copy of it, .*a1\.png, in training", quick_check, selection(data))
    assert quick_check(selection(data, transductive=True)) == []


def test_files_of_one_size_are_not_copies(data: DataSet) -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 20, 3))
    (data.folder / "big").mkdir()
    data.sections = {"training": [{"image": "big/a.bmp"}], "test": [{"image": "big/b.bmp"}]}
    data.picture("big/a.bmp", array)
    array[0, 0] ^= 1  # far from the middle of the file
    data.picture("big/b.bmp", array)
    assert quick_check(selection(data)) == []


def test_parts_and_slices_of_one_file_are_not_copies(data: DataSet) -> None:
    data.sections["training"] = [{"image": "a0.png", "region": {"columns": [0, 10]}}]
    data.sections["test"] = [{"image": "a0.png", "region": {"columns": [10, 20]}}]
    chosen = selection(data)
    assert quick_check(chosen) == []
    shutil.copy(data.folder / "a0.png", data.folder / "copy.png")
    data.sections["test"] = [{"image": "copy.png", "region": {"columns": [10, 20]}}]
    assert quick_check(selection(data)) == []
    slices = [{"image": chosen.training[0]["image"], "slice": number} for number in range(4)]
    assert quick_check(replace(chosen, training=tuple(slices[:2]), validation=tuple(slices[2:]), test=())) == []


def test_shared_patients_are_a_warning(data: DataSet) -> None:
    data.sections["test"][0]["patient_id"] = "SECRET0"
    (warning,) = quick_check(selection(data))
    assert "1 of 1 test cases are of patients who are also in training" in warning
    assert "SECRET" not in warning


def test_vanished_images_and_absent_test_images(data: DataSet) -> None:
    (data.folder / "b0.png").unlink()  # test images are often kept elsewhere
    chosen = selection(data)
    assert quick_check(chosen) == []
    (data.folder / "a0.png").unlink()
    refused(r"a0\.png does not exist any more", quick_check, chosen)


def test_training_says_it_at_the_start(data: DataSet, caplog: pytest.LogCaptureFixture) -> None:
    from medmdm.pretrain.log import announce

    class Told:
        sentence = "told"
        sentences = ("told",)

    data.sections["test"][0]["patient_id"] = "SECRET0"
    with caplog.at_level(logging.WARNING):
        announce(selection(data), selection(data), Told(), Told())  # type: ignore[arg-type]
    assert "also in training" in caplog.text
