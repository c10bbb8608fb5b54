"""Pictures that are damaged, empty, too large, or not what they seem."""

import os
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medmdm.data.files.pictures import read_image
from tests.damage.attempts import Attempt, Outcome, check, damage, prepare, pretrain, read
from tests.damage.sound import cut, data_list, picture, written


def every_door(root: Path, path: Path) -> list[Attempt]:
    """A file can be read, trained on, checked and prepared."""
    listed = data_list(root, [{"image": path.name}])
    return [read(path), pretrain(root), pretrain(root, "none"), check(listed), prepare("folder", root)]


for suffix in ("png", "tif", "bmp", "jpg"):
    damage(f"truncated {suffix.upper()}", r"x\.\w+ is truncated or damaged|x\.\w+ is not a readable")(
        lambda root, suffix=suffix: every_door(root, cut(picture(root / f"x.{suffix}")))
    )
for name, words, content in (
    ("an empty file", r"x\.png is an empty file", b""),
    ("a text named .png", r"x\.png is not a readable PNG, TIFF, BMP or JPEG", b"Sorry, you must log in.\n"),
):
    damage(name, words)(lambda root, content=content: every_door(root, written(root / "x.png", content)))


NO_FILE = r"x\.png cannot be opened|x\.png is a folder without DICOM|x\.png\): correct|holds no image"


@damage("a directory named x.png", NO_FILE)
def _(root: Path) -> list[Attempt]:
    (root / "data" / "x.png").mkdir(parents=True)
    listed = data_list(root / "data", [{"image": "x.png"}])
    return [read(root / "data" / "x.png"), pretrain(root / "data"), check(listed), prepare("folder", root / "data")]


@damage("no permission to read", r"x\.png cannot be opened \(Permission denied\)")
def _(root: Path) -> list[Attempt]:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = picture(root / "x.png")
    path.chmod(0)
    return every_door(root, path)[:4]


def _png(path: Path, columns: int, rows: int) -> Path:
    """Write a PNG whose header states a size that its data do not have."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return written(path, b"\x89PNG\r\n\x1a\n" + body)


BOMB = r"x\.png would decode to more than .* possible decompression bomb"
damage("a PNG of 60000x60000 in 80 bytes", BOMB)(lambda root: every_door(root, _png(root / "x.png", 60000, 60000)))
EMPTY = r"x\.png is (truncated or damaged|not a readable)"
damage("a PNG of 0x5 pixels", EMPTY)(lambda root: every_door(root, _png(root / "x.png", 0, 5)))


def not_finite(root: Path, value: float) -> list[Attempt]:
    array = np.linspace(0, 1, 20 * 30, dtype=np.float32).reshape(20, 30)
    array[3, 4] = value
    picture(root / "x.tif", array)
    return [check(data_list(root, [{"image": "x.tif"}])), pretrain(root, channels=1, intensity_range=[0, 1])]


for value in (np.nan, np.inf):
    damage(f"{value} in an image", r"x\.tif holds values that are not finite")(partial(not_finite, value=value))


@damage("a constant image", r"x\.png has the value 7 everywhere")
def _(root: Path) -> list[Attempt]:
    picture(root / "x.png", np.full((20, 30, 3), 7))
    return [check(data_list(root, [{"image": "x.png"}]))]


@damage("one channel among colours", r"x\.png has 1 channel")
def _(root: Path) -> list[Attempt]:
    data_list(root)
    picture(root / "x.png", np.eye(20, 30) * 255)
    every = data_list(root, [{"image": name} for name in ("a.png", "b.png", "x.png")])
    return [check(every), pretrain(root, "none")]


UNKNOWN = r"x\.tif holds float32 values, whose range is not known: set intensity_range"


@damage("floats whose range nobody knows", UNKNOWN)
def _(root: Path) -> list[Attempt]:
    picture(root / "x.tif", np.eye(20, 30, dtype=np.float32))
    return [pretrain(root, channels=1)]


@damage("a TIFF of several pages", r"x\.tif has 2 pages; only the first is used", "warning")
def _(root: Path) -> list[Attempt]:
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30), dtype=np.uint8)) for i in range(2)]
    pages[0].save(root / "x.tif", save_all=True, append_images=pages[1:])
    return [read(root / "x.tif")]


@damage("colours of 16 bits (kept, not cut to 8)", r"3 x 20x30 uint16", "warning")
def _(root: Path) -> list[Attempt]:
    array = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(root / "x.png"))

    def kept(out: Path) -> Outcome:
        decoded = read_image(root / "x.png")
        assert (decoded == np.moveaxis(array, -1, 0)).all()
        return Outcome("warning", (f"{decoded.shape[0]} x {decoded.shape[1]}x{decoded.shape[2]} {decoded.dtype}",))

    def prepared(out: Path) -> Outcome:
        assert prepare("folder", root)(out).level == "warning"  # its table
        assert (read_image(out / "images" / "x.png") == np.moveaxis(array, -1, 0)).all()
        return Outcome("warning", ("3 x 20x30 uint16",))

    return [kept, prepared]
