"""Slices of volumes along several axes; tests/segment/test_mask_transform.py has the inferer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medmdm.data.cases import select_cases
from medmdm.data.files.volumes import SLICE_AXES
from medmdm.data.reading import CaseReader
from medmdm.heads.slice_by_slice import along, task_of_slices, window_along
from tests.made import made_example, refused, task
from tests.written import boxes

AFFINE = np.diag([1.0, 2.5, 0.8, 1.0])


def of_one(image: Tensor) -> Tensor:
    """Two channels that depend on the rest of the slice, and on where in it a pixel is."""
    ramp = torch.arange(image.shape[-2])[:, None] * 10.0 + torch.arange(image.shape[-1])
    return torch.cat([image.amax((2, 3), keepdim=True) - image, image * ramp], dim=1)


@pytest.mark.parametrize("axis", SLICE_AXES)
@pytest.mark.parametrize("shape", [(5, 7, 4), (1, 3, 2), (40, 2, 33)])  # 33 and 40: read in several parts
def test_each_slice_is_read_by_itself(axis: str, shape: tuple[int, ...]) -> None:
    volumes = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    place = {"axial": 0, "coronal": 1, "sagittal": 2}[axis]
    expected = torch.empty(2, 2, *shape)
    for number in range(2):
        for k in range(shape[place]):
            expected[number].select(1 + place, k)[:] = of_one(volumes[number].select(1 + place, k)[None])[0]
    assert torch.equal(along(volumes, axis, of_one), expected)


@pytest.mark.parametrize("axis", SLICE_AXES)
def test_slices_of_a_task_are_those_that_are_read_along_the_axis(axis: str, tmp_path: Path) -> None:
    folder = boxes(tmp_path / "set", 11, [100, 800, 450], 60, AFFINE, training=2)
    plan = {"channels": 1, "intensity_range": [0, 1000], "slice_axis": axis}
    cases = select_cases(folder, None)
    expected = CaseReader(cases, plan, tmp_path / "slices").read(cases.training[1]).examples
    (whole,) = CaseReader(cases, {**plan, "slice_axis": "none"}, tmp_path / "slices").read(cases.training[1]).examples
    given = task([whole], 3, window=(8, 16, 12), whole=True, overlap=0.5)
    found = task_of_slices(given, axis)
    window = {"axial": (16, 12), "coronal": (8, 12), "sagittal": (8, 16)}[axis]
    assert (found.reading.window, found.reading.whole, found.reading.overlap) == (window, True, 0.5)
    # A volume read whole runs from feet to head, as axial slices do, a coronal or sagittal slice from head to feet;
    # both count coronal slices from front to back and sagittal ones to the left.
    turned = (lambda part: part) if axis == "axial" else (lambda part: part.flip(-2))
    assert len(found.examples) == len(expected)
    for one, other in zip(found.examples, expected, strict=True):
        assert torch.equal(one.image, turned(other.image))
        assert torch.equal(one.label, turned(other.label))
        assert one.group == other.group == whole.case


def test_objects_and_unlabelled_volumes_are_cut_too() -> None:
    example = made_example(0, (3, 8, 6))
    object.__setattr__(example, "objects", torch.arange(3 * 8 * 6).reshape(3, 8, 6).int())
    given = task([example], window=(3, 8, 6))
    object.__setattr__(given, "unlabelled", [made_example(1, (4, 9, 5)).image])
    found = task_of_slices(given, "coronal")
    assert torch.equal(found.examples[5].objects, example.objects[:, 5])
    assert [tuple(image.shape) for image in found.unlabelled] == [(3, 4, 5)] * 9
    assert window_along((3, 8, 6), "sagittal") == (3, 8)


def test_what_cannot_be_cut_is_refused() -> None:
    refused("slice axis is 'saggital'.*did you mean 'sagittal'", along, torch.zeros(1, 1, 2, 2, 2), "saggital", of_one)
    refused("axes are of volumes that are read whole: set preprocessing#slice_axis to none",
            task_of_slices, task([made_example()]), "axial")  # fmt: skip
