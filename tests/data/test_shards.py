"""Shards: the format is webdataset's, and sample k is the same picture whoever asks."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandSpatialCropd

from medmdm.data import (
    LoadSliced,
    PadToSized,
    ScaleIntensityByDtyped,
    ShardDataset,
    select_shards,
    select_training_images,
    write_shards,
)  # fmt: skip
from medmdm.data.files.pictures import read_image
from medmdm.data.shard_files import index_path, read_index, shard_files
from medmdm.files import pixel_hash
from tests.bundle_runs import Workflow, saved_by
from tests.made import refused
from tests.written import picture

SIZE = (8, 12)


def transform() -> Compose:
    return Compose(
        [
            LoadSliced("image"),
            PadToSized("image", SIZE),
            RandSpatialCropd("image", roi_size=SIZE, random_size=False),
            ScaleIntensityByDtyped("image"),
        ]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 pictures of several sizes, each of one value that says which it is, with patients."""
    entries = []
    for number in range(23):
        name, shape = f"p{number:02d}.png", (10 + number % 3, 14 + number % 5)
        picture(tmp_path / "pictures" / name, np.full((*shape, 3), 10 * number + np.arange(3)))
        entries.append({"image": name, "patient_id": f"p{number // 2}", "spacing": 0.5})
    (tmp_path / "pictures" / "dataset.json").write_text(json.dumps({"name": "made", "training": entries}))
    return tmp_path / "pictures"


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> list[Path]:
    return write_shards(select_training_images(folder), tmp_path / "shards", per_shard=5)


def dataset(shards: list[Path], batch_size: int = 6, **arguments: Any) -> ShardDataset:
    held = select_shards([str(path) for path in shards], num_held_out=2, seed=arguments.get("seed", 0))
    return ShardDataset(held.training, transform(), batch_size=batch_size, **arguments)


def value(sample: dict[str, Any]) -> int:
    """Return which picture a crop is of."""
    return round((float(sample["image"][0].mean()) + 1) / 2 * 255 / 10)


def test_webdataset_reads_what_we_write(shards: list[Path], folder: Path) -> None:
    wds = pytest.importorskip("webdataset")
    found = {}
    for sample in wds.WebDataset([str(path) for path in shards], shardshuffle=False):
        found[sample["png"]] = json.loads(sample["json"])
    assert set(found) == {path.read_bytes() for path in folder.glob("*.png")}
    patients = {(folder / f"p{n:02d}.png").read_bytes(): f"p{n // 2}" for n in range(23)}
    assert {content: one["patient_id"] for content, one in found.items()} == patients
    assert all(one["spacing"] == [0.5, 0.5] for one in found.values())


def test_we_read_what_webdataset_writes(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "w.tar")) as sink:
        for path in sorted(folder.glob("*.png"))[:4]:
            label = b"a label that is no image"
            sink.write(
                {"__key__": f"sub/{path.stem}", "png": path.read_bytes(), "seg.png": label, "json": {"patient_id": 7}}
            )
    index = read_index(tmp_path / "w.tar")
    assert [one["name"] for one in index] == [f"sub/p{n:02d}.png" for n in range(4)]
    expected = [pixel_hash(read_image(folder / f"p{n:02d}.png")) for n in range(4)]
    assert [one["pixels_sha256"] for one in index] == expected
    assert {one["patient_id"] for one in index} == {7}


def test_the_same_pictures_are_the_same_bytes(shards: list[Path], folder: Path, tmp_path: Path) -> None:
    again = write_shards(select_training_images(folder), tmp_path / "again", per_shard=5)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]
    assert [len(read_index(path)) for path in shards] == [5, 5, 5, 4, 4]


def test_a_stream_shows_each_of_its_pictures_once_before_any_again(shards: list[Path]) -> None:
    made = dataset(shards, batch_size=6)
    assert made.streams == 3  # the largest divisor of 6 that 5 shards can serve
    seen: dict[int, list[tuple[int, int]]] = {stream: [] for stream in range(3)}
    for index in range(6 * 40):
        seen[index % 6 // 2].append(made.place(index))
    shards_of = [{shard for shard, _ in places} for places in seen.values()]
    assert sum(map(len, shards_of)) == 5  # no two streams read one shard
    assert set().union(*shards_of) == set(range(5))
    orders = []
    for places in seen.values():
        length = len(set(places))
        for first in range(0, len(places) - length, length):
            epoch = places[first : first + length]
            assert len(set(epoch)) == length
            orders.append([shard for n, (shard, _) in enumerate(epoch) if not n or epoch[n - 1][0] != shard])
            within = [[n for shard, n in epoch if shard == one] for one in orders[-1]]
            assert all(numbers == sorted(numbers) for numbers in within)  # the tar is read from its start to its end
    assert len({tuple(order) for order in orders if len(order) == 2}) > 2  # epochs differ
    assert len({place for places in seen.values() for place in places}) == 21  # two of 23 are held out


def test_sample_k_is_a_function_of_k(shards: list[Path]) -> None:
    one, other = dataset(shards), dataset(shards)
    expected = {index: one[index]["image"] for index in range(30)}
    for index in reversed(range(30)):
        assert torch.equal(other[index]["image"], expected[index])
    loader = torch.utils.data.DataLoader(other, batch_sampler=[[3, 29, 4], [17, 0, 1]], num_workers=2)
    first = [batch["image"][0] for batch in loader]
    assert torch.equal(first[0], expected[3])
    assert torch.equal(first[1], expected[17])
    assert any(not torch.equal(dataset(shards, seed=1)[k]["image"], expected[k]) for k in range(5))


def test_the_crop_is_of_the_picture_of_its_place(shards: list[Path]) -> None:
    made = dataset(shards)
    for index in range(25):
        shard, number = made.place(index)
        with tarfile.open(shards[shard]) as tar:
            file = tar.extractfile(made.images[shard][number]["name"])
            assert file is not None
            from PIL import Image

            pixel = np.asarray(Image.open(io.BytesIO(file.read())))[0, 0, 0]
        assert value(made[index]) == round(pixel / 10)


def test_what_is_held_out_does_not_train(shards: list[Path]) -> None:
    held = select_shards([str(path) for path in shards], num_held_out=2)
    hashes = {pixel_hash(read_image(entry["image"])) for entry in held.validation}
    made = ShardDataset(held.training, transform(), batch_size=5)
    assert len(hashes) == 2
    assert len(made.ledger) == made.num_images == 21
    assert not hashes & set(made.ledger)
    assert set(made.patient_ids) <= {f"p{n}" for n in range(12)}


def test_patterns(shards: list[Path], tmp_path: Path) -> None:
    names = f"{tmp_path}/shards/shard-{{000000..000004}}.tar"
    assert shard_files(names) == shard_files(f"{tmp_path}/shards/*.tar") == shards
    refused("shard-000005.tar does not exist", shard_files, names.replace("4}", "9}"))
    refused("is no file", shard_files, "https://host/{0..3}.tar")
    refused("names no shard", shard_files, str(tmp_path / "*.tar"))
    refused("num_held_out is -1: give 1 or more", select_shards, names, -1)


def test_a_shard_that_is_none(shards: list[Path], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    refused("is no uncompressed tar", read_index, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        tar.add(folder / "p00.png", "p00.png")
    refused("is no uncompressed tar", read_index, tmp_path / "b.tar.gz")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(folder / "dataset.json", "x.json")
    refused("holds no picture", read_index, tmp_path / "c.tar")
    (tmp_path / "d.png").write_bytes((folder / "p00.png").read_bytes()[:45])
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(tmp_path / "d.png", "d.png")
    refused(f"{tmp_path / 'd.tar'}: d.png", read_index, tmp_path / "d.tar")
    refused("holds shards: choose another folder", write_shards, select_training_images(folder), shards[0].parent)


def test_a_shard_that_has_changed_is_not_read_for_another(shards: list[Path]) -> None:
    made = dataset(shards)
    shard, number = made.place(0)
    place = made.images[shard][number]
    content = bytearray(shards[shard].read_bytes())
    content[place["offset"] + place["size"] // 2] ^= 1
    shards[shard].write_bytes(content)
    refused("is not what its index says", made.__getitem__, 0)


def test_a_damaged_index_is_made_again(shards: list[Path]) -> None:
    from medmdm.data import shard_files as module

    whole = index_path(shards[0]).read_bytes()
    index_path(shards[0]).write_bytes(whole[: len(whole) // 2])
    module._read_index.cache_clear()
    read_index(shards[0])
    assert index_path(shards[0]).read_bytes() == whole


def test_pictures_of_other_channels_are_refused(shards: list[Path]) -> None:
    refused("has 3 channels, but the network takes 1", dataset, shards, channels=1)


def test_a_pre_training_on_shards_goes_on_with_the_same_bits(
    workflow: Workflow, shards: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"dataset_dir": str(shards[0].parent / "shard-*.tar"), "run_dir": str(run)}
    whole = saved_by(workflow("shards", **settings))
    assert json.loads((run / "run.json").read_text())["data"]["images"] == 21
    assert len(whole["plan"]["ledger"]["images"]) == 21
    # As if it had been killed after four of six steps.
    (run / "model.pt").unlink()
    (run / "checkpoints" / "step_00000006.pt").unlink()
    again = saved_by(workflow("shards", **settings, num_workers=2))
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 2
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())
