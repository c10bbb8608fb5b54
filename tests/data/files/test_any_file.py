"""Whatever a small file's header says: its pixels are those that another reader finds, or a sentence refuses it."""

import io
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from medmdm.data.files.pictures import image_size, read_image, read_mask
from medmdm.data.files.volumes import read_volume
from medmdm.data.meaning import meaning_of, with_ones
from medmdm.errors import UserError

SETTINGS = settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
SIDES = st.integers(1, 9)


def values(seed: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of the type's whole range, or of its first few numbers."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "fc":
        return (rng.random(shape) * 100).astype(kind)
    limits = np.iinfo(kind)
    top = limits.max if seed % 2 else 5
    return rng.integers(limits.min if seed % 2 else 0, top, shape, kind, endpoint=True)


def accepted(read, path: Path) -> np.ndarray | None:
    """Return what is read, ``None`` where one sentence refuses the file; everything else is a failure."""
    try:
        return read(path)
    except UserError as error:
        sentence = str(error)
    assert path.name in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return None


@pytest.mark.filterwarnings("ignore")
@settings(SETTINGS, max_examples=60)  # more than half of what is drawn cannot be written
@given(
    seed=st.integers(0, 999), dtype=st.sampled_from(DTYPES), rows=SIDES, columns=SIDES, samples=st.integers(1, 5),
    photometric=st.sampled_from(["minisblack", "rgb", "miniswhite", "palette", "separated", "ycbcr", "cielab"]),
    planar=st.sampled_from(["contig", "separate"]), tiled=st.booleans(), big=st.booleans(),
    order=st.sampled_from(["<", ">"]), compression=st.sampled_from([None, "zlib"]),
    predictor=st.sampled_from([None, 2]), extra=st.sampled_from([None, "unspecified", "unassalpha", "assocalpha"]),
    pages=st.integers(1, 2), turned=st.integers(1, 8),
)  # fmt: skip
def test_tiff(
    tmp_path, seed, dtype, rows, columns, samples, photometric, planar, tiled, big, order, compression, predictor,
    extra, pages, turned,
):  # fmt: skip
    path = tmp_path / "a.tif"
    page = (rows, columns, samples) if planar == "contig" else (samples, rows, columns)
    array = values(seed, dtype, (pages, *((rows, columns) if samples == 1 else page)))
    more = {} if samples == 1 else {"planarconfig": planar}
    if photometric == "palette":
        assume(array.itemsize < 3)
        more["colormap"] = np.random.default_rng(1).integers(0, 65536, (3, 2 ** (8 * array.itemsize)), np.uint16)
    colours = {"rgb": 3, "separated": 4, "ycbcr": 3, "cielab": 3}.get(photometric, 1)
    if extra is not None and samples > colours:
        more["extrasamples"] = [extra] * (samples - colours)
    try:
        tifffile.imwrite(
            path, array, photometric=photometric, tile=(16, 16) if tiled else None, bigtiff=big, byteorder=order,
            compression=compression, predictor=predictor, metadata=None, extratags=[(274, 3, 1, turned)], **more,
        )  # fmt: skip
    except (ValueError, NotImplementedError, KeyError, RuntimeError, TypeError, AttributeError, struct.error):
        assume(False)
    read = accepted(read_image, path)
    if read is None:
        return
    with tifffile.TiffFile(path) as file:
        stored = file.pages.first.asarray()
        kinds = [int(kind) for kind in file.pages.first.extrasamples]
        where = file.pages.first.planarconfig
        assume(file.pages.first.samplesperpixel == samples)  # three columns may be taken for colours
        assert file.pages.first.photometric.name.lower() == photometric
    stored = stored.reshape(samples, rows, columns) if samples > 1 and where == 2 else stored
    stored = stored if samples > 1 and where == 2 else np.moveaxis(stored.reshape(rows, columns, -1), -1, 0)
    if photometric == "palette":
        with Image.open(path) as image:
            stored = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
            turned = 0  # Pillow did
    elif photometric == "separated":
        assert read.shape[0] == 3
        return
    elif photometric == "miniswhite":
        stored = ~stored
    elif not kinds and photometric == "rgb" and samples == 4:
        stored = stored[:3]
    else:
        stored = stored[[c for c in range(samples) if c < colours or kinds[c - colours] not in (1, 2)]]
    back = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}.get(turned, (0, 0))
    expected = np.flip(stored, [axis + 1 for axis in (0, 1) if back[axis]])
    expected = expected.swapaxes(1, 2) if turned > 4 else expected
    np.testing.assert_array_equal(read, expected)
    assert image_size(path) == read.shape[1:]


@pytest.mark.filterwarnings("ignore")
@SETTINGS
@given(
    seed=st.integers(0, 999), where=st.integers(0, 255), byte=st.integers(0, 255), kind=st.sampled_from(["tif", "png"])
)
def test_a_changed_byte(tmp_path, seed, where, byte, kind):
    """Never another exception than the sentence, and never other pixels than tifffile finds."""
    path, file = tmp_path / f"a.{kind}", io.BytesIO()
    array = values(seed, ["u1", "u2", "f4"][seed % 3] if kind == "tif" else "u1", (4, 5, 3))
    if kind == "tif":
        tifffile.imwrite(file, array, photometric="rgb", metadata=None)
    else:
        Image.fromarray(array).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[where % len(content)] = byte
    path.write_bytes(content)
    read = accepted(read_image, path)
    if read is None or kind == "png":
        return
    with tifffile.TiffFile(path) as opened:
        page = opened.pages.first
        if page.photometric in (1, 2) and page.tags.valueof(274, 1) == 1 and len(read) == page.samplesperpixel:
            stored = page.asarray().reshape(-1)
            np.testing.assert_array_equal(np.sort(read.reshape(-1)), np.sort(stored))


@SETTINGS
@given(
    seed=st.integers(0, 999), rows=SIDES, columns=SIDES,
    mode=st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P", "I;16"]),
    colours=st.integers(0, 256), suffix=st.sampled_from(["png", "bmp", "tif"]), transparent=st.booleans(),
)  # fmt: skip
def test_pillow(tmp_path, seed, rows, columns, mode, colours, suffix, transparent):
    path = tmp_path / f"a.{suffix}"
    bands = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode)
    array = values(seed, "u2" if mode == "I;16" else "u1", (rows, columns) if bands is None else (rows, columns, bands))
    image = Image.fromarray(array)
    if mode == "1":
        image = image.convert("1")
    if mode == "P":
        image = Image.frombytes("P", (columns, rows), array.tobytes())
        image.putpalette(np.random.default_rng(seed).integers(0, 256, 3 * colours).tolist())
    try:
        image.save(path, **({"transparency": 0} if transparent and mode == "P" and suffix == "png" else {}))
    except (OSError, ValueError, SystemError):
        assume(False)
    read, label = accepted(read_image, path), accepted(read_mask, path)
    with Image.open(path) as again:
        indices = again.mode == "P"
        raw = np.atleast_3d(np.asarray(again))
        shown = np.atleast_3d(np.asarray(again.convert("RGB") if indices else again))
    if read is not None:
        np.testing.assert_array_equal(np.moveaxis(read, 0, -1), shown[..., : {"LA": 1, "RGBA": 3}.get(mode, 4)])
    if label is not None and len(label) == 1 and mode not in ("LA", "RGBA"):
        np.testing.assert_array_equal(label[0], raw[..., 0])


@SETTINGS
@given(
    seed=st.integers(0, 999), dtype=st.sampled_from([*DTYPES[1:], "f4"]), shape=st.tuples(SIDES, SIDES, SIDES),
    channels=st.integers(1, 2), slope=st.sampled_from([None, (2.0, 0.0), (0.5, -3.0)]),
    two=st.booleans(), order=st.sampled_from(["<", ">"]),
)  # fmt: skip
def test_nifti(tmp_path, seed, dtype, shape, channels, slope, two, order):
    path = tmp_path / "a.nii"
    array = values(seed, dtype, shape if channels == 1 else (*shape, channels))
    header = (nib.Nifti2Header if two else nib.Nifti1Header)(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order) if dtype != "f2" else np.float32)
    image = (nib.Nifti2Image if two else nib.Nifti1Image)(
        array, np.diag([1.5, 2, 3, 1]), header, dtype=header.get_data_dtype()
    )
    if slope is not None:
        image.header.set_slope_inter(*slope)
    try:
        nib.save(image, path)
    except (nib.spatialimages.HeaderDataError, ValueError, OverflowError, TypeError):
        assume(False)
    read = accepted(lambda name: read_volume(name).array, path)
    if read is not None:
        loaded = np.asanyarray(nib.load(path).dataobj)
        stored = loaded[None] if loaded.ndim == 3 else np.moveaxis(loaded, 3, 0)
        assert read.shape == stored.shape
        np.testing.assert_array_equal(read, stored)


@SETTINGS
@given(st.lists(
    st.dictionaries(st.sampled_from([0, 1, 2, 3, 64, 100, 128, 254, 255, 300, 65535]), st.integers(1, 50), min_size=1),
    min_size=1, max_size=4,
))  # fmt: skip
def test_values_of_masks(masks):
    """Every number keeps its meaning: it is a class, a white that is 1, or pixels to ignore."""
    named = {f"m{number}.png": counts for number, counts in enumerate(masks)}
    found = set().union(*masks)
    try:
        meaning = meaning_of(named)
    except UserError:
        return
    read = with_ones(np.array(sorted(found)), meaning.whites).tolist()
    assert set(read) <= {*meaning.classes.values(), 255}
    assert len(set(read)) == len(found) - (len(meaning.whites) == 1 and 1 in found)
    assert len(meaning.whites) <= 1
    assert max(meaning.classes.values()) <= 255
