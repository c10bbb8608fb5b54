"""The unlabelled images of a data list are checked as the others are."""

# ruff: noqa: F811 - fixtures

from collections.abc import Callable

import numpy as np
import pytest

from medmdm.check.sharing import shared_patients
from medmdm.data.lists import load_data_list
from tests.check.conftest import DataSet, data, only  # noqa: F401
from tests.written import random


@pytest.fixture
def partly(data: DataSet) -> DataSet:
    data.sections["unlabeled"] = []
    for i in range(2):
        data.picture(f"u{i}.png", random((12, 20, 3), f"u{i}"))
        data.sections["unlabeled"].append({"image": f"u{i}.png", "patient_id": f"SECRETu{i}"})
    return data


def test_sound(partly: DataSet) -> None:
    report = partly.check()
    assert report.findings == ()
    assert [(row.section, row.cases, row.labels, row.patients) for row in report.rows][-1] == ("unlabeled", 2, 0, 2)
    assert "unlabeled" in report.as_text()


def missing(data: DataSet) -> None:
    (data.folder / "u0.png").unlink()


def broken(data: DataSet) -> None:
    (data.folder / "u0.png").write_bytes(b"no picture")


def grey(data: DataSet) -> None:
    data.picture("u0.png", random((12, 20), "grey"))


def constant(data: DataSet) -> None:
    data.picture("u0.png", np.full((12, 20, 3), 7))


def copy_of_a_test_image(data: DataSet) -> None:
    (data.folder / "u0.png").write_bytes((data.folder / "b0.png").read_bytes())


def copy_of_a_labelled_image(data: DataSet) -> None:
    (data.folder / "u0.png").write_bytes((data.folder / "a1.png").read_bytes())


def of_a_test_patient(data: DataSet) -> None:
    data.sections["unlabeled"][0]["patient_id"] = " SECRET9"


@pytest.mark.parametrize(("spoil", "kind", "said"), [
    (missing, "missing-file", "u0.png in unlabeled does not exist"),
    (broken, "unreadable", "u0.png"),
    (grey, "channels-differ", "u0.png has 1 channel where 3 are expected"),
    (constant, "constant-image", "u0.png has the value 7 everywhere"),
    (copy_of_a_test_image, "image-in-two-sections", "a score on an image that was trained on says nothing"),
    (copy_of_a_labelled_image, "image-in-two-sections", "remove the one in unlabeled, for it is labelled"),
    (of_a_test_patient, "patient-in-two-sections", "1 of 2 unlabeled cases are of patients who are also in test"),
])  # fmt: skip
def test_spoilt(
    partly: DataSet,
    only: Callable,
    spoil: Callable[[DataSet], None],
    kind: str,
    said: str,
) -> None:
    spoil(partly)
    finding = only(partly.check(), kind)
    assert said in finding.message
    assert "SECRET" not in finding.message


def test_patients_that_are_labelled_in_part_are_worth_a_warning(partly: DataSet, only: Callable) -> None:
    partly.sections["unlabeled"][0]["patient_id"] = "SECRET0"
    finding = only(partly.check(), "patient-labelled-in-part", "warning")
    assert "1 of 2 unlabeled cases are of patients who are also in training" in finding.message


def test_the_publishers_split_does_not_excuse_it() -> None:
    content = {
        "split": "official",
        "test": [{"image": "a", "patient_id": 1}],
        "unlabeled": [{"image": "b", "patient_id": "1"}],
    }
    assert [one.level for one in shared_patients(load_data_list(content))] == ["error"]
