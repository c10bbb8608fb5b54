"""Sample k is a function of (seed, k) only, crops are uniform, and bad images are found at the start."""

import pickle

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, LoadImaged, RandSpatialCropd
from PIL import Image

from medmdm.data.dataset import CropDataset, StepSampler
from medmdm.data.files.pictures import RasterReader, read_image
from medmdm.data.holdout import hold_out
from medmdm.data.selection import select_training_images
from medmdm.errors import UserError
from medmdm.files import pixel_hash
from tests.made import refused
from tests.written import picture


@pytest.fixture
def entries(write_png):
    return [{"image": str(write_png(f"{i}.png", 20 + i, 30 + i))} for i in range(5)]


def make(data, transform, **arguments) -> CropDataset:
    return CropDataset(data, transform, **{"seed": 3, "num_threads": 1, "progress": False, **arguments})


def test_a_sample_is_what_the_contract_says(entries, pipeline):
    dataset = make(entries, pipeline(16), channels=3)
    sample = dataset[7]
    assert set(sample) == {"image", "index"}
    assert sample["index"] == 7
    assert type(sample["image"]) is torch.Tensor
    assert sample["image"].dtype == torch.float32
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].is_contiguous()
    assert -1 <= sample["image"].min() < sample["image"].max() <= 1
    assert dataset[2**31 - 2]["image"].shape == (3, 16, 16)
    for outside in (-1, 2**31 - 1):
        with pytest.raises(IndexError):
            dataset[outside]


def test_samples_depend_on_seed_and_number_only(entries, pipeline):
    dataset, again = make(entries, pipeline(16)), make(entries, pipeline(16), cache_gib=0)
    backwards = {k: again[k]["image"] for k in reversed(range(12))}
    for k in range(12):
        assert torch.equal(dataset[k]["image"], backwards[k])
    other = make(entries, pipeline(16), seed=4)
    assert not any(torch.equal(dataset[k]["image"], other[k]["image"]) for k in range(12))
    assert len({dataset[k]["image"].sum().item() for k in range(12)}) == 12


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_workers_and_processes_change_nothing(entries, pipeline, cache_gib):
    dataset = make(entries, pipeline(16), cache_gib=cache_gib)
    expected = [dataset[k]["image"] for k in range(16)]

    def batches(num_workers: int, **sampler) -> list[dict]:
        torch.manual_seed(num_workers)
        return list(DataLoader(dataset, num_workers=num_workers, batch_sampler=StepSampler(4, 4, **sampler)))

    for num_workers in (0, 2):
        loaded = batches(num_workers)
        assert [batch["index"].tolist() for batch in loaded] == [list(range(4 * s, 4 * s + 4)) for s in range(4)]
        for batch in loaded:
            for k, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                assert torch.equal(image, expected[k])
    assert torch.equal(batches(0, start_step=2, rank=1, world_size=2)[0]["image"][0], expected[10])


def test_it_pickles_for_spawned_workers(entries, pipeline):
    dataset = make(entries, pipeline(16))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5]["image"], dataset[5]["image"])
    assert copy.ledger == dataset.ledger


@pytest.mark.slow
def test_images_and_crops_are_uniform_and_reach_the_last_pixel(tmp_path, pipeline):
    """The pixel of the crop's corner tells which image it is and where the crop lies."""
    rows, columns, crop = 6, 7, 4
    for image in range(3):
        picture(tmp_path / f"{image}.png", (np.arange(rows * columns) + image * rows * columns).reshape(rows, columns))
    dataset = make([{"image": str(tmp_path / f"{i}.png")} for i in range(3)], pipeline(crop))
    places = (rows - crop + 1) * (columns - crop + 1)
    draws = 1500
    counts = np.zeros((3, rows - crop + 1, columns - crop + 1))
    flips = 0
    for k in range(draws):
        values = ((dataset[k]["image"][0] + 1) * 127.5).round().long()
        flipped = bool(values[0, 0] > values[0, -1])
        values = values.flip(1) if flipped else values
        image, corner = divmod(int(values[0, 0]), rows * columns)
        row, column = divmod(corner, columns)
        expected = corner + image * rows * columns + torch.arange(crop)[:, None] * columns + torch.arange(crop)
        assert torch.equal(values, expected)
        counts[image, row, column] += 1
        flips += flipped
    expected_count = draws / counts.size
    chi_squared = ((counts - expected_count) ** 2 / expected_count).sum()
    freedom = 3 * places - 1
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)
    assert counts.min() > 0
    assert abs(flips / draws - 0.5) < 5 * 0.5 / np.sqrt(draws)


def test_cache_budget_is_kept_and_said(entries, pipeline):
    sizes = [3 * (20 + i) * (30 + i) for i in range(5)]
    whole = make(entries, pipeline(16))
    assert whole.sentences == ["5 of 5 images are kept decoded in memory (0 MiB)"]
    some = make(entries, pipeline(16), cache_gib=(sizes[0] + sizes[1] + 10) / 2**30)
    assert some.sentences[0].startswith("2 of 5 images are kept decoded in memory")
    assert "raise cache_gib" in some.sentences[0]
    for k in range(20):
        assert torch.equal(some[k]["image"], whole[k]["image"])


def test_cache_is_not_changed_by_drawing(entries, pipeline):
    dataset = make(entries, pipeline(16))
    before = [dataset._cache[i]["image"].clone() for i in range(5)]
    for k in range(30):
        dataset[k]["image"].zero_()
    for i in range(5):
        assert torch.equal(dataset._cache[i]["image"], before[i])
        assert type(dataset._cache[i]["image"]) is torch.Tensor  # no metadata that could grow


@pytest.mark.parametrize("dtype_of_load", [None, np.float32])
def test_images_are_cached_in_the_files_own_type(tmp_path, rng, pipeline, dtype_of_load):
    array = rng.integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "deep.png"))
    picture(tmp_path / "bilevel.png", array[..., 0] > 30000)
    transform = pipeline(24)
    transform.transforms[0]._loader.dtype = dtype_of_load
    for name, dtype, channels in (("deep.png", torch.uint16, 3), ("bilevel.png", torch.bool, 1)):
        dataset = make([{"image": str(tmp_path / name)}], transform, channels=channels)
        assert dataset._cache[0]["image"].dtype == dtype
        assert dataset.ledger == [pixel_hash(read_image(tmp_path / name))]
    deep = make([{"image": str(tmp_path / "deep.png")}], pipeline((20, 24)))
    samples = [deep[k]["image"] for k in range(8)]
    expected = torch.from_numpy(array.astype(np.float32).transpose(2, 0, 1) / 32767.5 - 1)
    assert any(torch.allclose(sample, expected, atol=1e-6) for sample in samples)
    assert any(torch.allclose(sample.flip(2), expected, atol=1e-6) for sample in samples)


def test_small_images_are_padded(write_png, pipeline):
    data = [{"image": str(write_png("a.png", 1, 3))}, {"image": str(write_png("b.png", 50, 9))}]
    dataset = make(data, pipeline((16, 20)))
    assert all(dataset[k]["image"].shape == (3, 16, 20) for k in range(8))


def test_crops_stay_in_the_region(tmp_path, pipeline):
    array = np.zeros((30, 40), dtype=np.uint8)
    array[5:25, 10:30:2], array[5:25, 11:30:2] = 255, 254
    path = str(picture(tmp_path / "a.png", array))
    dataset = make([{"image": path, "region": {"rows": [5, 25], "columns": [10, 30]}}], pipeline(16))
    assert all((dataset[k]["image"] > 0.99).all() for k in range(20))
    whole = read_image(path)
    assert dataset.case_hashes == [pixel_hash(whole[:, 5:25, 10:30])]
    assert dataset.ledger == sorted([pixel_hash(whole), pixel_hash(whole[:, 5:25, 10:30])])


def test_ledger_is_of_pixels_not_of_files(write_png, tmp_path, pipeline):
    paths = [write_png(f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.open(path).save(tmp_path / f"{9 - i}.bmp")
    png = make([{"image": str(path), "patient_id": "p"} for path in paths], pipeline(16))
    bmp = make([{"image": str(tmp_path / f"{9 - i}.bmp")} for i in range(3)], pipeline(16))
    assert png.ledger == bmp.ledger
    assert png.data_hash == bmp.data_hash
    assert len(png.ledger) == 3
    assert png.patient_ids == ["p"]
    assert bmp.patient_ids == []
    assert make([{"image": str(path)} for path in paths[:2]], pipeline(16)).data_hash != png.data_hash
    twice = make([{"image": str(paths[0])}, {"image": str(tmp_path / "9.bmp")}], pipeline(16))
    assert "1 of 2 images are pixel-identical" in twice.sentences[1]


def test_channel_mismatch_names_the_file(write_png, pipeline):
    grey = [{"image": str(write_png(f"grey{i}.png", channels=1))} for i in range(2)]
    colour = [{"image": str(write_png(f"colour{i}.png"))} for i in range(3)]
    with pytest.raises(UserError, match=r"grey0\.png has 1 channel, but the network takes 3: pass --channels 1\.$"):
        make(grey, pipeline(16), channels=3)
    with pytest.raises(UserError, match=r"colour0\.png has 3 channels, but the network takes 1: pass --channels 3\.$"):
        make(colour, pipeline(16), channels=1)
    refused(r"grey0\.png has 1 channel, .* takes 3: 2 of 5 images differ from 3", make, colour + grey, pipeline(16))
    with pytest.raises(UserError, match=r"colour0\.png has 3 channels, .* takes 1: 3 of 5 images differ from 1"):
        make(grey + colour, pipeline(16), channels=1)
    assert make(grey, pipeline(16), channels=1)[0]["image"].shape == (1, 16, 16)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_bad_file_is_one_sentence_at_the_start(entries, pipeline, tmp_path, num_threads):
    (tmp_path / "bad.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"bad\.png is truncated or damaged"):
        make([*entries, {"image": str(tmp_path / "bad.png")}], pipeline(16), num_threads=num_threads)
    refused(r"gone\.png does not exist", make, [{"image": str(tmp_path / "gone.png")}], pipeline(16))


def test_float_images(tmp_path, pipeline, rng):
    array = rng.random((20, 20)).astype(np.float32)
    data = [{"image": str(picture(tmp_path / "f.tif", array))}]
    refused(r"f\.tif holds float32 values.*set intensity_range", make, data, pipeline(16))
    assert make(data, pipeline(16, (0, 1)))[0]["image"].dtype == torch.float32
    array[19, 19] = np.nan
    picture(tmp_path / "f.tif", array)
    refused(r"f\.tif holds values that are not finite", make, data, pipeline(16, (0, 1)))


def test_a_constant_image_among_others_is_fine(write_png, tmp_path, pipeline, caplog):
    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "white.png")
    white, other = {"image": str(tmp_path / "white.png")}, {"image": str(write_png("other.png"))}
    dataset = make([white, other], pipeline(16))
    assert any((dataset[k]["image"] == 1).all() for k in range(20))
    assert "1 of 2 images have one value everywhere once they are scaled (first: " in caplog.text
    refused("there is nothing to learn", make, [white], pipeline(16))


def test_wrong_pipelines_are_said(entries, write_png):
    load = LoadImaged("image", reader=RasterReader(), ensure_channel_first=True, dtype=None)
    crop = RandSpatialCropd("image", (25, 25))
    refused(r"gives values outside \[-1, 1\]: end the transforms with Scale", make, entries, [load, crop])
    refused("comes before the one that loads", make, entries, [crop, load])
    with pytest.raises(UserError, match=r"1\.png gives crops of \(21, 25\) but .*0\.png of \(20, 25\): put PadToSized"):
        make(entries, Compose([load, crop, lambda d: {"image": d["image"].float() / 255}]))
    with pytest.raises(RuntimeError, match=r"a transform failed on .*0\.png"):
        make(entries, Compose([load, lambda d: d["missing"]]))


@pytest.mark.parametrize(
    ("arguments", "sentence"), [({"seed": -1}, "seed is -1"), ({"cache_gib": -1}, "cache_gib is -1")]
)
def test_wrong_numbers(entries, pipeline, arguments, sentence):
    refused(sentence, make, entries, pipeline(16), **arguments)
    refused("there is no image to train on", make, [], pipeline(16))


def test_metadata_reaches_random_transforms(entries, pipeline):
    transform = pipeline(16)
    seen = []

    def look(item):
        assert isinstance(item["image"], MetaTensor)
        seen.append(item["image"].meta["filename_or_obj"])
        return item

    transform.transforms = (*transform.transforms, look)
    dataset = make(entries, transform)
    assert seen == [entry["image"] for entry in entries]
    dataset[0]
    assert seen[-1] in seen[:-1]


def test_real_glas_ledger_holds_no_mask_and_no_test_image(real_data, pipeline):
    folder = real_data("glas")
    dataset = make(hold_out(select_training_images(folder), 256).training, pipeline(256), channels=3, num_threads=2)
    training = {pixel_hash(read_image(folder / f"train_{i}.bmp")) for i in range(1, 86)}
    assert len(training) == 85
    assert set(dataset.ledger) == training
    others = [path for path in folder.glob("*.bmp") if "anno" in path.stem or path.stem.startswith("test")]
    assert len(others) == 125
    assert not training & {pixel_hash(read_image(path)) for path in others}
    assert dataset[0]["image"].shape == (3, 256, 256)


def test_real_monuseg_and_dsb(real_data, pipeline):
    for name, count in (("monuseg", 30), ("dsb2018", 40)):
        dataset = make(select_training_images(real_data(name)).training, pipeline(256), channels=3, num_threads=2)
        assert len(dataset.case_hashes) == count
        assert dataset[0]["image"].shape == (3, 256, 256)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 6), st.integers(0, 8))
def test_ranks_share_each_batch_and_resuming_continues_it(world_size, share, steps, start):
    batch_size = world_size * share
    whole = list(StepSampler(steps, batch_size))
    assert whole == [list(range(s * batch_size, (s + 1) * batch_size)) for s in range(steps)]
    ranks = [list(StepSampler(steps, batch_size, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [[k for rank in ranks for k in rank[s]] for s in range(steps)] == whole
    resumed = StepSampler(steps, batch_size)
    resumed.start_step = start
    assert list(resumed) == whole[start:]
    assert len(resumed) == len(whole[start:])


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"batch_size": 5, "world_size": 2}, "batch_size 5 cannot be shared equally by 2 processes"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 4, "num_steps": -1}, "num_steps is -1"),
    ({"batch_size": 4, "start_step": -1}, "start_step is -1"),
    ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank is 2"),
])  # fmt: skip
def test_wrong_numbers_of_batches(arguments, sentence):
    refused(sentence, StepSampler, **{"num_steps": 3, **arguments})
