"""TIFFs of every arrangement of samples give the numbers that were written, or are refused with a sentence."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from medmdm.data.files.pictures import image_size, read_image
from medmdm.errors import UserError
from tests.made import refused

ROWS, COLUMNS = 72, 80


def values(dtype, *shape):
    """Return values of the type's whole range, channel c near a level of its own."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return (rng.random(shape) * 1000 - 300).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(2**31)), min(limits.max, 2**31 - 1), shape, dtype=dtype, endpoint=True)


def check(path, expected):
    """Compare with what was written, ``[C, H, W]``, and with tifffile."""
    read = read_image(path)
    np.testing.assert_array_equal(read, expected)
    assert read.dtype.isnative
    assert image_size(path) == expected.shape[1:]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8"])
def test_channels_of_every_type(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", values(dtype, ROWS, COLUMNS), photometric="minisblack")
    check(tmp_path / "a.tif", values(dtype, ROWS, COLUMNS)[None])
    for channels in (2, 3, 4, 7):
        array = values(dtype, ROWS, COLUMNS, channels)
        for planar in ("contig", "separate"):
            stored = array if planar == "contig" else array.transpose(2, 0, 1)
            tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
            check(tmp_path / "a.tif", array.transpose(2, 0, 1))


@pytest.mark.parametrize("more", [
    {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 32)}, {"rowsperstrip": 5}, {"compression": "zlib"},
    {"compression": "zlib", "predictor": 2}, {"tile": (32, 32), "compression": "zlib"},
    {"byteorder": ">", "tile": (16, 16), "compression": "zlib", "predictor": 2}, {"bigtiff": True, "byteorder": ">"},
    {"metadata": None}, {"ome": True},
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_ways_of_storing(tmp_path, more, dtype):
    array = values(dtype, ROWS, COLUMNS, 5)
    if more.get("predictor") and (dtype == "f4" or more.get("byteorder")):
        more = {**more, "predictor": None}  # tifffile writes these with a package of its own only
    for planar in ("contig", "separate"):
        stored = array if planar == "contig" else array.transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar, **more)
        if more.get("ome") and len(tifffile.TiffFile(tmp_path / "a.tif").pages) > 1:
            continue
        check(tmp_path / "a.tif", array.transpose(2, 0, 1))


@pytest.mark.parametrize("kinds", [("unassalpha",), ("assocalpha",), ("unspecified",), ("unspecified", "unassalpha")])
@pytest.mark.parametrize(("photometric", "colours"), [("rgb", 3), ("minisblack", 1)])
def test_alpha_is_dropped_and_other_extra_samples_are_channels(tmp_path, kinds, photometric, colours):
    kept = [*range(colours), *(colours + i for i, kind in enumerate(kinds) if kind == "unspecified")]
    for dtype in ("u1", "u2", "f4"):
        array = values(dtype, ROWS, COLUMNS, colours + len(kinds))
        tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, planarconfig="contig", extrasamples=kinds)
        check(tmp_path / "a.tif", array[..., kept].transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["u1", "u2", "bool"])
def test_white_is_zero(tmp_path, dtype):
    array = values("u2", ROWS, COLUMNS) > 30000 if dtype == "bool" else values(dtype, ROWS, COLUMNS)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    check(tmp_path / "a.tif", ~array[None])


@pytest.mark.parametrize(("dtype", "channels"), [("i2", 1), ("f4", 1), ("u4", 1), ("u1", 3), ("u2", 2)])
def test_white_is_zero_where_nothing_says_what_black_is(tmp_path, dtype, channels):
    shape, more = ((ROWS, COLUMNS), {}) if channels == 1 else ((ROWS, COLUMNS, channels), {"planarconfig": "contig"})
    tifffile.imwrite(tmp_path / "a.tif", values(dtype, *shape), photometric="miniswhite", **more)
    refused("has 0 for white", read_image, tmp_path / "a.tif")


def test_several_pages_give_the_first(tmp_path):
    array = values("u2", 3, ROWS, COLUMNS, 4)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    check(tmp_path / "a.tif", array[0].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "RGB", "RGBA", "P"])
def test_what_pillow_writes(tmp_path, mode):
    pixels = {"I;16": "u2", "I": "i4", "F": "f4"}.get(mode)
    if pixels is not None:
        image = Image.fromarray(values(pixels, ROWS, COLUMNS))
    else:
        image = Image.fromarray(values("u1", ROWS, COLUMNS, 4)).convert("RGB" if mode == "P" else mode)
        image = image.quantize(16) if mode == "P" else image
    expected = np.asarray(image.convert("RGB") if mode == "P" else image)
    expected = np.moveaxis(np.atleast_3d(expected), -1, 0)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", None):
        image.save(tmp_path / "a.tif", compression=compression)
        check(tmp_path / "a.tif", expected[:3])


def packed(bits, array, photometric=1):
    """Return a TIFF of one strip whose samples have ``bits``; no library here writes these."""
    rows, columns = array.shape
    places = (array[..., None] >> np.arange(bits)[::-1]) & 1
    strip = np.packbits(places.reshape(rows, -1).astype(np.uint8), axis=1).tobytes()
    tags = [
        (256, 3, 1, columns), (257, 3, 1, rows), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, rows), (279, 4, 1, len(strip)),
    ]  # fmt: skip
    file = io.BytesIO()
    file.write(struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip)
    file.write(struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4)
    return file.getvalue()


@pytest.mark.parametrize(("bits", "read"), [(1, True), (2, False), (4, False), (10, False), (12, True), (14, False)])
def test_packed_bits(tmp_path, bits, read):
    array = values("u2", 9, 14) >> (16 - bits)
    (tmp_path / "a.tif").write_bytes(packed(bits, array))
    if read:
        check(tmp_path / "a.tif", array[None])
    else:
        refused(rf"a\.tif has 1 x {bits} bits, .*: save it as", read_image, tmp_path / "a.tif")


def test_what_is_not_understood_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    for array, more, sentence in (
        (values("u2", ROWS, COLUMNS, 4), {"photometric": "separated"}, "SEPARATED colours other than"),
        (values("u1", ROWS, COLUMNS, 3), {"photometric": "cielab"}, "the colour space CIELAB"),
        (values("f4", ROWS, COLUMNS).astype("c8"), {"photometric": "minisblack"}, "unknown types"),
        (values("u8", ROWS, COLUMNS) << 33, {"photometric": "minisblack"}, "32 bits cannot hold"),
        (values("u1", 16, 32, 48), {"photometric": "minisblack", "tile": (16, 16, 16), "volumetric": True}, "a volume"),
    ):
        tifffile.imwrite(path, array, **more)
        refused(rf"a\.tif (has|holds) .*{sentence}", read_image, path)


def test_missing_pixels_are_not_zeros(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("u2", ROWS, COLUMNS), tile=(16, 16), photometric="minisblack")
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        where = file.pages.first.tags["TileByteCounts"].valueoffset
    path.write_bytes(whole[:where] + b"\0\0\0\0" + whole[where + 4 :])
    with pytest.raises(UserError, match=r"a\.tif "):
        read_image(path)
    tifffile.imwrite(path, values("u2", ROWS, COLUMNS), rowsperstrip=8, photometric="minisblack", metadata=None)
    whole = path.read_bytes()
    for length in (len(whole) - 2, len(whole) // 2, 200):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tif "):
            read_image(path)
