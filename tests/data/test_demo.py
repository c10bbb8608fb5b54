"""The built-in labels: sensible, always the same, and none of the test seen in pre-training."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medmdm.data.demo as demo_module
from medmdm.data.cases import select_cases
from medmdm.data.demo import SILVER_STANDARD, demo_labels, stained_tissue
from medmdm.data.files.pictures import read_image
from medmdm.data.folders import find_data_list
from medmdm.data.selection import select_training_images
from tests.data.chain import chain
from tests.made import refused


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def pixels(entries) -> np.ndarray:
    """How many of ``entries`` each pixel of the picture is in."""
    count = np.zeros((512, 512), int)
    for entry in entries:
        (first, end), (left, right) = entry["region"]["rows"], entry["region"]["columns"]
        count[first:end, left:right] += 1
    return count


def test_pre_training_has_not_seen_the_test():
    cases, seen = select_cases("demo"), select_training_images("demo")
    trained, tested = pixels(seen.training), pixels(cases.test)
    assert (trained[:, :384] == 1).all()
    assert not trained[:, 384:].any()
    assert (tested == 1 - trained).all()
    learnt = pixels((*cases.training, *cases.validation))
    assert learnt.max() == 1
    assert not (learnt * tested).any()


def test_cases():
    cases = select_cases("demo")
    assert (len(cases.training), len(cases.validation), len(cases.test)) == (6, 2, 4)
    assert (cases.class_names, cases.label_type) == (("background", "epithelium"), "classes")
    assert SILVER_STANDARD in cases.sentences
    assert "silver standard" in cases.data_list.information["description"]
    transform = chain(cases)
    for entry in (*cases.training, *cases.validation, *cases.test):
        sample = transform(entry)
        share = sample["label"].float().mean().item()
        assert sample["image"].shape[1:] == sample["label"].shape[1:]
        assert min(sample["label"].shape[1:]) >= 80
        assert all(size % 16 == 0 for size in sample["label"].shape[1:])
        assert 0.05 < share < 0.97  # each shows both classes


def test_labels_are_where_the_brown_is():
    """Brown is red without blue, whatever deconvolution says: a rule of another kind agrees on nearly all pixels."""
    label = read_image(demo_labels() / "ihc_epithelium.png")[0].astype(bool)
    image = read_image(select_training_images("demo").training[0]["image"]).astype(float)
    brown = image[0] - image[2]
    size = 15
    padded = np.pad(brown, size // 2, mode="edge")
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).mean(axis=(2, 3))
    rule = blurred > (blurred[label].mean() + blurred[~label].mean()) / 2
    assert (rule == label).mean() > 0.95
    assert 0.5 < label.mean() < 0.65


def test_a_stained_disc_is_found_with_its_nuclei():
    rows, columns = np.mgrid[:160, :200]
    distance = np.hypot(rows - 70, columns - 110)
    image = np.full((160, 200, 3), 235, np.uint8)
    image[distance < 50] = (150, 100, 60)
    nuclei = (rows % 24 < 10) & (columns % 24 < 10)
    image[nuclei] = (110, 120, 160)  # inside and outside
    found = stained_tissue(np.moveaxis(image, -1, 0)).astype(bool)
    disc = distance < 50
    assert found.dtype == bool
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.95


@pytest.mark.slow
def test_labels_are_made_once_and_always_the_same(monkeypatch, tmp_path):
    path = demo_labels() / "ihc_epithelium.png"
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "stained_tissue", None)  # calling it would raise
        assert demo_labels() == path.parent
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = demo_labels() / "ihc_epithelium.png"
    assert again.read_bytes() == content
    assert os.listdir(again.parent) == ["ihc_epithelium.png"]  # nothing half-written
    assert set(np.unique(read_image(again))) == {0, 1}


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused(r"the demo's labels cannot be written to .*set XDG_CACHE_HOME", select_cases, "demo")


def test_other_lists_on_the_demo():
    refused("training cases have no 'label'", select_cases, "demo", "demo")


def test_a_users_ihc_png_is_not_the_demo(tmp_path):
    Image.new("RGB", (512, 512)).save(tmp_path / "ihc.png")
    assert find_data_list(tmp_path) == (None, [])
