"""Reading volumes: NIfTI by nibabel; DICOM series, NRRD and MetaImage by SimpleITK."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from medmdm.data.files.detached import refuse_leaving
from medmdm.data.files.dicom import choose_series, order_slices, read_series
from medmdm.data.files.dicom_header import read_header
from medmdm.data.files.formats import ITK_SUFFIXES, NIFTI_SUFFIXES, errors_as_sentences, is_dicom, is_volume
from medmdm.data.files.units import nifti_affine, text_header_affine
from medmdm.data.validity import ImageGrid, check_same_grid, grid_problem
from medmdm.errors import UserError, nearest, warn_once
from medmdm.files import pixel_hash

# Directions in which the number of the slice, of the row and of the column grow (R, A, S as in nibabel): pictures as
# radiologists look at them, the patient's right at the left of axial and coronal slices, anterior or head at the top.
SLICE_AXES = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}
#: The "slice axis" of volumes that are read whole; their axes run as those of axial slices do.
WHOLE = "none"


def axis_number(axis: str) -> int:
    """Return which spatial axis of a volume that is read whole its slices along an anatomical axis follow.

    Raises:
        UserError: an unknown axis.
    """
    if axis not in SLICE_AXES:
        raise UserError(f"the slice axis is {axis!r}{nearest(str(axis), SLICE_AXES)}: use {', '.join(SLICE_AXES)}.")
    return list(SLICE_AXES).index(axis)


class Slicing:
    """The slices of one volume along an anatomical axis.

    ========  ================  ===================  =========================
    axis      slices go to the  rows go to the       columns go to the
    ========  ================  ===================  =========================
    axial     head (S)          back (P)             patient's left (L)
    coronal   back (P)          feet (I)             patient's left (L)
    sagittal  left (L)          feet (I)             back (P)
    ========  ================  ===================  =========================

    Axes of the array are swapped and flipped, never interpolated: a volume stored obliquely is cut along the axes of
    the array that lie nearest to the anatomical ones, so that slices are the source's own pixels.

    Args:
        shape: (i, j, k) of the source array.
        affine: ``[4, 4]``, array index → mm in RAS.
        axis: a key of :data:`SLICE_AXES`.

    Raises:
        UserError: the axis is unknown or the affine says nothing of an axis.
    """

    def __init__(self, shape: Sequence[int], affine: np.ndarray, axis: str = "axial") -> None:
        axis_number(axis)
        self.axis = axis
        self.shape = tuple(int(n) for n in shape)
        self.affine = np.asarray(affine, dtype=np.float64)
        source = nib.io_orientation(self.affine)
        if np.isnan(source).any():
            raise UserError("an affine maps two axes of its volume onto one, so that it cannot be cut into slices.")
        target = nib.orientations.axcodes2ornt(SLICE_AXES[axis])
        self._forward = nib.orientations.ornt_transform(source, target)
        self._backward = nib.orientations.ornt_transform(target, source)
        # Row t of a transform says to which axis of the target the source's axis t goes.
        order = np.argsort(self._forward[:, 0])
        sizes = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))[order]
        self.num_slices = self.shape[order[0]]
        self.slice_shape = (self.shape[order[1]], self.shape[order[2]])
        self.slice_step = float(sizes[0])
        self.spacing = (float(sizes[1]), float(sizes[2]))

    @property
    def sliced_grid(self) -> ImageGrid:
        """Where the pixels of the slices lie, as axes (slice, row, column)."""
        order = np.argsort(self._forward[:, 0])
        affine = self.affine @ nib.orientations.inv_ornt_aff(self._forward, self.shape)
        return ImageGrid(tuple(self.shape[axis] for axis in order), affine)

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """Cut ``[C, i, j, k]`` into ``[slices, C, rows, columns]`` (a view)."""
        if volume.shape[1:] != self.shape:
            raise ValueError(f"The volume is {volume.shape[1:]}, not {self.shape}.")
        turned = nib.orientations.apply_orientation(np.moveaxis(volume, 0, -1), self._forward)
        return np.moveaxis(turned, -1, 1)

    def to_volume(self, slices: np.ndarray) -> np.ndarray:
        """Put ``[slices, C, rows, columns]`` together to ``[C, i, j, k]``: the exact inverse of :meth:`to_slices`."""
        if (slices.shape[0], *slices.shape[2:]) != (self.num_slices, *self.slice_shape):
            raise ValueError(f"The slices are {slices.shape}, not {(self.num_slices, 'C', *self.slice_shape)}.")
        turned = nib.orientations.apply_orientation(np.moveaxis(slices, 1, -1), self._backward)
        return np.moveaxis(turned, -1, 0)

    def assembled(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return ``[C, i, j, k]`` of all slices, each ``[C, rows, columns]``, or of a volume ``[C, slices, ...]``."""
        return self.to_volume(np.swapaxes(parts[0], 0, 1) if parts[0].ndim == 4 else np.stack(parts))


_Path = str | os.PathLike[str]
_NATURE = "truncated, damaged or no volume"
_NIFTI_STARTS = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}  # of headers 1 and 2
_DEFLATE_LIMIT = 1032  # no deflate stream grows more than so many times


@dataclass(frozen=True)
class Volume:
    """A decoded volume.

    Args:
        array: ``[C, i, j, k]``, slope and intercept applied.
        affine: ``[4, 4]`` float64, array index → mm in RAS.
        certain: see :class:`medmdm.data.validity.ImageGrid`.
    """

    array: np.ndarray
    affine: np.ndarray
    certain: bool = True

    @property
    def grid(self) -> ImageGrid:
        """Where its voxels lie."""
        return ImageGrid(self.array.shape[1:], self.affine, self.certain)


def read_volume(path: _Path | Sequence[_Path], series_uid: str | None = None) -> Volume:
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
        volumes = [read_volume(one, series_uid) for one in path]
        _check_same_grid([volume.grid for volume in volumes], path)
        certain = all(volume.certain for volume in volumes)
        return Volume(np.concatenate([volume.array for volume in volumes]), volumes[0].affine, certain)
    path = Path(path)  # type: ignore[arg-type]
    with errors_as_sentences(path, _NATURE):
        nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
        array, affine = _read_nifti(path) if nifti else _read_with_simpleitk(path, series_uid)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {array.dtype} values: save it with one number per voxel.")
    if 0 in array.shape:
        raise UserError(f"{path} has no voxels: its shape is {array.shape}.")
    while array.ndim < 3:
        array = array[..., None]
    while array.ndim > 4 and array.shape[3] == 1:  # NIfTI keeps vectors in the fifth axis
        array = array[:, :, :, 0]
    if array.ndim > 4:
        raise UserError(f"{path} has the shape {array.shape}: a volume has three axes, and a fourth for channels.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError(f"{path} has an affine that maps its voxels to nowhere: correct the header.")
    channels_first = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    certain = lies_in_one_place(path)
    if not certain:
        warn_once(
            f"{path} lies in two places, since qform and sform of its header differ: the sform is taken, and programs "
            "such as 3D Slicer may take the other"
        )
    return Volume(channels_first.astype(array.dtype.newbyteorder("="), copy=False), affine, certain)


def volume_geometry(path: _Path, series_uid: str | None = None) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape (i, j, k) and the RAS affine of a volume; for NIfTI and DICOM from the headers alone.

    Raises:
        UserError: as :func:`read_volume`.
    """
    path = Path(path)
    if path.is_dir():
        series = choose_series(path, series_uid)
        columns, rows = series.slices[0].size
        return (columns, rows, len(series.slices)), series.affine
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        with errors_as_sentences(path, _NATURE):
            image = _load_nifti(path)
            shape = (*image.shape, 1, 1)[:3]
            affine = nifti_affine(image.affine, image.header, path)
        return shape, affine
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

    def verify_suffix(self, filename: Sequence[_Path] | _Path) -> bool:
        return all(is_volume(name) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> tuple[Path, ...]:
        # Decoding waits for `get_data`: when `read` fails, LoadImage goes on to other readers and hides our sentence.
        return tuple(Path(name) for name in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        arrays, grids = [], []
        for path in img:
            with errors_as_sentences(path, _NATURE):
                array, affine = _read_with_simpleitk(path, self.series_uid)
            arrays.append(array)
            grids.append(ImageGrid(array.shape[:3], affine))
        if len(arrays) > 1:
            _check_same_grid(grids, img)
            array = np.stack(arrays, axis=-1) if arrays[0].ndim == 3 else np.concatenate(arrays, axis=-1)
        meta = {
            MetaKeys.AFFINE: grids[0].affine,
            MetaKeys.ORIGINAL_AFFINE: np.array(grids[0].affine),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if array.ndim > 3 else float("nan"),
            "original_dtype": array.dtype.name,
        }
        return array, meta


def _load_nifti(path: Path) -> Any:
    """Return nibabel's image, whose voxels are not read yet; a name that denies how the file is stored is refused."""
    with open(path, "rb") as file:
        start = file.read(4)
    packed, plain = start[:2] == b"\x1f\x8b", start in _NIFTI_STARTS
    if packed + plain and packed != path.name.lower().endswith(".gz"):
        how, suffix = ("compressed", ".nii.gz") if packed else ("not compressed", ".nii")
        raise UserError(f"{path} is {how}, which its name denies: rename it so that it ends in {suffix}.")
    return nib.load(path)


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = _load_nifti(path)
    header = image.header
    needed = math.prod(image.shape) * header.get_data_dtype().itemsize
    stored = path.stat().st_size
    # A header may promise any size: nothing is allocated for bytes that the file cannot hold.
    if needed > stored * (_DEFLATE_LIMIT if path.name.lower().endswith(".gz") else 1):
        raise UserError(
            f"{path} is truncated or damaged: its header promises {needed:,} bytes of voxels, the file has {stored:,}."
        )
    if hasattr(header, "get_qform") and not (int(header["qform_code"]) or int(header["sform_code"])):
        warn_once(f"{path} does not say how it lies in space (no qform or sform): left and right may be swapped")
    _warn_of_two_sizes(path, header)
    return np.asanyarray(image.dataobj), nifti_affine(image.affine, header, path)


def lies_in_one_place(path: _Path) -> bool:
    """Whether qform and sform of a NIfTI file, where it has both, place its voxels alike; other files have one place.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(path)
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        return True
    with errors_as_sentences(path, _NATURE):
        image = _load_nifti(path)
        header: Any = image.header
        if not hasattr(header, "get_qform") or not (int(header["qform_code"]) and int(header["sform_code"])):
            return True
        shape = (*image.shape, 1, 1)[:3]
        first, second = ImageGrid(shape, header.get_qform()), ImageGrid(shape, header.get_sform())
    return grid_problem(first, second, "", "") is None


def _warn_of_two_sizes(path: Path, header: Any) -> None:
    """Say which of two sizes of voxels is taken: programs differ in which place in space they believe."""
    if not hasattr(header, "get_qform") or not int(header["sform_code"]):
        return
    taken, other = np.linalg.norm(header.get_sform()[:3, :3], axis=0), header["pixdim"][1:4]
    if not np.allclose(taken, np.abs(other), rtol=0.01):
        sizes = [" x ".join(f"{size:.3g}" for size in sizes) for sizes in (taken, other)]
        warn_once(f"{path} gives two sizes of voxels, {sizes[0]} (sform) and {sizes[1]} (pixdim): the first is taken")


def _read_with_simpleitk(path: Path, series_uid: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the array, ``[i, j, k]`` or with channels last, and the RAS affine."""
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path.")
    if path.is_dir() or is_dicom(path):
        series = choose_series(path, series_uid) if path.is_dir() else order_slices([read_header(path)], path)
        for sentence in series.warnings:
            warn_once(sentence)
        return read_series(series), series.affine
    import SimpleITK as sitk  # noqa: N813 - slow to import, and NIfTI and pictures do without

    refuse_leaving(path)
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
    if dimensions == 2:
        array = np.expand_dims(array, 2)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return array, text_header_affine(affine, path) if path.name.lower().endswith(ITK_SUFFIXES) else affine


def _check_same_grid(grids: Sequence[ImageGrid], names: Sequence[_Path]) -> None:
    for grid, name in zip(grids, names, strict=True):
        check_same_grid(grid, grids[0], str(name), str(names[0]), "register the sequences to one grid first")
