"""A slide gives, tile by tile, what the same picture gives; what has no tissue is skipped; results open elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from medmdm.data.pyramid_writer import halved, new_array, open_store
from medmdm.data.reading import CaseReader
from medmdm.data.selection import Selection
from medmdm.data.writers import encode_picture
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading
from medmdm.segment.evaluation import Outputs
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import PostProcess
from medmdm.segment.slides import segment_slide
from tests.bundle_runs import Run
from tests.made import refused
from tests.made_slides import painted, tissue_in, write_slide
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

pytest.importorskip("zarr")
SHAPE = 310, 437


class Dark(nn.Module):
    """Two classes by brightness, blurred, so that windows and their blending matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.SiLU(), nn.Conv2d(6, 2, 3, padding=1))
        self.read = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.read += len(image)
        bright = avg_pool2d(image.mean(1, keepdim=True), 5, 1, 2)
        return torch.cat([4 * bright, -4 * bright], 1) + self.net(image) / 2


def reader(spacing: list[float] | None = None, **plan: Any) -> CaseReader:
    selection = Selection(Path(), None, (), (), (), (), ())
    return CaseReader(selection, {"spacing": spacing, "channels": 3, **plan})


def segmented(
    path: Path, out: Path, postprocess: PostProcess | None = None, model: nn.Module | None = None, **how: Any
) -> Any:
    predictor = Predictor(model or Dark(), how.pop("reading", Reading((64, 64), overlap=0.25)))
    outputs = Outputs(out, probabilities=how.pop("probabilities", True), uncertainty=False)
    entry = {"case": "a", "image": str(path)}
    return segment_slide(entry, how.pop("reader", reader()), predictor, postprocess or PostProcess(), outputs)


@pytest.mark.parametrize("kind", ["ome", "plain"])
@pytest.mark.parametrize(
    "postprocess", [PostProcess(), PostProcess(threshold=0.7, remove_small_objects=30, fill_holes_below=25)]
)
@pytest.mark.slow
def test_it_is_what_the_picture_gives(
    kind: str, postprocess: PostProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(encode_picture(painted(SHAPE), ".png"))
    case = reader().read({"case": "a", "image": str(picture)})
    expected = make_masks(case, Predictor(Dark(), Reading((64, 64), overlap=0.25)), postprocess, keep=True)
    monkeypatch.setattr("medmdm.data.pyramid_writer._BLOCK", 128)  # so that there are several parts
    monkeypatch.setattr(Predictor.parts, "__defaults__", (100,))
    made = segmented(write_slide(tmp_path / "a.ome.tif", SHAPE, kind=kind), tmp_path, postprocess)
    assert made.facts["tissue"] == 1.0
    mask = tifffile.imread(tmp_path / "predictions" / "a.ome.tif")
    np.testing.assert_array_equal(mask, expected.mask)
    assert 0.05 < mask.mean() < 0.95
    shares = tifffile.imread(tmp_path / "predictions" / "a_probabilities.ome.tif")
    np.testing.assert_allclose(shares, expected.probabilities, atol=1e-6)
    assert not (tmp_path / "predictions" / ".slide_scratch").exists()


@pytest.mark.slow
def test_windows_without_tissue_are_not_read(tmp_path: Path) -> None:
    shape = 1200, 1900
    path = write_slide(tmp_path / "a.ome.tif", shape, tissue_in(*shape, 0.2))
    model = Dark()
    with torch.no_grad():
        model.net[2].bias[1] = 30  # all that is read becomes class 1
    segmented(path, tmp_path, model=model)
    mask = tifffile.imread(tmp_path / "predictions" / "a.ome.tif")
    tissue = (painted(shape, tissue_in(*shape, 0.2)) < 240).any(axis=0)
    assert mask[tissue].all()  # nothing with tissue was skipped
    assert tissue.mean() < mask.mean() < 2 * tissue.mean()
    assert model.read < 0.5 * (1200 / 48) * (1900 / 48)
    shares = tifffile.imread(tmp_path / "predictions" / "a_probabilities.ome.tif")
    np.testing.assert_array_equal(shares[:, mask == 0].T, np.broadcast_to([1, 0], ((mask == 0).sum(), 2)))


def test_a_slide_without_tissue_is_background(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE, lambda r, c: np.full((len(r), len(c), 3), 243, np.uint8))
    made = segmented(path, tmp_path)
    assert not tifffile.imread(tmp_path / "predictions" / "a.ome.tif").any()
    assert made.facts["tissue"] == 0


def test_the_level_is_chosen_by_the_spacing_of_the_plan(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", (640, 896), mpp=0.25)
    made = segmented(path, tmp_path, reader=reader([0.0005, 0.0005]))
    assert (made.facts["level"], made.facts["size"]) == (1, [320, 448])
    with tifffile.TiffFile(tmp_path / "predictions" / "a.ome.tif") as file:
        assert file.pages[0].shape == (320, 448)
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
        assert 'PhysicalSizeYUnit="µm"' in file.ome_metadata
    made = segmented(path, tmp_path, reader=reader([0.001, 0.0008]))
    assert (made.facts["level"], made.facts["size"]) == (1, [160, 280])


@pytest.mark.slow
def test_results_are_pyramids_and_the_same_bytes_again(tmp_path: Path) -> None:
    shape = 1100, 2300
    path = write_slide(tmp_path / "a.ome.tif", shape)
    large = Reading((256, 256), overlap=0.25)
    segmented(path, tmp_path, reading=large)
    written = {file.name: file.read_bytes() for file in (tmp_path / "predictions").glob("*.tif")}
    for name in written:
        with tifffile.TiffFile(tmp_path / "predictions" / name) as file:
            (series,) = file.series
            fine, *coarser = [level.asarray() for level in series.levels]
            assert [level.shape[-2:] for level in series.levels] == [(1100, 2300), (550, 1150), (275, 575)]
            assert file.pages[0].is_tiled
            if fine.ndim == 2:
                np.testing.assert_array_equal(coarser[0], fine[::2, ::2])
            else:
                means = fine.reshape(2, 550, 2, 1150, 2).mean(axis=(2, 4))
                np.testing.assert_allclose(coarser[0], means, atol=1e-6)
    left = tmp_path / "predictions" / ".slide_scratch" / "mask"
    left.mkdir(parents=True)
    (left / "zarr.json").write_text("left by a killed run")
    segmented(path, tmp_path, reading=large)
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "predictions").glob("*.tif")}
    assert not left.parent.exists()


def test_halves_of_odd_sizes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    array = new_array(store, "a", (3, 1031, 77), "float32", 0)
    values = np.random.default_rng(0).random((3, 1031, 77), np.float32)
    array[:] = values
    _, half = halved(store, "a", array)
    assert half.shape == (3, 516, 39)
    padded = np.pad(values, [(0, 0), (0, 1), (0, 1)], mode="edge")
    np.testing.assert_allclose(half[:], padded.reshape(3, 516, 2, 39, 2).mean(axis=(2, 4)), atol=1e-6)


@pytest.mark.slow
def test_percentiles_are_those_of_the_tissue(tmp_path: Path) -> None:
    shape = 1200, 1900
    path = write_slide(tmp_path / "a.ome.tif", shape, tissue_in(*shape, 0.2))
    own = reader(percentiles={"lower": 1, "upper": 99, "nonzero": False})
    made = segmented(path, tmp_path, reader=own)
    assert made.facts["intensities"] == "percentiles 1 and 99 of its tissue at low resolution"
    assert made.tissue.examples[0].image.shape[0] == 3


def test_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", SHAPE)
    refused("reads pictures whole", segmented, path, tmp_path, reading=Reading((64, 64), whole=True))
    refused(
        "310 x 437 pixels .* less than its window of 512 x 64", segmented, path, tmp_path, reading=Reading((512, 64))
    )
    refused("3 channels, but the backbone takes 1", segmented, path, tmp_path, reader=reader(channels=1))
    refused("only medmdm's own PostProcess", segmented, path, tmp_path, lambda scores, spacing: {})
    refused("largest parts are not looked for: set", segmented, path, tmp_path, PostProcess(keep_largest=True))
    entry = {"case": "a", "image": str(path), "region": {"rows": [0, 100]}}
    made = Predictor(Dark(), Reading((64, 64)))
    refused("names a region", segment_slide, entry, reader(), made, PostProcess(), Outputs(tmp_path))


def test_the_bundle(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "first.ome.tif", (400, 600), tissue_in(400, 600, 0.4))
    pytest.importorskip("openslide")
    write_slide(folder / "second.svs", (300, 500), kind="aperio")
    out = tmp_path / "out"
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(out), "dataset_dir": str(folder)}
    run("mdm_infer", **settings, write_probabilities=True)
    assert tifffile.imread(out / "predictions" / "first.ome.tif").shape == (400, 600)
    assert tifffile.imread(out / "predictions" / "second_probabilities.ome.tif").shape == (2, 300, 500)
    first, second = json.loads((out / "run.json").read_text())["images"]
    assert first["slide"]["level"] == second["slide"]["level"] == 0
    assert first["slide"]["tissue"] < 0.7
    assert set(second["files"]) >= {"predictions/*.ome.tif", "predictions/*_probabilities.ome.tif", "overlays/*.png"}
    assert (out / "overlays" / "second.png").is_file()
