"""Preview crops are fixed, and unseen in training wherever that is possible."""

import json

import numpy as np
import torch

from medmdm.data.dataset import CropDataset
from medmdm.data.files.pictures import read_image
from medmdm.data.holdout import hold_out
from medmdm.data.lists import regions_overlap
from medmdm.data.selection import select_training_images
from medmdm.files import pixel_hash
from tests.made import refused
from tests.written import picture


def inside(crop: dict, region: dict) -> bool:
    return all(region[k][0] <= crop[k][0] < crop[k][1] <= region[k][1] for k in ("rows", "columns"))


def all_different(images: torch.Tensor) -> bool:
    return len({image.numpy().tobytes() for image in images}) == len(images)


def test_from_validation_images(write_png, tmp_path):
    for name in "abcd":
        write_png(f"{name}.png", 40, 70)
    content = {"training": ["a.png"], "validation": ["b.png", {"image": "c.png", "region": {"columns": [30, 70]}}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    selection = select_training_images(tmp_path)
    held_out = hold_out(selection, (16, 20), num_crops=6)
    assert held_out.training == selection.training
    assert not held_out.seen
    assert "validation images, not seen" in held_out.sentence
    images = held_out.images(channels=3)
    assert images.shape == (6, 3, 16, 20)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert all_different(images)
    assert sorted([crop["image"][-5:] for crop in held_out.crops]) == ["b.png"] * 3 + ["c.png"] * 3
    assert all(crop["region"]["columns"][0] >= 30 for crop in held_out.crops if crop["image"].endswith("c.png"))
    first = held_out.crops[0]
    rows, columns = first["region"]["rows"], first["region"]["columns"]
    expected = read_image(first["image"])[:, rows[0] : rows[1], columns[0] : columns[1]].astype(np.float32) / 127.5 - 1
    torch.testing.assert_close(images[0], torch.from_numpy(expected))


def test_crops_of_one_region_do_not_overlap_while_there_is_room():
    held_out = hold_out(select_training_images("demo"), 128, num_crops=4)
    assert len(held_out.crops) == 4
    regions = [crop["region"] for crop in held_out.crops]
    assert not any(regions_overlap(a, b) for i, a in enumerate(regions) for b in regions[:i])
    assert all(inside(region, {"rows": [0, 512], "columns": [384, 512]}) for region in regions)
    assert all_different(hold_out(select_training_images("demo"), 64, num_crops=16).images())
    assert hold_out(select_training_images("demo"), 128, num_crops=16).images().shape == (16, 3, 128, 128)


def test_strips_leave_training(write_png, tmp_path, pipeline):
    for i in range(5):
        write_png(f"wide{i}.png", 30, 45)
    write_png("tall.png", 50, 20)
    write_png("small.png", 20, 20)
    selection = select_training_images(tmp_path)
    held_out = hold_out(selection, 16, num_crops=16, seed=1)
    assert not held_out.seen
    assert "of strips at the edge of 6 of 7 images" in held_out.sentence
    assert [e["image"] for e in held_out.training] == [e["image"] for e in selection.training]
    remaining = {e["image"]: e.get("region") for e in held_out.training}
    for crop in held_out.crops:
        assert not regions_overlap(crop["region"], remaining[crop["image"]])
    assert remaining[str(tmp_path / "wide0.png")] == {"rows": [0, 30], "columns": [0, 29]}
    assert remaining[str(tmp_path / "tall.png")] == {"rows": [0, 34], "columns": [0, 20]}
    assert remaining[str(tmp_path / "small.png")] is None
    dataset = CropDataset(held_out.training, pipeline(16), progress=False)
    # The images still count as seen as a whole.
    assert dataset.ledger == sorted(pixel_hash(read_image(e["image"])) for e in selection.training)


def test_no_training_crop_touches_a_strip(tmp_path, pipeline):
    array = np.zeros((20, 60), dtype=np.uint8)
    array[:, :44:2], array[:, 44:] = 1, 255
    picture(tmp_path / "a.png", array)
    held_out = hold_out(select_training_images(tmp_path), 16, num_crops=2)
    dataset = CropDataset(held_out.training, pipeline(16), progress=False)
    assert all((dataset[k]["image"] < -0.99).all() for k in range(50))
    assert (held_out.images() == 1).all()


def test_strips_are_chosen_by_seed(write_png, tmp_path):
    for i in range(8):
        write_png(f"{i}.png", 20, 40)
    selection = select_training_images(tmp_path)
    draws = [hold_out(selection, 16, num_crops=2, seed=seed) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({str(draw.crops) for draw in draws}) > 1
    assert all(sum("case_region" in e for e in draw.training) == 2 for draw in draws)


def test_small_images_give_crops_that_are_seen(write_png, tmp_path):
    for i in range(6):
        write_png(f"{i}.png", 20, 10 + i)
    held_out = hold_out(select_training_images(tmp_path), 16)
    assert held_out.seen
    assert "are seen in training" in held_out.sentence
    assert held_out.training == select_training_images(tmp_path).training
    assert held_out.images().shape == (4, 3, 16, 16)


def test_strip_that_another_entry_trains_on_is_not_held_out(write_png, tmp_path):
    write_png("a.png", 40, 80)
    parts = [{"image": "a.png", "region": {"columns": [0, 50]}}, {"image": "a.png", "region": {"columns": [20, 80]}}]
    held_out = hold_out(select_training_images(tmp_path, {"training": parts}), 16, num_crops=2)
    for crop in held_out.crops:
        assert not any(regions_overlap(crop["region"], entry.get("region")) for entry in held_out.training)
    whole = [{"image": "a.png", "region": {"columns": [0, 50]}}, {"image": "a.png"}]
    held_out = hold_out(select_training_images(tmp_path, {"training": whole}), 16, num_crops=2)
    for crop in held_out.crops:
        assert not any(regions_overlap(crop["region"], entry.get("region")) for entry in held_out.training)


def test_own_transforms_and_mistakes(write_png, tmp_path):
    write_png("a.png", 20, 40)
    selection = select_training_images(tmp_path)
    held_out = hold_out(selection, 16, num_crops=1)
    own = held_out.images(lambda entry: {"image": torch.zeros(1, 2, 2, dtype=torch.float64)})
    assert own.shape == (1, 1, 2, 2)
    assert own.dtype == torch.float32
    refused(r"a\.png has 3 channels, but 1 are expected", held_out.images, channels=1)
    for number in (0, 17):
        refused(f"preview crops is {number}: give 1 to 16", hold_out, selection, 16, num_crops=number)
    for crop_size in (0, [16], [16, 0], [16.5, 16]):
        refused(r"crop_size is .*: give rows and columns", hold_out, selection, crop_size)
    (tmp_path / "a.png").write_bytes(b"")
    refused(r"a\.png is an empty file", hold_out, selection, 16)
    refused(r"a\.png is an empty file", held_out.images)


def test_region_outside_the_image(write_png, tmp_path):
    write_png("a.png", 20, 40)
    data_list = {"training": [{"image": "a.png", "region": {"columns": [0, 41]}}]}
    refused(r"a\.png is 20x40 pixels .* ends at 20x41", hold_out, select_training_images(tmp_path, data_list), 16)
