"""PNG files: their checksums, which decoders do not compare, and large ones in little memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medmdm.errors import UserError

_START = b"\x89PNG\r\n\x1a\n"
_AGAIN = "copy it again or make it again"
_CHANNELS = {0: 1, 2: 3}  # of grey and RGB, as the header numbers them
_HEADER = struct.Struct(
    ">8s4x4sIIBBBBB"
)  # start, name of the first part, columns, rows, depth, colours, ..., interlace
_STRIP, _READ = 1 << 20, 1 << 16  # pixels, bytes
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
    with open(path, "rb") as file:
        if file.read(len(_START)) != _START:
            return
        kind = b""
        while kind != b"IEND":
            head = file.read(8)
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(kind) < 4 or size > path.stat().st_size:
                raise UserError(f"{path} is cut off or damaged: {_AGAIN}.")
            checksum = zlib.crc32(file.read(size), zlib.crc32(kind))
            stored = file.read(4)
            is_critical = not kind[0] & 0x20  # ancillary ones, such as dates and colour profiles, change no label
            if is_critical and stored != checksum.to_bytes(4, "big"):
                name = kind.decode("latin-1")
                raise UserError(f"{path} is damaged (its part {name!r} has changed since it was written): {_AGAIN}.")


def decode_large_png(path: Path) -> np.ndarray | None:
    """Decode 8-bit grey or RGB by strips: Pillow holds 4 bytes for the 3 of a pixel, beside the array made of them.

    A strip is a PNG of its own for Pillow: rows depend on the one before alone, which stands first in it, decoded.

    Args:
        path: of a picture.

    Returns:
        ``[H, W, C]``, whose channels lie one after the other; None for other files and small ones.

    Raises:
        UserError: the file is cut off.
        OSError, zlib.error: it cannot be read, or is damaged.
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    start, name, columns, rows, depth, colours, *_, interlaced = _HEADER.unpack(header)
    large = rows * columns > 2 * _STRIP
    if (start, name) != (_START, b"IHDR") or not large or depth != 8 or colours not in _CHANNELS or interlaced:
        return None
    if not is_upright_png(path):
        return None
    array = np.empty((_CHANNELS[colours], rows, columns), np.uint8)
    data, waiting, above = _inflated(path), bytearray(), b""
    for first in range(0, rows, each := max(1, _STRIP // columns)):
        count = min(each, rows - first)
        while len(waiting) < (size := count * (1 + len(array) * columns)):
            waiting += next(data, b"") or _cut_off(path)
        content = _png(columns, count + bool(above), colours, above + waiting[:size])
        del waiting[:size]
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            strip = np.asarray(image)[-count:].reshape(count, columns, -1)
        array[:, first : first + count] = np.moveaxis(strip, -1, 0)
        above = b"\0" + strip[-1].tobytes()  # 0: as it is
    return np.moveaxis(array, 0, -1)


def _cut_off(path: Path) -> bytes:
    raise UserError(f"{path} is cut off or damaged: {_AGAIN}.")


def _inflated(path: Path) -> Iterator[bytes]:
    """Yield the rows of a PNG file as they are before their filters are undone, in parts of any size."""
    inflate = zlib.decompressobj()
    with open(path, "rb") as file:
        file.seek(len(_START))
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            size = int.from_bytes(head[:4], "big")
            while head[4:] == b"IDAT" and size and (part := file.read(min(size, _READ))):
                size -= len(part)
                if made := inflate.decompress(part):
                    yield made
            file.seek(size + 4, 1)


def _png(columns: int, rows: int, colours: int, data: bytes) -> bytes:
    parts = {b"IHDR": struct.pack(">IIBBBBB", columns, rows, 8, colours, 0, 0, 0), b"IDAT": zlib.compress(data, 0)}
    framed = (
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(part, zlib.crc32(name)))
        for name, part in {**parts, b"IEND": b""}.items()
    )
    return _START + b"".join(framed)
