"""Labels whose scaled values are whole numbers but for a header's rounding are read as those; fractions are not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmdm.data.files.decoding import decode
from medmdm.data.validity import label_numbers
from tests.made import refused
from tests.written import write_nifti

NUMBERS = np.random.default_rng(0).integers(0, 4, (6, 7, 5))


def saved(path: Path, values: np.ndarray, stored: type) -> np.ndarray:
    """Floats that nibabel saves into a header of whole numbers, with the slope that it makes up."""
    header = nib.Nifti1Header()
    header.set_data_dtype(stored)
    nib.save(nib.Nifti1Image(values.astype(np.float64), np.eye(4), header), path)
    return np.asanyarray(nib.load(path).dataobj)


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("top", [1, 3, 4, 200, 40_000])
def test_rounding_of_a_slope(stored: type, top: int, tmp_path: Path) -> None:
    numbers = NUMBERS * top // 3
    values = saved(tmp_path / "x.nii.gz", numbers, stored)
    if np.abs(values - numbers).max() > 0.05:
        pytest.skip("this type holds so many numbers with gaps: nothing to expect")
    assert np.array_equal(label_numbers(decode(tmp_path / "x.nii.gz").array, "x")[0], numbers)


@pytest.mark.parametrize(("slope", "intercept"), [(1.00000006, 0.0), (0.1, 0.0), (0.33333334, 0.0), (1.0, -1e-9)])
def test_slopes_and_intercepts(slope: float, intercept: float, tmp_path: Path) -> None:
    stored = np.round(NUMBERS / slope).astype(np.int16)
    write_nifti(tmp_path / "x.nii", stored, slope=slope, intercept=intercept)
    read = label_numbers(decode(tmp_path / "x.nii").array, "x")
    assert read.dtype.kind == "i"
    assert np.array_equal(read[0], NUMBERS)


@pytest.mark.parametrize("wrong", [0.5, 0.98, 1.02, 2.25, 255.3])
def test_fractions_stay_an_error(wrong: float) -> None:
    label = NUMBERS[None].astype(np.float64)
    label[0, 1, 2, 3] = wrong
    refused(f"x holds values that are not whole numbers \\(such as {wrong:g}\\)", label_numbers, label, "x")
