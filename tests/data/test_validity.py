"""One answer to "does this label lie on its image": of training, the check, the preparation and the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.check.data_list import check
from medmdm.data.cases import select_cases
from medmdm.data.files.decoding import decode_label
from medmdm.data.reading import CaseReader
from medmdm.data.validity import (
    ImageGrid,
    check_finite,
    check_known,
    check_range,
    check_same_grid,
    grid_distance,
    label_numbers,
)
from medmdm.errors import UserError
from medmdm.prepare import prepare
from tests.made import refused
from tests.written import write_nifti

SMALL, LARGE = (20, 20, 5), (200, 200, 50)
PLAIN = np.eye(4)


def affine(spacing: float = 1.0, **changes: float) -> np.ndarray:
    """Return a plain affine with changed entries: ``m01=0.1`` changes row 0, column 1."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    for key, value in changes.items():
        matrix[int(key[1]), int(key[2])] = value
    return matrix


def turned(degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return matrix


#: Shape and affine of the image, shape and affine of the label, whether the label lies on the image.
CASES: dict[str, tuple[tuple[int, ...], np.ndarray, tuple[int, ...], np.ndarray, bool]] = {
    "the same": (SMALL, PLAIN, SMALL, PLAIN, True),
    # The sum of absolute differences makes it 0.120 mm, but no voxel lies further off than 0.060 mm.
    "a small shear": (LARGE, PLAIN, LARGE, affine(m01=0.0003, m03=-0.06), True),
    "a shear": (SMALL, PLAIN, SMALL, affine(m01=0.01), False),
    "a shift of a twentieth": (SMALL, PLAIN, SMALL, affine(m03=0.05), True),
    "a shift": (SMALL, PLAIN, SMALL, affine(m03=0.2), False),
    "a shift of two small voxels": (SMALL, affine(0.01), SMALL, affine(0.01, m03=0.02), False),
    "a shift of a hundredth of a large voxel": (SMALL, affine(5.0), SMALL, affine(5.0, m03=0.05), True),
    "a small rotation": (SMALL, PLAIN, SMALL, turned(0.1), True),
    "a rotation": (SMALL, PLAIN, SMALL, turned(1.0), False),
    "a flipped axis": (SMALL, PLAIN, SMALL, affine(m00=-1.0, m03=19.0), True),
    "a flipped axis elsewhere": (SMALL, PLAIN, SMALL, affine(m00=-1.0, m03=20.0), False),
    "axes in another order": (SMALL, PLAIN, (20, 5, 20), PLAIN[:, [0, 2, 1, 3]], True),
    "another spacing": (SMALL, PLAIN, SMALL, affine(m22=1.25), False),
    "another shape": (SMALL, PLAIN, (20, 20, 4), PLAIN, False),
    "swapped axes": (SMALL, PLAIN, (20, 5, 20), PLAIN, False),
}


def answer(ask: Callable[[], Any]) -> bool:
    try:
        return ask() is not False
    except UserError:
        return False


@pytest.mark.parametrize("name", CASES)
def test_four_users_give_one_answer(name: str, tmp_path: Path) -> None:
    shape, image_affine, label_shape, label_affine, expected = CASES[name]
    data = tmp_path / "release"
    for kind, size, matrix in (("image", shape, image_affine), ("label", label_shape, label_affine)):
        array = np.zeros(size, np.uint8)
        array[1:4, 1:4] = 1
        write_nifti(data / f"{kind}s" / "a.nii", array, matrix)
    entry = {"image": "images/a.nii", "label": "labels/a.nii"}
    content = {"name": "grid", "labels": {"background": 0, "blob": 1}, "training": [entry]}
    (data / "dataset.json").write_text(json.dumps(content))

    def train() -> Any:
        cases = select_cases(data)
        plan = {"intensity_range": [0, 1], "channels": 1}
        return CaseReader(cases, plan, tmp_path / "store").read(cases.training[0])

    def checked() -> bool:
        return not any(finding.check.startswith("label-") for finding in check(data / "dataset.json").errors)

    def reported() -> Any:
        image = ImageGrid(shape, image_affine)
        label = decode_label(data / "labels" / "a.nii", image)
        check_same_grid(label.grid, image, "label", "image", "evaluate again")

    answers = [answer(ask) for ask in (train, checked, lambda: prepare("volumes", data, tmp_path / "out"), reported)]
    assert answers == [expected] * 4


def test_distance_is_that_of_the_farthest_voxel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(int(n) for n in rng.integers(1, 6, 3))
        one, other = (np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]]) for _ in range(2))
        voxels = np.concatenate([np.indices(shape).reshape(3, -1), np.ones((1, np.prod(shape)))])
        farthest = np.linalg.norm((one @ voxels - other @ voxels)[:3], axis=0).max()
        assert grid_distance(ImageGrid(shape, one), ImageGrid(shape, other)) == pytest.approx(farthest)


def test_pictures_and_volumes_are_told_apart() -> None:
    with pytest.raises(UserError, match="of y and x, one is a volume and one a picture"):
        check_same_grid(ImageGrid((3, 4)), ImageGrid((3, 4, 1), PLAIN), "y", "x")


@pytest.mark.parametrize(("label", "words"), [
    (np.zeros((2, 3, 3)), "2 channels"),
    (np.full((1, 2, 2), np.nan), "not finite"),
    (np.full((1, 2, 2), 0.5), r"whole numbers \(such as 0.5\)"),
    (np.full((1, 2, 2), -1), r"negative values \(-1\)"),
    (np.full((1, 2, 2), 9), "holds the number 9: numbers up to 8"),
])  # fmt: skip
def test_wrong_labels(label: np.ndarray, words: str) -> None:
    refused(f"y.png .*{words}", label_numbers, label, "y.png", most=8)


def test_whole_floats_and_bits_become_whole_numbers() -> None:
    assert label_numbers(np.ones((1, 2, 2), np.float32), "y").dtype == np.int64
    assert label_numbers(np.ones((1, 2, 2), bool), "y").dtype == np.uint8
    assert label_numbers(np.ones((1, 2, 2), np.uint16), "y").dtype == np.uint16


def test_unknown_numbers() -> None:
    check_known(np.array([0, 1, 255]), (0, 1), 255, "y")
    check_known({0, 255}, None, None, "y")
    with pytest.raises(UserError, match="y holds 2, 3, but the classes are 0 background, 1 gland"):
        check_known(np.array([0, 2, 3]), (0, 1), None, "y", ["background", "gland"])
    refused("y holds grey levels .2, 255, …., as a mask has whose edges", check_known, {0, 2, 255}, (0, 1), None, "y")
    refused("y holds 256, but numbers must be below 256", check_known, {256}, None, 255, "y")
    refused("0, 1, 2, 3, 4, 5, 6, 7, …", check_known, range(10), (), None, "y")


def test_values() -> None:
    check_finite(np.arange(3), "x")
    refused(r"x holds values that are not finite \(50.00% NaN or infinite\)", check_finite, np.array([0, np.inf]), "x")
    check_range(np.array([-1.00005, 1]), "x")
    refused("x gives values outside", check_range, np.array([0, 1.01]), "x")
