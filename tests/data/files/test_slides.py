"""Slides: any part at any resolution is what the whole has there; tissue is found; what is not known is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch.nn.functional import interpolate

from medmdm.data.files.slides import Slide, is_slide
from tests.made import refused
from tests.made_slides import painted, tissue_in, write_slide

SHAPE = 611, 903


def whole() -> np.ndarray:
    return painted(SHAPE)


@pytest.mark.parametrize("kind", ["ome", "plain"])
def test_a_level_is_read_to_the_bit(kind: str, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", SHAPE, kind=kind)
    with Slide(path) as slide:
        assert [(one.height, one.width) for one in slide.levels] == [(611, 903), (306, 452), (153, 226)]
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert np.array_equal(slide.region(0, 0, *SHAPE, mpp=0.5), whole())
        assert np.array_equal(slide.region(250, 500, 300, 403, mpp=0.5), whole()[:, 250:550, 500:903])
        assert np.array_equal(slide.region(7, 11, 290, 400, mpp=1.0), whole()[:, 14:594:2, 22:822:2])
        assert slide.level_for(0.5) == slide.level_for(0.9) == slide.level_for(0.1) == 0
        assert slide.level_for(1.0) == slide.level_for(0.995) == slide.level_for(1.9) == 1
        assert slide.level_for(50) == 2


def test_openslide_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    path = write_slide(tmp_path / "slide.svs", SHAPE, kind="aperio", mpp=0.499)
    with Slide(path) as slide:
        assert slide.mpp == pytest.approx((0.499, 0.499))
        assert len(slide.levels) == 3
        part = slide.region(100, 200, 256, 300, mpp=0.499)
    difference = np.abs(part.astype(int) - whole()[:, 100:356, 200:500])
    assert difference.mean() < 6  # JPEG's


@pytest.mark.parametrize("mpp", [0.7, 1.37, 3.0, 0.31, (0.9, 1.7)])
def test_what_lies_between_levels_is_filtered_as_pictures_are(mpp: float, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.ome.tif", SHAPE, levels=1)
    with Slide(path) as slide:
        grid = slide.grid(mpp)
        full = slide.region(0, 0, grid.height, grid.width, mpp)
        oracle = interpolate(
            torch.from_numpy(whole()).float()[None], (grid.height, grid.width), mode="bilinear", antialias=True
        )[0].numpy()
        assert np.abs(full - oracle).max() <= 0.51  # rounding, in single precision
        row, column = grid.height // 3, grid.width // 4
        part = slide.region(row, column, grid.height // 2, grid.width // 2, mpp)
        assert np.array_equal(part, full[:, row : row + grid.height // 2, column : column + grid.width // 2])


def test_large_parts_are_made_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "slide.ome.tif", SHAPE, levels=1)
    with Slide(path) as slide:
        grid = slide.grid(2.3)
        assert slide.grid(np.float64(2.3)) == slide.grid(np.array(2.3)) == slide.grid([2.3]) == grid
        full = slide.region(0, 0, grid.height, grid.width, 2.3)
        monkeypatch.setattr("medmdm.data.files.slides._CHUNK", 100)
        assert np.array_equal(slide.region(0, 0, grid.height, grid.width, 2.3), full)


@pytest.mark.slow
def test_tissue(tmp_path: Path) -> None:
    shape = 3000, 4100
    path = write_slide(tmp_path / "slide.ome.tif", shape, tissue_in(*shape, 0.3), levels=4)
    with Slide(path) as slide:
        mask = slide.tissue()
        assert mask.shape == (slide.grid(8.0).height, slide.grid(8.0).width)
        truth = (painted(shape, tissue_in(*shape, 0.3)) < 240).any(axis=0)
        assert mask.mean() == pytest.approx(truth.mean(), rel=0.05)
        at = np.argwhere(mask).mean(axis=0) / mask.shape
        assert at == pytest.approx([0.55, 0.4], abs=0.01)  # rows are rows
    everywhere = write_slide(tmp_path / "all.ome.tif", SHAPE)
    assert Slide(everywhere).tissue().all()
    nowhere = write_slide(tmp_path / "none.ome.tif", SHAPE, lambda r, c: np.full((len(r), len(c), 3), 243, np.uint8))
    assert not Slide(nowhere).tissue().any()


def test_other_processes_open_it_for_themselves(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.ome.tif", SHAPE)
    slide = pickle.loads(pickle.dumps(Slide(path)))
    assert np.array_equal(slide.region(0, 0, 9, 9, 0.5), whole()[:, :9, :9])


def test_grey_and_transparent_slides(tmp_path: Path) -> None:
    grey, clear = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60), np.zeros((40, 60, 4), np.uint8)
    clear[:, 30:] = 10, 20, 30, 255
    for name, array in (("grey", grey), ("clear", clear)):
        kind = (
            {"photometric": "minisblack"} if name == "grey" else {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        )
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(array, tile=(16, 16), compression="adobe_deflate", metadata=None, **kind)
            file.write(
                array[::2, ::2], tile=(16, 16), compression="adobe_deflate", subfiletype=1, metadata=None, **kind
            )
    assert np.array_equal(Slide(tmp_path / "grey.tif", 0.001).region(3, 5, 30, 40, 1.0), [grey[3:33, 5:45]] * 3)
    part = Slide(tmp_path / "clear.tif", 0.001).region(0, 0, 40, 60, 1.0)
    assert (part[:, :, :30] == 255).all()
    assert part[:, 7, 40].tolist() == [10, 20, 30]


def test_what_is_a_slide(tmp_path: Path) -> None:
    assert is_slide("case.SVS")
    assert is_slide("case.mrxs")
    assert not is_slide("case.png")
    assert is_slide(write_slide(tmp_path / "a.tif", SHAPE, kind="plain"))
    tifffile.imwrite(tmp_path / "b.tif", whole()[0])
    (tmp_path / "c.tif").write_bytes(b"nothing")
    assert not is_slide(tmp_path / "b.tif")
    assert not is_slide(tmp_path / "c.tif")
    assert not is_slide(tmp_path)
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 8), np.uint8))
    assert not is_slide(tmp_path / "stack.tif")


def test_refused(tmp_path: Path) -> None:
    refused("does not exist", Slide, tmp_path / "none.svs")
    (tmp_path / "bad.svs").write_bytes(b"nothing")
    refused("bad.svs is no slide", Slide, tmp_path / "bad.svs")
    with tifffile.TiffWriter(tmp_path / "sizeless.tif") as file:
        for step in (1, 2):
            file.write(np.zeros((64 // step, 64 // step, 3), np.uint8), tile=(16, 16), photometric="rgb", metadata=None)
    refused("does not say how large its pixels are", Slide, tmp_path / "sizeless.tif")
    assert Slide(tmp_path / "sizeless.tif", (0.001, 0.002)).mpp == pytest.approx((1.0, 2.0))
    refused("above 0", Slide, tmp_path / "sizeless.tif", 0)
    slide = Slide(write_slide(tmp_path / "a.ome.tif", SHAPE))
    refused("no part of 20 x 20 at 600, 0", slide.region, 600, 0, 20, 20, 0.5)
    refused("above 0", slide.region, 0, 0, 20, 20, 0)
    with tifffile.TiffWriter(tmp_path / "deep.tif") as file:
        for step in (1, 2):
            file.write(
                np.zeros((64 // step, 64 // step, 3), np.uint16), tile=(16, 16), photometric="rgb", metadata=None
            )
    with tifffile.TiffWriter(tmp_path / "channels.ome.tif") as file:
        channels = {"tile": (16, 16), "photometric": "minisblack"}
        file.write(np.zeros((3, 64, 64), np.uint8), subifds=1, metadata={"axes": "CYX"}, **channels)
        file.write(np.zeros((3, 32, 32), np.uint8), subfiletype=1, **channels)
    refused("of 3 pages, channels or planes", Slide, tmp_path / "channels.ome.tif", 0.001)
    refused("3 x 16 bits", Slide, tmp_path / "deep.tif", 0.001)


def test_a_damaged_tile_is_told(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[1]
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\0" * 50)
    slide = Slide(path)
    slide.region(0, 0, 256, 256, 0.5)
    refused("a.ome.tif is truncated or damaged", slide.region, 0, 256, 256, 256, 0.5)
