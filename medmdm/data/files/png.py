"""The checksums of PNG files, which decoders do not compare."""

from __future__ import annotations

import zlib
from pathlib import Path

from medmdm.errors import UserError

_START = b"\x89PNG\r\n\x1a\n"
_WORDS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # parts that Exif or XMP data are kept in


def is_upright_png(path: Path) -> bool:
    """Whether a file is a PNG without any part that could hold an orientation, as nearly all are.

    Pillow looks for one by decoding the picture, for it may stand behind the pixels; here they are skipped.

    Args:
        path: of a picture.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(_START)) != _START:
            return False
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return True
            if head[4:] in _WORDS:
                return False
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def refuse_damaged_png(path: Path) -> None:
    """Compare the CRC-32 of each critical chunk of a PNG file (W3C, Portable Network Graphics, section 5).

    A changed byte in a photograph is a speck, in a label it is another class. Other files pass.

    Args:
        path: of a picture.

    Raises:
        UserError: a chunk is not what was written, or the end is missing.
        OSError: it cannot be read.
    """
    again = "copy it again or make it again"
    with open(path, "rb") as file:
        if file.read(len(_START)) != _START:
            return
        kind = b""
        while kind != b"IEND":
            head = file.read(8)
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(kind) < 4 or size > path.stat().st_size:
                raise UserError(f"{path} is cut off or damaged: {again}.")
            checksum = zlib.crc32(file.read(size), zlib.crc32(kind))
            stored = file.read(4)
            is_critical = not kind[0] & 0x20  # ancillary ones, such as dates and colour profiles, change no label
            if is_critical and stored != checksum.to_bytes(4, "big"):
                name = kind.decode("latin-1")
                raise UserError(f"{path} is damaged (its part {name!r} has changed since it was written): {again}.")
