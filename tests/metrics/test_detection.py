"""Average precision against COCO's own program, and what it is where there is nothing to score."""

import contextlib
import io
import math

import numpy as np
import pytest
from scipy import ndimage

from medmdm.metrics.detection import average_precision, box_iou, match_boxes, object_boxes
from medmdm.segment.postprocessing import boxes


def random_image(rng: np.random.Generator, kind: str, classes: int) -> tuple[np.ndarray, ...]:
    """True boxes and detections near some of them, as rows and columns; scores of few values, so that many tie."""
    true = np.zeros((0, 4), np.int64) if kind == "no truth" else _boxes(rng, rng.integers(1, 25))
    near = true[rng.random(len(true)) < 0.7] + rng.integers(-3, 4, (1, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    pred = np.concatenate([near, near[: len(near) // 3], _boxes(rng, rng.integers(0, 12))])
    pred = pred[:0] if kind == "no prediction" else rng.permutation(pred)
    scores = rng.integers(1, 8, len(pred)) / 8
    return pred, scores, true, rng.integers(1, classes + 1, len(pred)), rng.integers(1, classes + 1, len(true))


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    corner = rng.integers(0, (60, 90), (number, 2))
    return np.concatenate([corner, corner + rng.integers(2, 21, (number, 2))], axis=1)


def coco_program(images: list[tuple[np.ndarray, ...]]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def listed(table: np.ndarray) -> list[list[float]]:
        return [[float(x) for x in (c, r, c_end - c, r_end - r)] for r, c, r_end, c_end in table]

    truths, found = [], []
    for number, (pred, scores, true, pred_classes, true_classes) in enumerate(images, start=1):
        for box, c in zip(listed(true), true_classes, strict=True):
            area = box[2] * box[3]
            one = {"image_id": number, "category_id": int(c), "bbox": box, "area": area, "iscrowd": 0}
            truths.append({**one, "id": len(truths) + 1})
        for box, score, c in zip(listed(pred), scores, pred_classes, strict=True):
            found.append({"image_id": number, "category_id": int(c), "bbox": box, "score": float(score)})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": c} for c in range(1, 6)],
        "annotations": truths,
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.params.maxDets = [1, 10, 100000]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]  # [ious, recalls, classes], all sizes
    chosen = {"ap": precision, "ap50": precision[:1], "ap75": precision[5:6]}
    return {name: float(values[values > -1].mean()) for name, values in chosen.items()}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_as_cocos_program(seed: int, classes: int) -> None:
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    kinds = ["both", "no truth", "both", "no prediction", "both"]
    images = [random_image(rng, kind, classes) for kind in kinds]
    own = average_precision([match_boxes(*image) for image in images])
    official = coco_program(images)
    assert 0 < official["ap"] < official["ap50"] < 1
    for name, value in official.items():
        assert own[name] == pytest.approx(value, abs=1e-6), name


def test_more_than_a_hundred_detections() -> None:
    """COCO stops at 100 detections an image; of images full of nuclei all are judged."""
    places = np.arange(300)
    grid = np.stack([places // 20 * 10, places % 20 * 10], axis=1)
    table = np.concatenate([grid, grid + 7], axis=1)
    scores = average_precision([match_boxes(table, np.linspace(0, 1, 300), table)])
    assert scores == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})


def test_nothing_to_score() -> None:
    none, some = np.zeros((0, 4)), np.array([[0, 0, 4, 6]])
    empty, missed = match_boxes(none, [], none), match_boxes(none, [], some)
    invented = match_boxes(some, [0.5], none)
    assert all(math.isnan(v) for v in average_precision([empty]).values())
    assert all(math.isnan(v) for v in average_precision([invented]).values())
    assert set(average_precision([missed]).values()) == {0.0}
    right = match_boxes(some, [0.4], some)
    assert average_precision([right])["ap"] == pytest.approx(1)
    # A surer false alarm in an image without truth costs precision of the others.
    assert average_precision([right, invented])["ap"] == pytest.approx(0.5)


def test_iou_of_boxes() -> None:
    wide, moved = [[0, 0, 2, 10]], [[0, 5, 2, 15], [0, 0, 4, 10], [7, 7, 8, 8]]
    np.testing.assert_allclose(box_iou(wide, moved), [[10 / 30, 20 / 40, 0]])
    np.testing.assert_allclose(box_iou([[0, 0, 0, 2, 2, 2]], [[0, 0, 1, 2, 2, 3]]), [[1 / 3]])
    # An IoU of exactly a threshold counts.
    assert average_precision([match_boxes([[0, 0, 13, 1]], [1.0], [[0, 0, 20, 1]])])["ap"] == pytest.approx(0.4)


@pytest.mark.parametrize("shape", [(31, 50), (9, 14, 11)])
def test_boxes_of_a_label_map(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = ndimage.label(ndimage.gaussian_filter(rng.random(shape), 1.2) > 0.52)[0] * 7
    table = boxes(labels)
    columns = [c for c in table.columns if c.startswith(("min", "max"))]
    assert len(table) > 1
    np.testing.assert_array_equal(object_boxes(labels), table[columns])
    assert object_boxes(np.zeros(shape, np.int64)).shape == (0, 2 * len(shape))
    assert object_boxes(np.ones(shape, np.int64)).tolist() == [[0] * len(shape) + list(shape)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one score"):
        match_boxes([[0, 0, 1, 1]], [], [])
    with pytest.raises(ValueError, match="finite"):
        match_boxes([[0, 0, 1, 1]], [math.nan], np.zeros((0, 4)))
