"""Outlines against pixels: every pixel's centre lies in the polygon of its label, and nowhere else."""

import numpy as np
import pytest
import shapely

from medmdm.data.tracing import outlines


def rasterised(shape: shapely.Geometry, size: tuple[int, int]) -> np.ndarray:
    """Which pixels have their centres in a shape, by shapely alone."""
    rows, columns = np.indices(size)
    return shapely.contains_xy(shape, columns + 0.5, rows + 0.5)


def check(labels: np.ndarray) -> None:
    found = outlines(labels)
    assert set(found) == set(np.unique(labels)) - {0}
    for number, shape in found.items():
        assert shape.is_valid
        assert shape.area == np.count_nonzero(labels == number)
        np.testing.assert_array_equal(rasterised(shape, labels.shape), labels == number)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (9, 14)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_noise_is_given_back(size: tuple[int, int], classes: int) -> None:
    for seed in range(5):
        check(np.random.default_rng(seed).integers(0, classes, size))


def test_holes_islands_in_them_and_corners() -> None:
    labels = np.zeros((9, 12), np.uint8)
    labels[1:8, 2:11] = 1
    labels[2:7, 3:9] = 0  # a hole
    labels[4, 5] = 2  # an island of another label
    labels[3, 7] = 1  # and of the same
    labels[7, 9] = 0
    labels[8, 11] = 1  # touches at a corner
    check(labels)
    ring = outlines(labels)[1]
    assert ring.geom_type == "MultiPolygon"
    assert shapely.get_num_interior_rings(shapely.get_parts(ring)).max() == 1
    assert outlines(labels)[2].bounds == (5, 4, 6, 5)  # x, y: column 5, row 4


def test_only_corners_are_vertices() -> None:
    labels = np.zeros((50, 70), np.int32)
    labels[10:40, 5:65] = 7
    assert len(shapely.get_coordinates(outlines(labels)[7])) == 5
    assert outlines(labels)[7].exterior.is_ccw
    assert outlines(np.zeros((4, 5), int)) == {}
    assert outlines(np.ones((4, 5), int))[1].equals(shapely.box(0, 0, 5, 4))
