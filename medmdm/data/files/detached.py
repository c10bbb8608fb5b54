"""Headers of MetaImage and NRRD, which may name the files that hold the voxels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from medmdm.data.files.formats import is_special
from medmdm.errors import UserError

_HEADER = 1 << 20  # bytes; headers are a few thousand
_META = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*)", re.MULTILINE)
_NRRD = re.compile(rb"^[ \t]*data ?file[ \t]*:(?!=)[ \t]*([^\r\n]*)", re.MULTILINE | re.IGNORECASE)


def leaves_folder(name: str) -> bool:
    """Whether a path that should lie below a folder leads out of it, on any system."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return path.is_absolute() or bool(windows.anchor) or ".." in path.parts or ".." in windows.parts


def refuse_leaving(path: Path) -> None:
    """Refuse a header whose voxels lie outside of its folder, before a decoder follows it.

    Args:
        path: MetaImage or NRRD file, the voxels in it or beside it.

    Raises:
        UserError: naming the file and where it leads.
        OSError: it cannot be read.
    """
    for text in named_files(path):
        target = path.parent / text
        if is_special(target):
            raise UserError(f"{path} takes its voxels from {text!r}, a pipe, a socket or a device.")
        # A link is followed like a file.
        if leaves_folder(text) or (target.is_symlink() and path.parent.resolve() not in target.resolve().parents):
            raise UserError(
                f"{path} takes its voxels from {text!r}, which leaves its folder: the file is not to be trusted; if "
                "it is your own, put both files into one folder and correct the header."
            )


def named_files(path: Path) -> list[str]:
    """Return what a MetaImage or NRRD file says of the files that hold its voxels, if they are not in itself."""
    with open(path, "rb") as file:
        header = file.read(_HEADER)
    # ITK's decoders cut white space and quotes off.
    return [name.decode("utf-8", "replace").strip().strip("\"'").strip() for name in _named(header)]


def _named(header: bytes) -> Iterator[bytes]:
    """Yield the names of files in a header, patterns such as ``slice%03d.raw 1 9 1`` as they are."""
    if header.startswith(b"NRRD"):
        header = re.split(rb"\r?\n\r?\n", header)[0] if b"LIST" not in header[:4096].upper() else header
        found = list(_NRRD.finditer(header))
    else:
        found = list(_META.finditer(header))[:1]  # the last line of a header; what follows are voxels
    for one in found:
        name = one.group(1)
        if name.split()[:1] in ([b"LIST"], [b"LIST:"]):
            yield from (line for line in header[one.end() :].splitlines() if line.strip())
        elif name.strip().upper() != b"LOCAL":
            yield name
