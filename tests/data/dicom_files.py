"""The smallest DICOM files that a reader accepts, written byte by byte so that every tag is under control."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

LONG = ("OB", "OW", "UN", "SQ", "UT")
VRS = {
    (0x0008, 0x0008): "CS", (0x0008, 0x0016): "UI", (0x0008, 0x0018): "UI", (0x0008, 0x0060): "CS",
    (0x0008, 0x103E): "LO", (0x0010, 0x0010): "PN", (0x0010, 0x0020): "LO", (0x0010, 0x0030): "DA",
    (0x0018, 0x0050): "DS", (0x0020, 0x000D): "UI", (0x0020, 0x000E): "UI", (0x0020, 0x0013): "IS",
    (0x0020, 0x0032): "DS", (0x0020, 0x0037): "DS", (0x0020, 0x0052): "UI", (0x0028, 0x0002): "US",
    (0x0028, 0x0004): "CS", (0x0028, 0x0008): "IS", (0x0028, 0x0010): "US", (0x0028, 0x0011): "US",
    (0x0028, 0x0030): "DS", (0x0028, 0x0100): "US", (0x0028, 0x0101): "US", (0x0028, 0x0102): "US",
    (0x0028, 0x0103): "US", (0x0028, 0x1052): "DS", (0x0028, 0x1053): "DS", (0x7FE0, 0x0010): "OW",
}  # fmt: skip


def element(tag: tuple[int, int], vr: str, value: bytes | str | int) -> bytes:
    """Encode one data element, explicit VR, little endian."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    if isinstance(value, str):
        value = value.encode("latin-1")
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    head = struct.pack("<HH", *tag) + vr.encode()
    return head + (struct.pack("<HI", 0, len(value)) if vr in LONG else struct.pack("<H", len(value))) + value


def write_dicom(path: Path, pixels: np.ndarray, tags: Mapping[tuple[int, int], str | int] | None = None) -> Path:
    """Write stored values ``[rows, columns]`` or ``[frames, rows, columns]`` (int16 or uint16) as an MR image.

    Args:
        path: where to write; missing folders are made.
        pixels: stored values, before slope and intercept.
        tags: what differs from a plain slice at the origin; an empty text leaves the tag out.
    """
    frames = {(0x0028, 0x0008): str(len(pixels))} if pixels.ndim == 3 else {}
    number = sum(str(path).encode())
    values: dict[tuple[int, int], str | int | bytes] = {
        (0x0008, 0x0008): "ORIGINAL\\PRIMARY\\AXIAL", (0x0008, 0x0016): "1.2.840.10008.5.1.4.1.1.4",
        (0x0008, 0x0018): f"1.2.3.9.{number}", (0x0008, 0x0060): "MR", (0x0010, 0x0010): "DOE^JANE",
        (0x0010, 0x0020): "PATIENT-4711", (0x0020, 0x000D): "1.2.3", (0x0020, 0x000E): "1.2.3.4", (0x0020, 0x0013): "1",
        (0x0020, 0x0032): "0\\0\\0", (0x0020, 0x0037): "1\\0\\0\\0\\1\\0", (0x0028, 0x0002): 1,
        (0x0028, 0x0004): "MONOCHROME2", **frames, (0x0028, 0x0010): pixels.shape[-2],
        (0x0028, 0x0011): pixels.shape[-1], (0x0028, 0x0030): "0.9\\0.7", (0x0028, 0x0100): 16, (0x0028, 0x0101): 16,
        (0x0028, 0x0102): 15, (0x0028, 0x0103): int(pixels.dtype.kind == "i"), **(tags or {}),
        (0x7FE0, 0x0010): pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    }  # fmt: skip
    body = b"".join(element(tag, VRS[tag], value) for tag, value in sorted(values.items()) if value != "")
    meta = (
        element((2, 1), "OB", b"\0\1")
        + element((2, 2), "UI", str(values[0x0008, 0x0016]))
        + element((2, 3), "UI", str(values[0x0008, 0x0018]))
        + element((2, 0x10), "UI", "1.2.840.10008.1.2.1")
        + element((2, 0x12), "UI", "1.2.3.4.5")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element((2, 0), "UL", struct.pack("<I", len(meta))) + meta + body)
    return path


def structures(path: Path, kind: str) -> Path:
    """Write a file without pixels, such as RTSTRUCT (…481.3), of one SOP class."""
    body = b"".join(
        element(tag, VRS[tag], value)
        for tag, value in (
            ((0x0008, 0x0016), kind), ((0x0008, 0x0018), "1.2.3.9"), ((0x0010, 0x0020), "PATIENT-4711"),
            ((0x0020, 0x000D), "1.2.3"), ((0x0020, 0x000E), "1.2.3.77"),
        )
    )  # fmt: skip
    meta = element((2, 1), "OB", b"\0\1") + element((2, 2), "UI", kind) + element((2, 3), "UI", "1.2.3.9")
    meta += element((2, 0x10), "UI", "1.2.840.10008.1.2.1") + element((2, 0x12), "UI", "1.2.3.4.5")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element((2, 0), "UL", struct.pack("<I", len(meta))) + meta + body)
    return path


def write_series(
    folder: Path,
    pixels: np.ndarray,
    uid: str = "1.2.3.4",
    positions: Sequence[Sequence[float]] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: float = 3.0,
    tags: Mapping[tuple[int, int], str | int] | None = None,
    prefix: str = "",
) -> Path:
    """Write stored values ``[slices, rows, columns]``, one file a slice, and return the folder.

    Args:
        folder: where to write; file names are in another order than the slices.
        pixels: stored values.
        uid: of the series.
        positions: of the first pixel of each slice, LPS, mm; default ``step`` mm apart along the normal.
        orientation: row and column direction cosines.
        step: mm between slices.
        tags: further tags of every file.
        prefix: of file names.
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    if positions is None:
        positions = [np.array([-10.0, -20.0, 5.0]) + k * step * normal for k in range(len(pixels))]
    for k, (values, position) in enumerate(zip(pixels, positions, strict=True)):
        write_dicom(
            folder / f"{prefix}{(7 * k + 3) % 101:03}.dcm",
            values,
            {
                (0x0020, 0x000E): uid, (0x0020, 0x0013): str(k + 1),
                (0x0020, 0x0032): "\\".join(f"{x:.6f}" for x in position),
                (0x0020, 0x0037): "\\".join(f"{x:.8f}" for x in orientation), (0x0008, 0x0018): f"{uid}.{k + 1}",
                **(tags or {}),
            },
        )  # fmt: skip
    return folder
