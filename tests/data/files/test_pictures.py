"""Every mode, depth and format is read in full; what cannot be read is a sentence."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import skimage.io
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImage, SaveImaged
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medmdm.data.files import pictures as images_module
from medmdm.data.files.pictures import RasterReader, image_size, read_image
from medmdm.data.files.png import decode_large_png, is_upright_png
from medmdm.errors import UserError, find_user_error
from medmdm.files import pixel_hash
from tests.made import refused
from tests.written import picture

ROWS, COLUMNS = 5, 7


def grey(rng: np.random.Generator, dtype: type = np.uint8) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max + 1, (ROWS, COLUMNS), dtype=dtype)


def colour(rng: np.random.Generator, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max + 1, (ROWS, COLUMNS, channels), dtype=dtype)


def save_deep(array: np.ndarray, path: Path, compress: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path), compress)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_lossless_formats_give_the_pixels_rows_first(tmp_path, rng, mode, suffix):
    image = Image.fromarray(colour(rng)).convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    expected = np.asarray(image)
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    array = read_image(path)
    assert array.shape == (3 if mode == "RGB" else 1, ROWS, COLUMNS)
    assert array.dtype == (bool if mode == "1" else np.uint8)
    np.testing.assert_array_equal(array, expected)
    assert mode != "1" or set(array.tobytes()) == {0, 1}
    assert image_size(path) == (ROWS, COLUMNS)
    if mode != "1":  # scikit-image reads bilevel files as 0 and 255
        np.testing.assert_array_equal(np.moveaxis(np.atleast_3d(skimage.io.imread(path)), -1, 0), array)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P"])
def test_large_pictures_are_decoded_in_strips(tmp_path, rng, mode, monkeypatch):
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(grey(rng, np.uint16)).save(path)
    else:
        Image.fromarray(colour(rng)).convert(mode).save(path)
    expected = read_image(path)
    monkeypatch.setattr("medmdm.data.files.rasters._STRIP", 3 * expected.shape[2])
    found = read_image(path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("mode", "level"), [("L", 9), ("RGB", 0), ("RGB", 1), ("RGB", 9)])
def test_large_pngs_are_decoded_strip_by_strip(tmp_path, rng, mode, level, monkeypatch):
    path, cut = tmp_path / "a.png", tmp_path / "cut.png"
    image = Image.fromarray(np.cumsum(rng.integers(0, 8, (190, 270, 3)), axis=0).astype(np.uint8)).convert(mode)
    image.save(path, compress_level=level)
    assert decode_large_png(path) is None  # a small one
    expected = read_image(path)
    monkeypatch.setattr("medmdm.data.files.png._STRIP", 1000)
    monkeypatch.setattr(images_module, "decode_with_pillow", None)
    found = read_image(path)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)
    whole = path.read_bytes()
    at = whole.index(b"IDAT") - 4
    cut.write_bytes(whole[:at] + whole[whole.index(b"IEND") - 4 :])  # no pixels, but an end
    refused("cut.png is cut off or damaged", read_image, cut)


def test_sizes_are_read_without_decoding(tmp_path, rng, monkeypatch):
    plain, told = tmp_path / "plain.png", tmp_path / "told.png"
    Image.fromarray(colour(rng)).save(plain)
    text = PngInfo()
    text.add_text("Author", "nobody")
    Image.fromarray(colour(rng)).save(told, pnginfo=text)
    size = image_size(told)
    assert is_upright_png(plain)
    assert not is_upright_png(told)
    monkeypatch.setattr(Image.Image, "load", None)
    assert image_size(plain) == size
    plain.write_bytes(plain.read_bytes()[:-20])
    assert not is_upright_png(plain)


def test_jpeg_gives_what_pillow_decodes(tmp_path, rng):
    for mode, channels in (("L", 1), ("RGB", 3), ("CMYK", 3)):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(colour(rng)).convert(mode).save(path)
        array = read_image(path)
        assert array.shape == (channels, ROWS, COLUMNS)
        expected = np.asarray(Image.open(path).convert("RGB" if channels == 3 else "L"))
        np.testing.assert_array_equal(array, np.moveaxis(np.atleast_3d(expected), -1, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("channels", "kept"), [(2, 1), (4, 3)])
def test_alpha_is_dropped_and_not_blended(tmp_path, rng, channels, kept, suffix):
    array = colour(rng, channels)
    array[..., -1] = 0
    path = picture(tmp_path / f"a.{suffix}", array)
    np.testing.assert_array_equal(read_image(path), array[..., :kept].transpose(2, 0, 1))


def test_palette_becomes_rgb(tmp_path, rng):
    image = Image.fromarray(colour(rng)).quantize(16)
    for suffix in ("png", "bmp", "tif"):
        image.save(tmp_path / f"a.{suffix}")
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(tmp_path, rng, compression):
    array = colour(rng)
    Image.fromarray(array).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array.transpose(2, 0, 1))


def test_jpeg_compressed_tiff(tmp_path):
    array = np.full((32, 48, 3), (200, 120, 40), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.tif", compression="jpeg")
    result = read_image(tmp_path / "a.tif")
    assert result.shape == (3, 32, 48)
    assert np.abs(result.astype(int) - array.transpose(2, 0, 1)).max() < 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path, rng, suffix):
    array = grey(rng, np.uint16)
    result = read_image(picture(tmp_path / f"a.{suffix}", array))
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, array[None])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "compressed.tif"])
def test_sixteen_bit_colour_is_not_cut_to_eight(tmp_path, rng, name, channels):
    array = colour(rng, channels, np.uint16)
    path = save_deep(array, tmp_path / name, compress=name.startswith("compressed"))
    assert np.asarray(Image.open(path)).dtype == np.uint8  # the trap
    result = read_image(path)
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, array[..., :3].transpose(2, 0, 1))
    assert image_size(path) == (ROWS, COLUMNS)


def test_big_endian_tiff_comes_in_native_order(tmp_path, rng):
    array = grey(rng, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=">")
    tifffile.imwrite(tmp_path / "b.tif", array, byteorder="<")
    big, little = read_image(tmp_path / "a.tif"), read_image(tmp_path / "b.tif")
    assert big.dtype.isnative
    np.testing.assert_array_equal(big, little)
    assert pixel_hash(big) == pixel_hash(little)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_shown_as_a_viewer_does(tmp_path, rng, dtype):
    array = grey(rng, dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], np.iinfo(dtype).max - array)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_tiff_with_other_types_keeps_its_values(tmp_path, rng, dtype):
    low, high = (-30000, 30000) if np.issubdtype(dtype, np.signedinteger) else (0, 60000)
    array = rng.integers(low, high, (ROWS, COLUMNS)).astype(dtype)
    if dtype == np.uint32:
        array[0, 0] = 2**32 - 1
    tifffile.imwrite(tmp_path / "a.tif", array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], array)


def test_float_colour_tiff(tmp_path, rng):
    array = rng.random((ROWS, COLUMNS, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    result = read_image(tmp_path / "a.tif")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, array.transpose(2, 0, 1))
    assert image_size(tmp_path / "a.tif") == (ROWS, COLUMNS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_orientation_tag_is_honoured(tmp_path, orientation, name):
    rows, columns = np.mgrid[:24, :40]
    stored = np.stack([rows * 8, columns * 5, rows * 0 + 100], -1).astype(np.uint8)
    viewed = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    path = tmp_path / name
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    result = read_image(path).transpose(1, 2, 0).astype(int)
    assert result.shape == viewed.shape
    assert np.abs(result - viewed).max() <= (12 if name == "a.jpg" else 0)
    assert image_size(path) == viewed.shape[:2]


def test_turned_sixteen_bit_colour(tmp_path, rng):
    array = colour(rng, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extratags=[(274, 3, 1, 6)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rot90(array, -1).transpose(2, 0, 1))
    assert image_size(tmp_path / "a.tif") == (COLUMNS, ROWS)


def test_first_page_with_one_warning(tmp_path, rng, caplog):
    pages = [Image.fromarray(colour(rng)) for _ in range(3)]
    path = tmp_path / "stack.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(read_image(path), np.asarray(pages[0]).transpose(2, 0, 1))
    assert [record.message for record in caplog.records] == [f"{path} has 3 pages; only the first is used"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "lzw.tif"])
def test_truncated_empty_and_foreign_files_are_one_sentence(tmp_path, rng, suffix):
    whole = tmp_path / f"whole.{suffix}"
    array = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(array).save(whole, **({"compression": "tiff_lzw"} if suffix == "lzw.tif" else {}))
    content = whole.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "start": content[:20], "empty": b"", "text": b"not an image at all"}
    for kind, part in damaged.items():
        path = tmp_path / f"{kind}.{suffix}"
        path.write_bytes(part)
        with pytest.raises(UserError, match=rf"{kind}\.{suffix} ") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
        if kind == "empty":
            assert "empty file" in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    refused(r"gone\.png does not exist", read_image, tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    refused(r"folder\.png cannot be opened", read_image, tmp_path / "folder.png")
    refused(r"gone\.png does not exist", image_size, tmp_path / "gone.png")


@pytest.mark.parametrize("name", ["a.png", "deep.tif"])
def test_decompression_bomb_is_refused(tmp_path, rng, monkeypatch, name):
    path = save_deep(colour(rng, dtype=np.uint16), tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(f"{name} would decode to more than 20 pixels", read_image, path)


def test_other_formats_are_not_opened_whatever_their_suffix(tmp_path, rng):
    Image.fromarray(colour(rng)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    refused(r"a\.png is not a readable PNG, TIFF, BMP or JPEG", read_image, tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_hash_does_not_depend_on_the_file_format(tmp_path, rng, mode):
    image = Image.fromarray(colour(rng)).convert(mode)
    hashes = set()
    for suffix in ("bmp", "png", "tif"):
        image.save(tmp_path / f"a.{suffix}")
        hashes.add(pixel_hash(read_image(tmp_path / f"a.{suffix}")))
    assert len(hashes) == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["uint8", "uint16", "float32"]))
def test_hash_tells_shape_type_and_every_pixel_apart(channels, rows, columns, dtype):
    array = np.zeros((channels, rows, columns), dtype=dtype)
    reference = pixel_hash(array)
    assert reference == pixel_hash(array.astype(array.dtype.newbyteorder(">")))
    assert reference == pixel_hash(np.asfortranarray(array))
    changed = array.copy()
    changed[-1, -1, -1] = 1
    assert pixel_hash(changed) != reference
    assert pixel_hash(array.astype("float64")) != reference
    flat = array.reshape(1, 1, -1)
    assert (pixel_hash(flat) == reference) == (flat.shape == array.shape)


def test_reader_in_load_image(tmp_path, rng):
    array = colour(rng)
    path = picture(tmp_path / "a.png", array)
    image = LoadImage(reader=RasterReader(), ensure_channel_first=True, image_only=True, dtype=None)(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), array.transpose(2, 0, 1))
    assert image.meta["original_dtype"] == "uint8"
    assert image.meta["filename_or_obj"] == str(path)


def test_reader_from_json_by_dotted_name(tmp_path, rng):
    array = grey(rng)
    picture(tmp_path / "a.tif", array)
    config = {
        "load": {
            "_target_": "LoadImaged", "keys": "image", "reader": "medmdm.data.RasterReader",
            "ensure_channel_first": True, "dtype": None,
        }
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = ConfigParser(config).get_parsed_content("load")
    np.testing.assert_array_equal(load({"image": tmp_path / "a.tif"})["image"].numpy(), array[None])


def test_reader_stacks_files_as_channels_and_wants_equal_sizes(tmp_path, rng):
    a, b = (picture(tmp_path / f"{name}.png", grey(rng)) for name in ("a", "b"))
    small = picture(tmp_path / "small.png", grey(rng)[:3])
    load = LoadImage(reader=RasterReader(), ensure_channel_first=True, image_only=True, dtype=None)
    np.testing.assert_array_equal(load([a, b])[1].numpy(), read_image(b)[0])
    refused(r"small\.png is 3x7 uint8 but .*a\.png is 5x7 uint8", load, [a, small])


@pytest.mark.parametrize("reader", [RasterReader(), "medmdm.data.RasterReader", "PILReader"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_monai_writes_what_it_read(tmp_path, rng, reader, suffix, channels):
    array = grey(rng) if channels == 1 else colour(rng)
    source = picture(tmp_path / "a.png", array)
    pipeline = Compose([
        LoadImaged("image", reader=reader, ensure_channel_first=True),
        SaveImaged(
            "image", output_dir=tmp_path / "out", output_postfix="again", output_ext=suffix, output_dtype=np.uint8,
            separate_folder=False, print_log=False,
        ),
    ])  # fmt: skip
    pipeline({"image": source})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"a_again{suffix}")), array)


def test_monai_writes_a_mask_of_what_it_read(tmp_path, rng):
    """What a network made of a batch, and what a saver of one's own asks for."""
    source = picture(tmp_path / "a.png", colour(rng))
    load = LoadImaged("image", reader=RasterReader(), ensure_channel_first=True)
    (item,) = decollate_batch(list_data_collate([load({"image": source})]))
    mask = item["image"][:1] > 99
    SaveImage(tmp_path, "m", ".png", np.uint8, separate_folder=False, print_log=False)(mask)
    expected = read_image(source)[0] > 99
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_m.png")), expected)
    saver = SaveImage(tmp_path, "t", ".png", np.uint8, separate_folder=False, print_log=False)
    saver.set_options(write_kwargs={"reverse_indexing": True})(mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_t.png")), expected.T)


def test_sentence_survives_monai(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    load = LoadImage(reader=RasterReader(), ensure_channel_first=True, image_only=True)
    with pytest.raises(Exception, match=r"bad\.png is an empty file") as caught:
        load(tmp_path / "bad.png")
    assert find_user_error(caught.value) is not None


def test_simpleitk_is_imported_only_when_needed():
    assert not hasattr(images_module, "sitk")
