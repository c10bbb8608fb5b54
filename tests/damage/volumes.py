"""Volumes and DICOM series that are damaged, mixed up, or no volumes."""

import gzip
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from tests.damage.attempts import Attempt, check, damage, prepare, pretrain, read_as_volume
from tests.damage.sound import cut, data_list, picture, random, volume, written
from tests.data.dicom_files import structures, write_dicom, write_series

SLICES = random((12, 20, 24), "slices").astype(np.int16)


def every_door(root: Path, path: Path, **entry: Any) -> list[Attempt]:
    """A volume can be read, cut into slices for training, checked and prepared."""
    listed = data_list(root, [{"image": path.name, **entry}])
    train = pretrain(root, channels=1, percentiles=[0.5, 99.5])
    return [read_as_volume(path), train, check(listed), prepare("volumes", root, "--test", "0")]


damage("truncated NIfTI", r"x\.nii is truncated")(lambda root: every_door(root, cut(volume(root / "x.nii"))))
damage("truncated compressed NIfTI", r"x\.nii\.gz is truncated")(
    lambda root: every_door(root, cut(volume(root / "x.nii.gz")))
)
for name, content in (("a text named .nii.gz", b"Sorry, you must log in.\n"), ("an empty NIfTI", b"")):
    damage(name, r"x\.nii\.gz is truncated, damaged or no volume")(
        lambda root, content=content: every_door(root, written(root / "x.nii.gz", content))
    )


@damage("a NIfTI header that promises terabytes", r"x\.nii(\.gz)? is truncated or damaged: its header promises")
def _(root: Path) -> list[Attempt]:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((32000, 32000, 3000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(4)
    packed = written(root / "packed" / "x.nii.gz", gzip.compress(content))
    return [*every_door(root, written(root / "x.nii", content)), read_as_volume(packed)]


@damage("truncated NRRD", r"x\.nrrd is truncated, damaged or no volume")
def _(root: Path) -> list[Attempt]:
    sitk.WriteImage(sitk.GetImageFromArray(SLICES), str(root / "x.nrrd"))
    return every_door(root, cut(root / "x.nrrd"))


@damage("NaN in a volume", r"x\.nii\.gz holds values that are not finite")
def _(root: Path) -> list[Attempt]:
    array = random((20, 22, 24), "x").astype(np.float32)
    array[3, 4, 5] = np.nan
    return every_door(root, volume(root / "x.nii.gz", array))[1:3]


@damage("a constant volume", r"x\.nii\.gz has the value 3|slices is empty|constant")
def _(root: Path) -> list[Attempt]:
    return every_door(root, volume(root / "x.nii.gz", np.full((20, 22, 24), 3, np.int16)))[1:3]


@damage("an affine that flattens the volume", r"x\.nii\.gz has an affine that maps its voxels to nowhere")
def _(root: Path) -> list[Attempt]:
    path = volume(root / "x.nii.gz")
    image = nib.load(path)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    image.header.set_qform(None, code=0)
    content = bytearray(image.header.binaryblock)
    content += bytes(4) + np.asanyarray(image.dataobj).tobytes("F")
    return every_door(root, written(path, gzip.compress(bytes(content))))


def label(root: Path, slices: int, affine: np.ndarray | None = None) -> list[Attempt]:
    volume(root / "x.nii.gz")
    volume(root / "y.nii.gz", np.eye(20, 22)[..., None].repeat(slices, 2).astype(np.uint8), affine)
    return [check(data_list(root, [{"image": "x.nii.gz", "label": "y.nii.gz"}]))]


MOVED = np.eye(4)
MOVED[0, 3] = 5
GRID = r"y\.nii\.gz is 20x22x23 but its image x\.nii\.gz is 20x22x24"
PLACE = r"y\.nii\.gz lies up to 5 mm beside its image x\.nii\.gz"
damage("a label on another grid", GRID)(partial(label, slices=23))
damage("a label somewhere else", PLACE)(partial(label, slices=24, affine=MOVED))


@damage("sequences of different grids as channels", r"b\.nii\.gz is 20x22x25 but .*a\.nii\.gz is 20x22x24")
def _(root: Path) -> list[Attempt]:
    volume(root / "a.nii.gz")
    volume(root / "b.nii.gz", random((20, 22, 25), "b").astype(np.int16))
    listed = data_list(root, [{"image": ["a.nii.gz", "b.nii.gz"]}])
    return [check(listed), pretrain(root, channels=2, percentiles=[0.5, 99.5])]


@damage("volumes whose intensities nobody declared", r"set window \(CT\) or percentiles \(MR\)")
def _(root: Path) -> list[Attempt]:
    volume(root / "x.nii.gz")
    return [pretrain(root, channels=1)]


@damage("pictures and volumes in one list", r"(a\.png|x\.nii\.gz) has [23] dimensions")
def _(root: Path) -> list[Attempt]:
    volume(root / "x.nii.gz")
    picture(root / "a.png", random((24, 32), "a"))
    return [check(data_list(root, [{"image": "x.nii.gz"}, {"image": "a.png"}]))]


def cut_series(root: Path, share: float) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    cut(sorted(series.iterdir())[4], share)
    return every_door(root, series)


NO_DICOM = r"\.dcm is (a damaged or truncated|not a readable) DICOM"
damage("a truncated DICOM file", NO_DICOM)(partial(cut_series, share=0.5))
damage("a DICOM file cut in its header", NO_DICOM)(partial(cut_series, share=0.1))


@damage("two DICOM series in one folder", r"series holds 2 series: choose one by its UID .*1\.2\.3\.4 .*5\.6\.7\.8")
def _(root: Path) -> list[Attempt]:
    write_series(root / "series", SLICES)
    write_series(root / "series", SLICES + 1, uid="5.6.7.8", prefix="other_")
    return every_door(root, root / "series")[:3]  # `prepare` takes both


@damage("a series that is not in the folder", r"series holds no series 9\.9: it holds 1\.2\.3\.4")
def _(root: Path) -> list[Attempt]:
    return every_door(root, write_series(root / "series", SLICES), series_uid="9.9")[1:3]


AMONG = r"1 file of 13 left out|1 localisers? or multi-frame DICOM files? left out"
BESIDE = r"2 files of localisers left out|2 localisers or multi-frame DICOM files left out"
MANY = r"many\.dcm is a multi-frame DICOM file \(5 frames\)|holds no volume.*multi-frame DICOM files? left out"
NONE = r"series (is a folder without DICOM|holds no DICOM|does not exist)|are not in|input holds no volume"


@damage("a localiser among the slices", AMONG, "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    tags = {(0x0020, 0x0037): "0\\1\\0\\0\\0\\-1", (0x0008, 0x0008): "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_dicom(series / "scout.dcm", random((64, 64), "scout").astype(np.int16), {(0x0020, 0x000E): "1.2.3.4", **tags})
    return every_door(root, series)


@damage("a series of localisers beside the slices", BESIDE, "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    scout = {(0x0008, 0x0008): "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_series(series, SLICES[:2], uid="5.6.7.8", prefix="scout_", tags=scout)
    return every_door(root, series)


@damage("a missing slice", r"1 slice seems to be missing", "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    (series / sorted(path.name for path in series.iterdir())[5]).unlink()
    return every_door(root, series)


@damage("a multi-frame DICOM file", MANY)
def _(root: Path) -> list[Attempt]:
    return every_door(root, write_dicom(root / "series" / "many.dcm", SLICES[:5]).parent)


@damage("two images at one position", r"several images at one position")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    write_series(series, SLICES[:1] + 1, prefix="echo_")
    return every_door(root, series)


@damage("a copy of a slice", r"1 file of 13 left out, since the same slice is there twice", "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    shutil.copy(sorted(series.iterdir())[0], series / "copy.dcm")
    return every_door(root, series)


@damage("an empty file among the slices", r"1 empty (DICOM )?file left out, so that slices may be missing", "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    written(series / "099.dcm", b"")
    return every_door(root, series)


@damage("structures among the slices", r"1 (DICOM )?file without pixels left out", "warning")
def _(root: Path) -> list[Attempt]:
    series = write_series(root / "series", SLICES)
    structures(series / "rs.dcm", "1.2.840.10008.5.1.4.1.1.481.3")
    return every_door(root, series)


@damage("a folder without DICOM files", NONE)
def _(root: Path) -> list[Attempt]:
    return every_door(root, written(root / "series" / "notes.txt", b"moved to the archive").parent)
