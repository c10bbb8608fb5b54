"""Writing masks, probabilities and uncertainty so that they lie on their source, pixel for pixel and mm for mm."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from medmdm.data.files.formats import NIFTI_SUFFIXES, is_volume
from medmdm.data.files.pictures import image_size
from medmdm.data.files.rasters import mask_colours
from medmdm.data.files.volumes import Slicing, volume_geometry
from medmdm.data.transforms.spatial import resample_to_shape
from medmdm.data.validity import MOST_OBJECTS, size_text
from medmdm.errors import UserError
from medmdm.files import atomic_write

_COMPRESSION = 3  # a third of the default level's time for a twentieth more space
# Few programs read 64-bit integers, and the format has no bool or float16.
_NIFTI_TYPES = {"int64": "float64", "uint64": "float64", "bool": "uint8", "float16": "float32"}
_TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")


def write_mask(
    path: str | os.PathLike[str],
    mask: np.ndarray | torch.Tensor,
    source: str | os.PathLike[str],
    series_uid: str | None = None,
) -> Path:
    """Write numbers of classes or objects in the smallest type that holds them, atomically.

    A PNG of numbers below 256 has a palette: viewers show the numbers in colours, 0 as black, and its pixels are the
    numbers, as in VOC's masks (``np.asarray(PIL.Image.open(path))`` and :func:`medmdm.data.read_image` give them).

    Args:
        path: ``.png`` or ``.tif`` for a picture, ``.nii`` or ``.nii.gz`` for a volume.
        mask: whole numbers, ``[H, W]`` or ``[1, H, W]``; for volumes ``[i, j, k]`` or ``[1, i, j, k]``.
        source: image that it was made of: picture, volume file or folder of a DICOM series.
        series_uid: the series where a folder holds several.

    Returns:
        The path.

    Raises:
        UserError: sizes differ, values are no whole numbers from 0 that 32 bits hold, or the suffix does not fit.
    """
    array = _array(mask)
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise UserError(f"the mask for {source} holds fractions: masks hold numbers of classes or objects.")
    least, top = (array.min(), array.max()) if array.size else (0, 0)
    if least < 0 or top > MOST_OBJECTS:
        raise UserError(f"the mask for {source} holds {least} to {top}: masks hold numbers from 0 to {MOST_OBJECTS}.")
    small = array.astype(np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.int32, copy=False)
    return _write(Path(path), small, source, series_uid, spatial_only=True, is_mask=True)


def write_map(
    path: str | os.PathLike[str],
    values: np.ndarray | torch.Tensor,
    source: str | os.PathLike[str],
    series_uid: str | None = None,
) -> Path:
    """Write probabilities or uncertainty as float32, atomically.

    Args:
        path: ``.tif`` for a picture (a page for each class), ``.nii`` or ``.nii.gz`` for a volume (a fourth axis).
        values: ``[K, H, W]`` or ``[H, W]``; for volumes ``[K, i, j, k]`` or ``[i, j, k]``.
        source: image that it was made of.
        series_uid: the series where a folder holds several.

    Raises:
        UserError: sizes differ or the suffix does not fit.
    """
    return _write(Path(path), _array(values).astype(np.float32, copy=False), source, series_uid, spatial_only=False)


class SliceAssembler:
    """Collect what was made of the slices of a volume, and give it back in the volume's own order of axes.

    Args:
        slicing: of the source, along the axis that the slices were cut (``StoredVolume.slicing``, or
            ``Slicing(*volume_geometry(path), axis)``).
        channels: of what is collected.
        dtype: of what is collected; whole numbers are resized by nearest neighbour, others bilinearly.
        fill: value of slices that were never added, such as empty ones.
    """

    def __init__(self, slicing: Slicing, channels: int = 1, dtype: str | np.dtype = "uint8", fill: float = 0) -> None:
        self.slicing = slicing
        self.slices = np.full((slicing.num_slices, channels, *slicing.slice_shape), fill, dtype=dtype)

    def add(self, number: int, values: np.ndarray | torch.Tensor) -> None:
        """Put in slice ``number``: ``[C, rows, columns]``, resized to the source's where it was resampled."""
        array = _array(values)
        if tuple(array.shape[1:]) != self.slicing.slice_shape:
            mode = "nearest" if self.slices.dtype.kind in "bui" else "bilinear"
            plain = torch.from_numpy(np.ascontiguousarray(array))
            array = resample_to_shape(plain, self.slicing.slice_shape, mode).numpy()
        self.slices[number] = array

    def volume(self) -> np.ndarray:
        """Return ``[C, i, j, k]`` on the source's grid."""
        return self.slicing.to_volume(self.slices)


def encode_picture(array: np.ndarray, suffix: str, palette: np.ndarray | None = None) -> bytes:
    """Return ``[C, H, W]`` or ``[H, W]`` as the bytes of a file: rows are rows, columns are columns.

    Args:
        array: for PNG ``bool``, ``uint8`` or ``uint16`` of one channel, or the latter two of three; for TIFF
            ``uint8``, ``uint16``, ``int32`` or ``float32``, a page for each channel.
        suffix: ``.png``, ``.tif`` or ``.tiff``.
        palette: ``[256, 3]`` uint8, in which a PNG shows the values of one ``uint8`` channel.

    Raises:
        UserError: the format cannot hold the values.
    """
    pages = array[None] if array.ndim == 2 else array
    buffer = io.BytesIO()
    png, kind = suffix.lower() == ".png", (len(pages), array.dtype.name)
    if suffix.lower() in (".tif", ".tiff"):
        first, *rest = [Image.fromarray(np.ascontiguousarray(page)) for page in pages]
        first.save(buffer, format="TIFF", compression="tiff_adobe_deflate", save_all=bool(rest), append_images=rest)
    elif png and kind == (3, "uint16"):
        return _deep_colour_png(pages)
    elif png and kind in ((1, "bool"), (1, "uint8"), (1, "uint16"), (3, "uint8")):
        picture = Image.fromarray(np.ascontiguousarray(pages[0] if len(pages) == 1 else np.moveaxis(pages, 0, -1)))
        if palette is not None and kind == (1, "uint8"):
            picture.putpalette(palette.tobytes())
        picture.save(buffer, format="PNG", compress_level=_COMPRESSION)
    else:
        raise UserError(
            f"{array.dtype} values of shape {array.shape} cannot be written as {suffix or 'that'}: use .tif."
        )
    return buffer.getvalue()


def _deep_colour_png(array: np.ndarray) -> bytes:
    import SimpleITK as sitk  # noqa: N813 - slow to import; Pillow has no 16-bit colour

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        sitk.WriteImage(
            sitk.GetImageFromArray(np.moveaxis(array, 0, -1), isVector=True), str(path), useCompression=True
        )
        return path.read_bytes()


def encode_nifti(
    array: np.ndarray, affine: np.ndarray, source: str | os.PathLike[str] | None = None, compress: bool = True
) -> bytes:
    """Return a volume as the bytes of a NIfTI file; equal content gives equal bytes.

    Args:
        array: ``[i, j, k]``, or ``[C, i, j, k]``, whose channels become the fourth axis.
        affine: ``[4, 4]``, RAS mm.
        source: NIfTI file whose header says how the volume lies in space (qform, sform, their codes, spacing, units);
            its text fields and extensions, which may name the patient, are left out.
        compress: whether it is a ``.nii.gz``.
    """
    data = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    data = data.astype(_NIFTI_TYPES.get(data.dtype.name, data.dtype), copy=False)
    if source is not None:
        original = nib.load(source)
        header = original.header.copy()
        header.extensions.clear()
        for field in set(_TEXT_FIELDS) & set(header.keys()):  # NIfTI-2 has fewer of them
            header[field] = b""
        header["cal_max"], header["cal_min"], header["intent_code"] = 0, 0, 0
        header.set_data_dtype(data.dtype)
        image = type(original)(data, original.affine, header)
    else:
        image = nib.Nifti1Image(data, affine)
        image.header.set_data_dtype(data.dtype)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)  # shears of tilted series are in the sform only
        image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return gzip.compress(content, compresslevel=6, mtime=0) if compress else content


def _array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _write(
    path: Path,
    array: np.ndarray,
    source: str | os.PathLike[str],
    series_uid: str | None,
    spatial_only: bool,
    is_mask: bool = False,
) -> Path:
    volume = is_volume(source)
    axes = 3 if volume else 2
    if array.ndim == axes + 1 and array.shape[0] == 1:
        array = array[0]
    shape, affine = volume_geometry(source, series_uid) if volume else (image_size(source), np.eye(4))
    if array.ndim not in ((axes,) if spatial_only else (axes, axes + 1)) or array.shape[-axes:] != tuple(shape):
        raise UserError(
            f"{source} has {size_text(shape)} pixels, what is to be written for it is "
            f"{size_text(array.shape)}: they must agree."
        )
    if not volume:
        content = encode_picture(array, path.suffix, mask_colours() if is_mask and array.dtype == np.uint8 else None)
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        like = source if str(source).lower().endswith(NIFTI_SUFFIXES) else None
        content = encode_nifti(array, affine, like, compress=path.name.lower().endswith(".gz"))
    else:
        raise UserError(f"{path} cannot hold a volume: name it .nii.gz.")
    atomic_write(path, content)
    return path
