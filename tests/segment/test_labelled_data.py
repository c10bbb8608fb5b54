"""Which cases are read besides the labelled ones, and how many of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader
from medmdm.segment.labelled_data import LabelledData
from tests.made import refused
from tests.made_slides import write_slide
from tests.written import picture


def _data(pictures: Path, **settings: Any) -> LabelledData:
    reader = CaseReader(select_cases(str(pictures), None), {"channels": 3, "crop_size": [16, 16]})
    return LabelledData(reader, shots=1, rule="seeded", **settings)


def test_what_is_outside_the_support_is_read_without_labels(pictures: Path) -> None:
    data = _data(pictures)
    support = data.support()
    others = data.others(support)
    assert [case.name for case in others] == [str(n) for n in range(4) if str(n) != support[0].name]
    assert [case.name for case in data.each_other(support)] == [case.name for case in others]
    assert all(case.truth is None for case in others)


def test_of_more_images_than_fit_a_random_part_is_read(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = _data(pictures)
    support = whole.support()
    every = whole.others(support)
    each = max(one.image.nbytes + one.label.nbytes for case in every for one in case.examples)
    data = _data(pictures, unlabelled_gib=2.5 * each / 2**30)
    found = data.others(support)
    assert len(found) == 2
    assert "a random 2 of 3 are used" in caplog.text
    assert [case.name for case in data.others(support)] == [case.name for case in found]
    assert len(list(data.each_other(support))) == 3
    assert not _data(pictures, unlabelled_gib=1e-9).others(support)
    least = min(one.image.nbytes + one.label.nbytes for case in every for one in case.examples)
    assert len(_data(pictures, unlabelled_gib=least / 2**30).others(support)) == 1  # whichever comes first


def test_a_picture_that_is_too_large_and_a_slide_are_not_read(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(pictures / "large.png", np.zeros((400, 300, 3), np.uint8))
    write_slide(pictures / "slide.tif", (300, 310))
    file = pictures / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "unlabeled": ["large.png", "slide.tif"]}))
    support = _data(pictures).support()
    names = {entry["case"] for entry in _data(pictures).cases.training} - {support[0].name}
    assert {case.name for case in _data(pictures).others(support)} == {*names, "large"}
    found = _data(pictures, unlabelled_gib=400 * 300 * 4 / 2**30 - 1e-9).others(support)
    assert {case.name for case in found} == names
    assert "a random 3 of 4 are used" in caplog.text


@pytest.mark.parametrize(
    ("told", "channels", "modality"),
    [(None, 3, "histology"), (None, 1, "radiology"), ("MR", 3, "radiology"), ({"0": "H&E"}, 1, "histology")],
)
def test_the_modality_follows_the_list_then_the_channels(
    pictures: Path, told: Any, channels: int, modality: str
) -> None:
    file = pictures / "dataset.json"
    if told is not None:
        file.write_text(json.dumps({**json.loads(file.read_text()), "modality": told}))
    data = LabelledData(CaseReader(select_cases(str(pictures), None), {"channels": channels}), shots=1, rule="seeded")
    assert data.modality == modality


def test_memory_of_unlabelled_images_is_above_0(pictures: Path) -> None:
    for wrong in (0, -1.0, "4", None, True):
        refused("unlabelled_gib must be a number above 0", _data, pictures, unlabelled_gib=wrong)
