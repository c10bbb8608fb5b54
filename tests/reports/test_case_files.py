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
from tests.reports.runs import AFFINE, SHAPE, VOLUME, change, change_case, nifti, picture, picture_run, volume_run


def read(run: Path, number: int = 0) -> Any:
    evaluation = Evaluation.load(run)
    return read_case(evaluation.cases[number], evaluation)


def test_picture_with_objects(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    arrays = read(run)
    label = read_image(tmp_path / "data" / "case_0_label.png")[0]
    assert np.array_equal(arrays.truth_instances, label)
    assert np.array_equal(arrays.truth, label > 0)
    assert set(np.unique(arrays.prediction)) == {0, 1}
    assert np.array_equal(arrays.predicted_instances > 0, arrays.prediction)
    assert arrays.image.shape == (3, *SHAPE)
    assert arrays.maps["uncertainty"].shape == SHAPE
    assert arrays.affine is None
    (tmp_path / "data" / "case_0.png").unlink()  # scores need no image and no map
    (run / "uncertainty" / "case_0.tif").unlink()
    arrays = read(run)
    assert arrays.image is None
    assert not arrays.maps


def test_masks_of_0_and_255_are_those_of_0_and_1(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=1)
    expected = read(run).prediction
    picture(run / "masks" / "case_0.png", (expected * 255).astype(np.uint8))
    assert np.array_equal(read(run).prediction, expected)
    picture(run / "masks" / "case_0.png", (expected * 7).astype(np.uint8))
    with pytest.raises(UserError, match="case_0: the predicted mask"):
        read(run)


def test_volume_with_classes(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=2)
    arrays = read(run, 1)
    assert set(np.unique(arrays.truth)) == {0, 1, 2, 255}
    assert arrays.truth_instances is None
    assert arrays.image.shape == (1, *arrays.truth.shape)
    assert set(arrays.maps) == {"surprise"}
    assert np.allclose(arrays.affine, AFFINE)
    nifti(run / "masks" / "vol_1.nii.gz", np.ones(VOLUME, np.float32))  # floats that are whole
    assert read(run, 1).prediction.sum() == np.prod(VOLUME)


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
    assert (rows.max(), columns.max()) == pytest.approx((20, 30), abs=1)


def put(name: str, value: float, dtype: type, shape: Any = SHAPE, what: str = "prediction") -> Callable[..., None]:
    """Write a mask of one value in the place of the right one."""

    def damage(run: Path, data: Path) -> None:
        picture(run / name, np.full(shape, value, dtype))
        change_case(run, 0, **{what: name})

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
        (
            lambda run, data: picture(
                run / "masks/case_0.png", np.stack([np.full(SHAPE, n, np.uint8) for n in (0, 1, 2)])
            ),
            "3 channels",
        ),
        (put("masks/a.png", 7, np.uint8), "predicted mask holds 7, but the classes are 0 background, 1 gland"),
        # Labels that are no objects may not hold 3 and 5.
        (
            lambda run, _: change(run, data_list={"label_type": "classes"}),
            "label holds 3, 5, but the classes are 0 back",
        ),
        (put("masks/a.tif", 0.5, np.float32), "not whole numbers"),
        (put("masks/a.tif", -1, np.int32), "holds negative values (-1)"),
        (lambda run, data: (run / "masks" / "case_0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing"), "cannot be used"),
        (lambda run, data: (run / "instances" / "case_0.png").unlink(), "map of objects case_0.png is missing"),
        (put("a.tif", np.inf, np.float32, what="uncertainty"), "not finite"),
        (lambda run, data: change_case(run, 0, region={"rows": [0, 999], "columns": [0, 10]}), "999"),
    ],
)
def test_a_wrong_picture_is_named_in_one_sentence(tmp_path: Path, damage: Callable[..., None], said: str) -> None:
    run = picture_run(tmp_path, cases=1)
    damage(run, tmp_path / "data")
    with pytest.raises(UserError) as caught:
        read(run)
    sentence = str(caught.value)
    assert said in sentence
    assert sentence.startswith("case_0")
    assert "\n" not in sentence


def test_volumes_must_lie_on_their_labels(tmp_path: Path) -> None:
    run = volume_run(tmp_path, cases=1)
    mask, moved = run / "masks" / "vol_0.nii.gz", AFFINE.copy()
    moved[0, 3] += 5
    nifti(mask, np.zeros(VOLUME, np.uint8), moved)
    with pytest.raises(UserError, match="vol_0: the predicted mask lies up to 5 mm beside the label"):
        read(run)
    nifti(mask, np.zeros(VOLUME, np.uint8), AFFINE + 1e-4)  # rounding passes
    assert read(run).prediction.shape == VOLUME
    picture(run / "flat.png", np.zeros(VOLUME[:2], np.uint8))
    change_case(run, 0, prediction="flat.png")
    with pytest.raises(UserError, match="vol_0: the predicted mask is 20x16"):
        read(run)
    change_case(run, 0, prediction="masks/vol_0.nii.gz")
    nifti(tmp_path / "data" / "vol_0.nii.gz", np.zeros(VOLUME, np.float32), moved)
    with pytest.raises(UserError, match="the image lies up to 5 mm"):
        read(run)
