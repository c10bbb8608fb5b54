"""Masks and maps can be written for every kind of NIfTI file that can be read, in the kind of their source."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmdm.data.files.volumes import read_volume
from medmdm.data.writers import write_map, write_mask
from tests.written import SHAPE, oblique

VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["volume", "sequences", "plane"])
def test_masks_of(kind: type, order: str, suffix: str, axes: str, tmp_path: Path) -> None:
    array = {"volume": VOXELS, "sequences": np.stack([VOXELS, VOXELS], -1), "plane": VOXELS[..., :1]}[axes]
    image = kind(array, oblique(), kind.header_class(endianness=order))
    image.header["descrip"] = b"DOE^JANE"
    nib.save(image, tmp_path / f"x{suffix}")
    shape = read_volume(tmp_path / f"x{suffix}").array.shape[1:]
    mask = np.ones(shape, np.uint8)
    written = [write_mask(tmp_path / f"m{suffix}", mask, tmp_path / f"x{suffix}"),
               write_map(tmp_path / f"p{suffix}", np.stack([mask, mask]) / 2, tmp_path / f"x{suffix}")]  # fmt: skip
    for path in written:
        read = nib.load(path)
        assert type(read) is kind
        assert read.shape[:3] == shape
        assert np.allclose(read.affine, oblique(), atol=1e-5)
        assert read.header["descrip"].tobytes().strip(b"\0") == b""
