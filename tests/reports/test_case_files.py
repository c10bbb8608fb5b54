from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.data.files.pictures import read_image
from medmdm.errors import UserError
from medmdm.reports.case_files import read_case
from medmdm.runs.record import Evaluation
from tests.reports.runs import AFFINE, SHAPE, change, change_case, nifti, picture, picture_run, volume_run


def read(run: Path, number: int = 0) -> Any:
    evaluation = Evaluation.load(run)
    return read_case(evaluation.cases[number], evaluation)


def test_picture_with_objects(tmp_path: Path) -> None:
    arrays = read(picture_run(tmp_path, cases=1))
    label = read_image(tmp_path / "data" / "case_0_label.png")[0]
    assert np.array_equal(arrays.truth_instances, label)
    assert np.array_equal(arrays.truth, label > 0)
    assert set(np.unique(arrays.prediction)) == {0, 1}
    assert np.array_equal(arrays.predicted_instances > 0, arrays.prediction)
    assert arrays.image.shape == (3, *SHAPE)
    assert arrays.maps["uncertainty"].shape == SHAPE
    assert arrays.affine is None


def test_volume_with_classes(tmp_path: Path) -> None:
    arrays = read(volume_run(tmp_path, cases=2), 1)
    assert set(np.unique(arrays.truth)) == {0, 1, 2, 255}
    assert arrays.truth_instances is None
    assert arrays.image.shape == (1, *arrays.truth.shape)
    assert set(arrays.maps) == {"surprise"}
    assert np.allclose(arrays.affine, AFFINE)


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_of_a_picture_with_a_mask_of_the_whole_or_of_the_part(tmp_path: Path, whole: bool) -> None:
    run = picture_run(tmp_path, cases=1)
    change_case(run, 0, region={"rows": [5, 30], "columns": [7, 50]}, uncertainty=None)
    if not whole:
        for kind in ("masks", "instances"):
            mask = read_image(run / kind / "case_0.png")[0]
            picture(run / kind / "case_0.png", mask[5:30, 7:50])
    arrays = read(run)
    label = read_image(tmp_path / "data" / "case_0_label.png")[0]
    assert np.array_equal(arrays.truth_instances, label[5:30, 7:50])
    assert arrays.prediction.shape == arrays.predicted_instances.shape == (25, 43)
    assert arrays.image.shape == (3, 25, 43)


def test_aperio_outlines_are_labels(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((10, 5), (30, 5), (30, 20), (10, 20)))
    (tmp_path / "data" / "a.xml").write_text(
        f"<Annotations><Annotation><Regions><Region Id='1'><Vertices>{corners}</Vertices></Region></Regions>"
        "</Annotation></Annotations>"
    )
    change_case(run, 0, label="a.xml")
    arrays = read(run)
    rows, columns = np.nonzero(arrays.truth_instances)
    assert (rows.min(), columns.min()) == (5, 10)
    assert abs(rows.max() - 20) <= 1
    assert abs(columns.max() - 30) <= 1


def test_scores_need_no_image_and_no_map(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    (tmp_path / "data" / "case_0.png").unlink()
    (run / "uncertainty" / "case_0.tif").unlink()
    arrays = read(run)
    assert arrays.image is None
    assert not arrays.maps


def test_floats_that_are_whole_and_bilevel_masks_are_read(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=1)
    nifti(run / "masks" / "vol_0.nii.gz", np.ones((20, 16, 12), np.float32))
    assert read(run).prediction.sum() == 20 * 16 * 12


def put(name: str, value: float, dtype: type, shape: tuple[int, ...] = SHAPE) -> Callable[[Path, Path], None]:
    """Write a predicted mask of one value in the place of the right one."""

    def damage(run: Path, data: Path) -> None:
        picture(run / name, np.full(shape, value, dtype))
        change_case(run, 0, prediction=name)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run, data: (data / "case_0_label.png").unlink(), "label case_0_label.png is missing"),
        (lambda run, data: change_case(run, 0, label=None), "no label in the data list"),
        (lambda run, data: (run / "masks" / "case_0.png").unlink(), "predicted mask case_0.png is missing"),
        (lambda run, data: change_case(run, 0, prediction=None), "has a truth, but no prediction"),
        (put("masks/a.png", 0, np.uint8, SHAPE[::-1]), "the predicted mask is 56x40 and the label 40x56"),
        (lambda run, data: picture(data / "case_0.png", np.zeros((3, 8, 9), np.uint8)), "is 8x9 and the label 40x56"),
        (put("masks/a.png", 0, np.uint8, (3, *SHAPE)), "3 channels"),
        (put("masks/a.png", 7, np.uint8), "predicted mask holds 7, but the classes are 0 background, 1 gland"),
        # Labels that are no objects may not hold 3 and 5.
        (
            lambda run, data: change(run, data_list={"label_type": "classes"}),
            "the label holds 3, 5, but the classes are 0 back",
        ),
        (put("masks/a.tif", 0.5, np.float32), "not whole numbers"),
        (put("masks/a.tif", -1, np.int32), "holds negative values (-1)"),
        (lambda run, data: (run / "masks" / "case_0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing"), "cannot be used"),
        (lambda run, data: (run / "instances" / "case_0.png").unlink(), "map of objects case_0.png is missing"),
        (
            lambda run, data: picture(run / "uncertainty" / "case_0.tif", np.full(SHAPE, np.inf, np.float32)),
            "not finite",
        ),
        (lambda run, data: change_case(run, 0, region={"rows": [0, 999], "columns": [0, 10]}), "999"),
    ],
)
def test_a_wrong_picture_is_named_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path, Path], None], said: str
) -> None:
    run = picture_run(tmp_path, cases=1)
    damage(run, tmp_path / "data")
    with pytest.raises(UserError) as caught:
        read(run)
    sentence = str(caught.value)
    assert said in sentence
    assert sentence.startswith("case_0")
    assert "\n" not in sentence


def test_a_volume_beside_its_label_is_refused(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=1)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    nifti(run / "masks" / "vol_0.nii.gz", np.zeros((20, 16, 12), np.uint8), moved)
    with pytest.raises(UserError, match="vol_0: the predicted mask lies up to 5 mm beside the label"):
        read(run)
    nifti(run / "masks" / "vol_0.nii.gz", np.zeros((20, 16, 12), np.uint8))
    nifti(tmp_path / "data" / "vol_0.nii.gz", np.zeros((20, 16, 12), np.float32), moved)
    with pytest.raises(UserError, match="the image lies up to 5 mm"):
        read(run)


def test_rounding_of_affines_passes(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=1)
    nifti(run / "masks" / "vol_0.nii.gz", np.zeros((20, 16, 12), np.uint8), AFFINE + 1e-4)
    assert read(run).prediction.shape == (20, 16, 12)


def test_a_picture_for_a_volume_is_refused(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=1)
    picture(run / "masks" / "flat.png", np.zeros((20, 16), np.uint8))
    change_case(run, 0, prediction="masks/flat.png")
    with pytest.raises(UserError, match="vol_0: the predicted mask is 20x16"):
        read(run)
