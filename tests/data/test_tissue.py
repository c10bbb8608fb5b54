"""Crops of slides: on tissue and uniform over it, the same whoever asks, apart from what is held out, and few bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, RandSpatialCropd
from scipy.stats import chisquare

from medmdm.data import CropDataset, LoadSliced, ScaleIntensityByDtyped, StepSampler, hold_out, tile_slides
from medmdm.data.files.slides import Slide, slide_hash
from medmdm.data.selection import Selection, select_training_images, slice_volumes
from medmdm.data.tissue import Tissue
from medmdm.data.transforms.spatial import CutRegiond, PadToSized, ResampleToSpacingd
from medmdm.errors import UserError
from tests.made_slides import Paint, painted, tissue_everywhere, tissue_in, write_slide
from tests.written import picture

CROP = (48, 32)
SHAPE = (600, 900)


def corner(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Tissue in two rectangles of glass, one of them at the edge of the slide."""
    y, x = rows[:, None], columns
    inside = ((y < 200) & (x < 300)) | ((y >= 320) & (y < 560) & (x >= 480) & (x < 720))
    return np.where(inside[..., None], tissue_everywhere(rows, columns), np.uint8([244, 243, 245]))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*paints: Paint, shape: tuple[int, int] = SHAPE, kind: str = "plain") -> Path:
        root = tmp_path / "slides"
        root.mkdir(exist_ok=True)
        for i, paint in enumerate(paints):
            write_slide(root / f"s{i}.tif", shape, paint, kind)
        return root

    return make


def transform(spacing: float | None = None) -> Compose:
    """As the bundle has it."""
    return Compose([
        LoadSliced("image"), CutRegiond("image"), ResampleToSpacingd("image", spacing), PadToSized("image", CROP),
        RandSpatialCropd("image", CROP, random_size=False), RandFlipd("image", 0.5, 1),
        ScaleIntensityByDtyped("image"),
    ])  # fmt: skip


def tiled(folder: Path, data_list: Any = "none", **options: Any) -> Selection:
    return tile_slides(select_training_images(folder, data_list), CROP, progress=False, **options)


def test_crops_are_read_from_the_slide_where_they_were_drawn(folder) -> None:
    (entry,) = select_training_images(folder(corner), "none").training
    one = tiled(Path(entry["image"]).parent).training[0]["slide"]
    for i in range(20):
        row, column, height, width = tile = one.draw(np.random.default_rng(i))
        assert (height, width) == CROP
        expected = painted(SHAPE, corner)[:, row : row + height, column : column + width]
        np.testing.assert_array_equal(one.read(tile), expected)


def whole(folder: Path, crop: tuple[int, int] = CROP, mpp: tuple[float, float] = (0.5, 0.5)) -> Tissue:
    with Slide(folder / "s0.tif") as slide:
        return Tissue.of(slide, slide.tissue(8.0), mpp, crop, ((0, SHAPE[0]), (0, SHAPE[1])))


def test_centres_are_uniform_over_tissue(folder) -> None:
    one = whole(folder(corner), (1, 1))
    draws = np.array([one.draw(np.random.default_rng([7, i]))[:2] for i in range(4000)])
    truth = one.mask.repeat(16, 0).repeat(16, 1)[: SHAPE[0], : SHAPE[1]]
    assert np.mean([truth[min(r, 599), min(c, 899)] for r, c in draws]) > 0.98  # 600 is no multiple of the mask's 16
    first = (draws[:, 0] < 260) & (draws[:, 1] < 390)
    cells = [one.mask[:17, :25].sum(), one.mask[17:, 25:].sum()]
    assert sum(cells) == one.pixels
    expected = np.array(cells) / one.pixels * len(draws)
    assert chisquare([first.sum(), (~first).sum()], expected).pvalue > 1e-3
    # Within the rectangle that does not touch the slide's edge, four quarters alike.
    inner = draws[~first]
    middle = inner.mean(axis=0)
    quarters = np.histogram2d(*(inner > middle).T.astype(int), bins=2)[0].ravel()
    assert chisquare(quarters).pvalue > 1e-3


def test_crops_show_tissue_and_stay_in_the_slide(folder) -> None:
    one = whole(folder(corner))
    for i in range(200):
        row, column, height, width = one.draw(np.random.default_rng(i))
        assert 0 <= row <= SHAPE[0] - height
        assert 0 <= column <= SHAPE[1] - width
    found = [one.read(one.draw(np.random.default_rng(i))) for i in range(100)]
    assert np.mean([(crop < 230).mean() > 0.05 for crop in found]) > 0.95


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.8, 0.7), (1.0, 1.0), (3.0, 3.0)])
def test_a_region_keeps_crops_inside_at_every_resolution(folder, mpp: tuple[float, float]) -> None:
    with Slide(folder(tissue_everywhere) / "s0.tif") as slide:
        region = ((37, 291), (500, 893))
        one = Tissue.of(slide, slide.tissue(8.0), mpp, (20, 20), region)
        scale = SHAPE[0] / one.grid.height, SHAPE[1] / one.grid.width
        rows = [one.draw(np.random.default_rng(i)) for i in range(300)]
    for row, column, height, width in rows:
        assert region[0][0] <= row * scale[0]
        assert (row + height) * scale[0] <= region[0][1] + 1e-9
        assert region[1][0] <= column * scale[1]
        assert (column + width) * scale[1] <= region[1][1] + 1e-9


def test_samples_are_the_same_in_any_order_with_any_workers_and_after_resuming(folder) -> None:
    held = hold_out(tiled(folder(corner, tissue_everywhere), spacing=(0.001, 0.001)), CROP, spacing=(0.001, 0.001))
    dataset = CropDataset(held.training, transform(0.001), seed=3, progress=False)
    batches = {}
    for workers in (0, 2):
        sampler = StepSampler(5, 4)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
        batches[workers] = [torch.as_tensor(batch["image"]) for batch in loader]
    again = StepSampler(5, 4, start_step=3)
    resumed = [torch.as_tensor(batch["image"]) for batch in DataLoader(dataset, batch_sampler=again)]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches[0][3:], resumed, strict=True))
    assert len({tuple(image.flatten().tolist()) for batch in batches[0] for image in batch}) == 20
    other = CropDataset(held.training, transform(0.001), seed=3, cache_gib=0, progress=False)
    assert torch.equal(other[17]["image"], dataset[17]["image"])
    assert not dataset._cache
    assert not any("kept decoded" in sentence for sentence in dataset.sentences)


def test_pictures_give_the_samples_that_they_gave_before_there_were_slides(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png", shape=(60, 70, 3), seed=name)
    entries = [{"image": str(tmp_path / f"{name}.png")} for name in "ab"]
    dataset = CropDataset(entries, transform(), seed=5, progress=False)
    for index in (0, 9):
        choice, randomness = np.random.SeedSequence([5, index]).spawn(2)
        which = int(np.random.default_rng(choice).integers(2))
        steps = transform().set_random_state(state=np.random.RandomState(np.random.MT19937(randomness)))
        expected = torch.as_tensor(steps(entries[which])["image"]).float()
        assert torch.equal(dataset[index]["image"], expected)


def overlap(a: Any, b: Any) -> bool:
    return all(p < q + m and q < p + n for p, n, q, m in zip(a[:2], a[2:], b[:2], b[2:], strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_few_slides_hold_out_a_part_that_no_training_crop_touches(folder, count: int) -> None:
    selection = tiled(folder(*[tissue_in(*SHAPE)] * count))
    held = hold_out(selection, CROP, num_crops=4)
    assert not held.seen
    assert "of the tissue of a slide held out" in selection.sentences[-1]
    (part,) = selection.validation
    assert {one["image"] for one in held.crops} == {part["image"]}
    (rest,) = [one for one in held.training if one["image"] == part["image"]]
    share = part["slide"].pixels / (part["slide"].pixels + rest["slide"].pixels)
    assert 0.1 < share < 0.3
    drawn = [rest["slide"].draw(np.random.default_rng(i)) for i in range(400)]
    previews = [part["slide"].draw(np.random.default_rng(i)) for i in range(400)]
    assert not any(overlap(a, b) for a in drawn for b in previews)
    images = held.images(Compose([*transform().transforms[:4], ScaleIntensityByDtyped("image")]), 3)
    assert images.shape == (4, 3, *CROP)
    assert len(set(held.hashes())) == 4


def test_of_five_slides_some_are_held_out_whole_and_patients_stay_together(folder) -> None:
    root = folder(*[tissue_in(*SHAPE)] * 6)
    entries = [{"image": f"s{i}.tif", "patient_id": f"p{i // 2}"} for i in range(6)]
    few = tiled(root, {"name": "x", "training": entries})
    assert len(few.validation) == 1  # three patients: a part of a slide
    for i, entry in enumerate(entries):
        entry["patient_id"] = f"p{max(i - 1, 0)}"
    many = tiled(root, {"name": "x", "training": entries})
    assert {e["patient_id"] for e in many.training}.isdisjoint(e["patient_id"] for e in many.validation)
    assert len(many.training) + len(many.validation) == 6
    listed = tiled(root, {"name": "x", "training": entries[1:], "validation": entries[:1]})
    assert [Path(e["image"]).name for e in listed.validation] == ["s0.tif"]
    assert "held out" not in listed.sentences[-1]


def test_slides_and_pictures_train_together(folder, tmp_path: Path) -> None:
    root = folder(corner)
    picture(root / "p.png", shape=(70, 200, 3), seed="p")
    selection = slice_volumes(tiled(root), progress=False)
    held = hold_out(selection, CROP)
    assert {Path(one["image"]).name for one in held.crops} == {"p.png"}
    dataset = CropDataset(held.training, transform(), progress=False)
    assert len(dataset._cache) == 1
    assert dataset.sentences[0].startswith("1 of 1 image is kept")
    assert {dataset[i]["image"].shape for i in range(12)} == {(3, *CROP)}


def test_the_hash_is_of_size_ends_and_pixel_size(folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmdm.data.files.slides._HASHED_BYTES", 1 << 17)
    root = folder(tissue_everywhere, shape=(1500, 1400))
    path = root / "s0.tif"
    with Slide(path) as slide:
        before = slide_hash(path, slide)
    with Slide(path, 0.001) as slide:
        assert slide_hash(path, slide) != before
    copy = tmp_path / "elsewhere.tif"
    content = bytearray(path.read_bytes())
    assert len(content) > 2 * (1 << 17) + 100
    for at, same in ((len(content) // 2, True), (len(content) - 9, False), (999, False)):
        changed = content[:]
        changed[at] ^= 1
        copy.write_bytes(changed)
        with Slide(path) as slide:
            assert (slide_hash(copy, slide) == before) is same
    dataset = CropDataset(hold_out(tiled(root), CROP).training, transform(), progress=False)
    assert before in dataset.ledger


def test_percentiles_are_those_of_the_tissue_at_low_resolution(folder) -> None:
    root = folder(corner)
    (entry,) = tiled(root, percentiles=[1, 99]).training
    with Slide(root / "s0.tif") as slide:
        image, shown = slide.region(0, 0, 38, 56, 8.0), slide.tissue()
    expected = np.percentile(image[:, shown], [1, 99], axis=1).T
    np.testing.assert_allclose(entry["intensity_range"], expected)


def test_what_cannot_be_used_is_one_sentence(folder, tmp_path: Path) -> None:
    glass: Paint = lambda rows, columns: np.full((len(rows), len(columns), 3), 244, np.uint8)  # noqa: E731
    root = folder(glass)
    with pytest.raises(UserError, match=r"no tissue is found on .*s0\.tif\.$"):
        tiled(root)
    folder(glass, corner)
    found = tiled(root)
    assert any("s0.tif: it is left out" in warning for warning in found.warnings)
    assert {Path(e["image"]).name for e in (*found.training, *found.validation)} == {"s1.tif"}
    wide = {"name": "x", "training": [{"image": "s1.tif", "region": {"columns": [0, 901]}}]}
    with pytest.raises(UserError, match=r"has 900 columns, but its region asks for 0 to 901"):
        tiled(root, wide)
    with pytest.raises(UserError, match="is a slide and has no neighbouring slices"):
        LoadSliced("image", 1)(dict(found.training[0]))
    with pytest.raises(UserError, match="crops are read and never the whole"):
        LoadSliced("image")(dict(found.training[0]))


def test_a_list_gives_the_size_of_pixels_that_a_slide_does_not_state(tmp_path: Path) -> None:
    import tifffile

    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for step in (1, 2, 4):
            image = tissue_everywhere(np.arange(0, 400, step), np.arange(0, 500, step))
            file.write(image, tile=(64, 64), subfiletype=int(step > 1), metadata=None, photometric="rgb")
    with pytest.raises(UserError, match="does not say how large its pixels are"):
        tiled(tmp_path)
    data_list = {"name": "x", "magnification": 20, "training": [{"image": "s.tif"}]}
    (entry,) = tiled(tmp_path, data_list, spacing=(0.001, 0.001)).training
    assert entry["slide"].grid.mpp == (1.0, 1.0)
    assert entry["slide"].slide.mpp == (0.5, 0.5)


def test_a_slide_smaller_than_a_crop_is_padded(folder) -> None:
    held = hold_out(tiled(folder(tissue_everywhere, shape=(40, 300))), CROP)
    dataset = CropDataset(held.training, transform(), progress=False)
    assert dataset[0]["image"].shape == (3, *CROP)
