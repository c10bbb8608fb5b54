"""Reading volumes: NIfTI by nibabel; DICOM series, NRRD and MetaImage by SimpleITK."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from medmdm.data.files.dicom import is_dicom, read_header
from medmdm.data.files.pictures import pixel_hash
from medmdm.data.files.series import choose_series, order_slices, read_series, warn_once
from medmdm.data.slicing import Slicing
from medmdm.errors import UserError

__all__ = [
    "NIFTI_SUFFIXES",
    "VOLUME_SUFFIXES",
    "SimpleITKReader",
    "Volume",
    "is_volume",
    "read_volume",
    "volume_geometry",
    "volume_hash",
    "volume_stem",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
_DEFLATE_LIMIT = 1032  # no deflate stream grows more than so many times


@dataclass(frozen=True)
class Volume:
    """A decoded volume.

    Args:
        array: ``[C, i, j, k]``, slope and intercept applied.
        affine: ``[4, 4]`` float64, array index → mm in RAS.
    """

    array: np.ndarray
    affine: np.ndarray


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a volume: a file by its suffix, or a folder that directly holds DICOM files."""
    path = Path(path)
    if path.is_dir():
        return any(file.is_file() and not file.name.startswith(".") and is_dicom(file) for file in path.iterdir())
    return path.name.lower().endswith(VOLUME_SUFFIXES) or (path.is_file() and is_dicom(path))


def volume_stem(path: str | os.PathLike[str]) -> str:
    """Return the name without its suffix: ``a.nii.gz`` → ``a``, a folder's name as it is."""
    name = Path(path).name
    for suffix in (".nii.gz", *VOLUME_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name if Path(path).is_dir() else Path(path).stem


def read_volume(path: str | os.PathLike[str] | Sequence[str], series_uid: str | None = None) -> Volume:
    """Read a volume, or several sequences of one patient as the channels of one.

    Args:
        path: NIfTI, NRRD or MetaImage file, DICOM file or folder of a DICOM series; or several of them that lie on one
            grid. A fourth axis (points in time, sequences) becomes the channels.
        series_uid: the series to read where a folder holds several.

    Raises:
        UserError: a file is missing, damaged or no volume, a folder holds several series, or several sequences differ
            in size or position.
    """
    if isinstance(path, (list, tuple)):
        return _join([read_volume(one, series_uid) for one in path], [str(one) for one in path])
    path = Path(path)  # type: ignore[arg-type]
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path")
    with _errors_as_sentences(path):
        nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
        array, affine = _read_nifti(path) if nifti else _read_with_simpleitk(path, series_uid)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {array.dtype} values: save it with one number a voxel")
    while array.ndim < 3:
        array = array[..., None]
    while array.ndim > 4 and array.shape[3] == 1:  # NIfTI keeps vectors in the fifth axis
        array = array[:, :, :, 0]
    if array.ndim > 4 or 0 in array.shape:
        raise UserError(f"{path} has the shape {array.shape}: a volume has three axes, and a fourth for channels")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError(f"{path} has an affine that maps its voxels to nowhere: correct the header")
    channels_first = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    return Volume(channels_first.astype(array.dtype.newbyteorder("="), copy=False), affine)


def volume_geometry(
    path: str | os.PathLike[str], series_uid: str | None = None
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape (i, j, k) and the RAS affine of a volume; for NIfTI and DICOM from the headers alone.

    Raises:
        UserError: as :func:`read_volume`.
    """
    path = Path(path)
    if path.is_dir():
        series = choose_series(path, series_uid)
        columns, rows = series.slices[0].size
        return (columns, rows, len(series.slices)), series.affine
    if path.exists() and path.name.lower().endswith(NIFTI_SUFFIXES):
        with _errors_as_sentences(path):
            image = nib.load(path)
            shape = (*image.shape, 1, 1)[:3]
        return shape, np.asarray(image.affine, dtype=np.float64)
    volume = read_volume(path, series_uid)
    _, i, j, k = volume.array.shape
    return (i, j, k), volume.affine


def volume_hash(volume: Volume) -> str:
    """Return the SHA-256 of a volume's voxels: the same for any container, type and order of axes.

    Values are hashed as float32, axes in the order of axial slices (:class:`medmdm.data.Slicing`).
    """
    slices = Slicing(volume.array.shape[1:], volume.affine).to_slices(volume.array)
    return pixel_hash(np.moveaxis(slices, 0, 1).astype(np.float32) + np.float32(0))  # -0 becomes 0


class SimpleITKReader(ImageReader):
    """MONAI reader of DICOM series (folders), single DICOM files, NRRD, MetaImage and NIfTI, through SimpleITK.

    Use it in any ``LoadImaged(reader=...)``. Arrays are ``[i, j, k]`` (columns, rows, slices for DICOM), channels last
    where there are any; the affine is in RAS mm, as MONAI's ``NibabelReader`` gives it. Slope and intercept are
    applied and MONOCHROME1 is inverted. Several paths become the channels of one image.

    Args:
        series_uid: SeriesInstanceUID to read where a folder holds several series.
    """

    def __init__(self, series_uid: str | None = None) -> None:
        super().__init__()
        self.series_uid = series_uid

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        names = filename if isinstance(filename, (list, tuple)) else (filename,)
        return all(is_volume(name) for name in names)

    def read(self, data: Any, **kwargs: Any) -> tuple[Path, ...]:
        # Decoding waits for `get_data`: when `read` fails, LoadImage goes on to other readers and hides our sentence.
        return tuple(Path(name) for name in (data if isinstance(data, (list, tuple)) else (data,)))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        arrays, affines = [], []
        for path in img:
            if not path.exists():
                raise UserError(f"{path} does not exist: check the path")
            with _errors_as_sentences(path):
                array, affine = _read_with_simpleitk(path, self.series_uid)
            arrays.append(array)
            affines.append(affine)
        if len(arrays) > 1:
            _check_same_grid(arrays, affines, [str(path) for path in img])
            array = np.stack(arrays, axis=-1) if arrays[0].ndim == 3 else np.concatenate(arrays, axis=-1)
        meta = {
            MetaKeys.AFFINE: affines[0],
            MetaKeys.ORIGINAL_AFFINE: affines[0].copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if array.ndim > 3 else float("nan"),
            "original_dtype": array.dtype.name,
        }
        return array, meta


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    header = image.header
    needed = math.prod(image.shape) * header.get_data_dtype().itemsize
    stored = path.stat().st_size
    # A header may promise any size: nothing is allocated for bytes that the file cannot hold.
    if needed > stored * (_DEFLATE_LIMIT if path.name.lower().endswith(".gz") else 1):
        raise UserError(
            f"{path} is truncated or damaged: its header promises {needed:,} bytes of voxels, the file has {stored:,}"
        )
    if hasattr(header, "get_qform") and not (int(header["qform_code"]) or int(header["sform_code"])):
        warn_once(f"{path} does not say how it lies in space (no qform or sform): left and right may be swapped")
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _read_with_simpleitk(path: Path, series_uid: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the array, ``[i, j, k]`` or with channels last, and the RAS affine."""
    if path.is_dir() or is_dicom(path):
        series = choose_series(path, series_uid) if path.is_dir() else order_slices([read_header(path)], path)
        for sentence in series.warnings:
            warn_once(sentence)
        return read_series(series), series.affine
    import SimpleITK as sitk  # noqa: N813 - slow to import, and NIfTI and pictures do without

    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    dimensions = image.GetDimension()
    # SimpleITK's arrays are [k, j, i], components last.
    array = array.transpose([*range(dimensions - 1, -1, -1), *range(dimensions, array.ndim)])
    spatial = min(dimensions, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:spatial, :spatial]
    affine[:spatial, :spatial] = direction * np.array(image.GetSpacing())[:spatial]
    affine[:spatial, 3] = image.GetOrigin()[:spatial]
    if array.ndim > dimensions == 2:
        array = array[:, :, None]
    elif dimensions == 2:
        array = array[..., None]
    return array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _join(volumes: list[Volume], names: list[str]) -> Volume:
    _check_same_grid([volume.array[0] for volume in volumes], [volume.affine for volume in volumes], names)
    return Volume(np.concatenate([volume.array for volume in volumes]), volumes[0].affine)


def _check_same_grid(arrays: list[np.ndarray], affines: list[np.ndarray], names: list[str]) -> None:
    for array, affine, name in zip(arrays, affines, names, strict=True):
        if array.shape[:3] != arrays[0].shape[:3]:
            raise UserError(
                f"{name} has {'x'.join(map(str, array.shape[:3]))} voxels but {names[0]} has "
                f"{'x'.join(map(str, arrays[0].shape[:3]))}: register the sequences to one grid first"
            )
        shift = np.abs(affine - affines[0]) @ np.array([*array.shape[:3], 1.0])
        if shift.max() > 0.1:
            raise UserError(
                f"{name} lies up to {shift.max():.1f} mm from {names[0]} by their affines: register the sequences first"
            )


@contextmanager
def _errors_as_sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): check who may read it") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        lines = [line for line in str(error).splitlines() if line.strip()]
        detail = " ".join(lines[-1].split())[-120:] if lines else type(error).__name__
        raise UserError(f"{path} is truncated, damaged or no volume ({detail}): replace it or remove it") from error
