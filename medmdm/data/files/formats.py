"""Which files are pictures, volumes or DICOM: by suffix, and by their first bytes where the name says nothing.

And the sentences on files that cannot be read, whichever decoder stumbles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from PIL import Image, UnidentifiedImageError

from medmdm.errors import UserError

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
#: Of slides, whatever the file holds; TIFF and DICOM may be slides too (:func:`medmdm.data.files.slides.is_slide`).
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_START = 1024  # bytes that tell what a DICOM file is
# SOP classes: structures and plans of radiotherapy, presentation states, reports, waveforms, documents, raw data,
# registrations, surfaces, and the index of a medium.
_WITHOUT_PIXELS = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.34\..+|5\.1\.4\.1\.1\.(481\.([3-9]|\d\d)|(9|11|68|79|88|104)\..+|66(\.[12356])?|67))"
)


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device, from which reading may never end."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def may_be_dicom(path: PurePath) -> bool:
    """Whether a name is DICOM's, or has no known suffix; names that are UIDs end in ``.123``."""
    suffix = path.suffix.lower()
    return path.name.upper() != "DICOMDIR" and (suffix in DICOM_SUFFIXES or not suffix or suffix[1:].isdigit())


def begins_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file end in the letters DICM."""
    return start[128:132] == b"DICM"


def without_pixels(start: bytes) -> bool:
    """Whether a DICOM file is of a kind that has no image, such as RTSTRUCT, by its first :data:`DICOM_START` bytes."""
    at = 132 if begins_as_dicom(start) else len(start)
    # The file's own elements are always explicit and little-endian: group, number, type, length, value.
    while at + 12 <= len(start) and start[at : at + 2] == b"\2\0":
        long = start[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        first = at + (12 if long else 8)
        end = first + int.from_bytes(start[at + 8 : first] if long else start[at + 6 : first], "little")
        if start[at + 2 : at + 4] == b"\2\0":
            return bool(_WITHOUT_PIXELS.fullmatch(start[first:end].decode("ascii", "replace").strip(" \0")))
        at = end
    return False


def is_dicom(path: str | os.PathLike[str], pixels: bool = True) -> bool:
    """Whether a file is a DICOM image: by its suffix, or for names without a known one by the letters DICM at byte 128.

    Args:
        path: the file.
        pixels: ``False``: whether it is one of the kinds of DICOM file that hold no image, see :func:`without_pixels`.
    """
    path = Path(path)
    if not may_be_dicom(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(DICOM_START)
    except OSError:
        return pixels and path.suffix.lower() in DICOM_SUFFIXES
    if without_pixels(start):
        return not pixels
    return pixels and (path.suffix.lower() in DICOM_SUFFIXES or begins_as_dicom(start))


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a volume: a file by its suffix, or a folder that directly holds DICOM files."""
    path = Path(path)
    if path.is_dir():
        return any(file.is_file() and not file.name.startswith(".") and is_dicom(file) for file in path.iterdir())
    return path.name.lower().endswith(VOLUME_SUFFIXES) or (path.is_file() and is_dicom(path))


def volume_stem(path: PurePath) -> str:
    """Return the name without its suffix: ``a.nii.gz`` and ``a.ome.tif`` → ``a``; a folder's name as it is."""
    for suffix in (".nii.gz", ".ome.tif", ".ome.tiff", *VOLUME_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name if isinstance(path, Path) and path.is_dir() else path.stem


@contextmanager
def errors_as_sentences(path: Path, nature: str = "truncated or damaged") -> Iterator[None]:
    """Turn whatever a decoder raises on a file into one sentence that names it.

    Args:
        path: the file.
        nature: what it must be, if nothing else is known.
    """
    if is_special(path):
        raise UserError(f"{path} is a pipe, a socket or a device: give a regular file.")
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{path} would decode to more than {limit:,} pixels, which is refused as a possible decompression bomb: "
            "cut the image into tiles."
        ) from error
    except UnidentifiedImageError as error:
        reason = "is not a readable PNG, TIFF, BMP or JPEG image: replace it, convert it or remove it"
        if path.stat().st_size == 0:
            reason = "is an empty file (0 bytes): replace it or remove it"
        raise UserError(f"{path} {reason}.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): check what it is and who may read it.") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        lines = [line for line in str(error).splitlines() if line.strip()]
        detail = " ".join(lines[-1].split())[-120:] if lines else type(error).__name__
        raise UserError(f"{path} is {nature} ({detail}): replace it or remove it.") from error
