"""Numbers of objects from labels as they lie in files, and which images get a label."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medmdm.data import LoadObjectsd, LoadSliced, select_training_images, with_labels
from medmdm.data.given_labels import given_map
from tests.made import refused
from tests.written import picture

CLASSES = np.array(
    [
        [0, 1, 1, 0, 0, 2, 2],
        [0, 1, 2, 2, 0, 0, 0],
        [0, 0, 2, 0, 1, 0, 255],
        [1, 0, 0, 0, 0, 1, 255],
        [1, 0, 0, 255, 0, 0, 1],
    ],
    np.uint8,
)


def flooded(label: np.ndarray) -> np.ndarray:
    """Number the parts of each class, neighbours by edge or corner, pixel by pixel."""
    numbers, count = np.zeros(label.shape, int), 0
    for start in zip(*np.nonzero((label > 0) & (label < 255)), strict=True):
        if numbers[start]:
            continue
        count, waiting = count + 1, [start]
        while waiting:
            row, column = waiting.pop()
            inside = 0 <= row < label.shape[0] and 0 <= column < label.shape[1]
            if inside and label[row, column] == label[start] and not numbers[row, column]:
                numbers[row, column] = count
                waiting += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return numbers


def same_parts(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two maps cut an image alike, whatever their numbers, and have 0 at the same places."""
    pairs = {(int(x), int(y)) for x, y in zip(a.ravel(), b.ravel(), strict=True)}
    one_to_one = len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
    return one_to_one and np.array_equal(a == 0, b == 0)


def load(folder: Path, label: np.ndarray, **entry: Any) -> torch.Tensor:
    image = picture(folder / "image.png", shape=(*label.shape, 3))
    name = picture(folder / "label.png", label)
    sample = {"image": str(image), "label": str(name), **entry}
    return LoadObjectsd()(LoadSliced("image")(sample))["label"]


def test_parts_of_classes_are_objects(tmp_path: Path) -> None:
    found = load(tmp_path, CLASSES, label_classes=[0, 1, 2, 255])
    assert found.shape == (1, *CLASSES.shape)
    assert found.dtype == torch.int32
    assert same_parts(found[0].numpy(), flooded(CLASSES))
    assert len(found.unique()) == 1 + 5  # touching classes are two objects, corners join


def test_numbers_of_objects_stay(tmp_path: Path) -> None:
    label = np.array([[0, 7, 7, 0], [300, 0, 0, 7], [65535, 65535, 0, 300]], np.uint16)
    assert np.array_equal(load(tmp_path, label)[0].numpy(), label)  # parts of one number are one object


@pytest.mark.parametrize("value", [1, 100, 255])
def test_white_masks_have_objects(tmp_path: Path, value: int) -> None:
    mask = (CLASSES == 1).astype(np.uint8)
    found = load(tmp_path, mask * value, label_classes=[0, 1])
    assert same_parts(found[0].numpy(), flooded(mask))


def test_an_empty_label_is_background(tmp_path: Path) -> None:
    assert not load(tmp_path, np.zeros((3, 5), np.uint8), label_classes=[0, 1]).any()
    assert not load(tmp_path, np.zeros((1, 1), np.uint8)).any()


def test_unknown_classes_and_colours_are_refused(tmp_path: Path) -> None:
    refused("label.png holds 2, but the classes are 0, 1", load, tmp_path, CLASSES, label_classes=[0, 1, 255])
    picture(tmp_path / "rgb.png", shape=(5, 7, 3))
    sample = {"image": MetaTensor(torch.zeros(1, 5, 7)), "label": str(tmp_path / "rgb.png")}
    refused("rgb.png has 3 channels, but a label has one number", LoadObjectsd(), sample)


def test_without_a_label_nothing_is_loaded() -> None:
    sample = {"image": torch.zeros(1, 2, 3)}
    assert LoadObjectsd()(sample).keys() == sample.keys()
    assert torch.equal(given_map(sample, "regions"), torch.full((1, 2, 3), -1))
    assert torch.equal(given_map(sample, "content"), torch.full((1, 2, 3), -1.0))


def test_interpolated_numbers_are_refused() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2))
    label = MetaTensor(torch.tensor([[[0.0, 1.5], [3.0, 3.0]]]))
    refused("values that are not whole numbers", given_map, {"image": image, "label": label}, "regions")
    refused("x.png is not loaded", given_map, {"image": image, "label": "x.png"}, "regions")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sections: dict[str, list[dict[str, Any]]] = {
        "training": [{"image": "a.png", "label": "a_mask.png"}, {"image": "b.png"}],
        "unlabeled": [{"image": "c.png"}],
        "validation": [{"image": "d.png", "label": "d_mask.png"}],
        "test": [{"image": "e.png", "label": "kept_back.png"}],
    }
    for entries in sections.values():
        for entry in entries:
            picture(tmp_path / entry["image"])
    for name in ("a", "d"):
        picture(tmp_path / f"{name}_mask.png", np.zeros((20, 30)))
    content = {"labels": {"background": 0, "gland": 1, "ignore": 255}, **sections}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_images_get_the_label_that_the_list_names(folder: Path) -> None:
    selection = select_training_images(folder)
    assert with_labels(selection) is selection
    given = with_labels(selection, "regions")
    assert [entry.get("label") for entry in given.training] == [str(folder / "a_mask.png"), None, None]
    assert given.training[0]["label_classes"] == [0, 1, 255]
    assert [entry["label"] for entry in given.validation] == [str(folder / "d_mask.png")]
    told = given.sentences[-1]
    assert told.startswith(
        "the corruption is given the labels of 1 image, which count as labels that were seen; 2 image"
    )
    assert given.training[1] == selection.training[1]


def test_images_that_the_list_holds_out_train_without_labels(folder: Path) -> None:
    given = with_labels(select_training_images(folder, transductive=True), "content")
    assert [Path(entry["image"]).stem for entry in given.training] == ["a", "b", "c", "d", "e"]
    assert ["label" in entry for entry in given.training] == [True, False, False, False, False]


def test_bad_names_are_refused(folder: Path) -> None:
    refused("label_as is 'region' .*did you mean 'regions'", with_labels, select_training_images(folder), "region")
    (folder / "d_mask.png").unlink()
    sentence = "1 of 1 validation labels are not in .*d_mask.png"
    refused(sentence, with_labels, select_training_images(folder), "regions")


def test_the_demo_has_labels() -> None:
    given = with_labels(select_training_images("demo", "demo_labelled"), "regions")
    assert all(Path(entry["label"]).is_file() for entry in given.training)
