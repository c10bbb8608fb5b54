"""Which images train: by list where there is one, test images never unless asked for by name."""

import json
from pathlib import Path

import pytest

from medmdm.data.folders import find_data_list
from medmdm.data.lists import load_data_list
from medmdm.data.selection import select_training_images
from medmdm.errors import UserError
from tests.made import refused


def names(entries) -> list[str]:
    return [Path(entry["image"]).name for entry in entries]


@pytest.fixture
def glas_folder(write_grey, tmp_path):
    """A copy of GlaS converted to PNG: 60 training images, two test images, and a mask each."""
    for name in [f"train_{i}" for i in range(1, 61)] + ["testA_1", "testB_3"]:
        write_grey(f"png/{name}.png")
        write_grey(f"png/{name}_anno.png")
    return tmp_path / "png"


def test_folder_without_a_list(write_png, tmp_path):
    for name in ("b.png", "a.png", "a_mask.png"):
        write_png(name, 4, 4)
    selection = select_training_images(tmp_path)
    assert names(selection.training) == ["a.png", "b.png"]
    assert selection.data_list is None
    assert selection.validation == ()
    assert selection.sentences == (f"{tmp_path}: 2 images, 1 mask left out",)
    assert "changes nothing" in select_training_images(tmp_path, transductive=True).sentences[1]


@pytest.mark.parametrize("list_name", ["dataset.json", "datalist.json"])
def test_list_in_the_folder(write_png, tmp_path, list_name):
    for name in ("a.png", "b.png", "c.png", "d.png", "label/e.png"):
        write_png(name, 4, 4)
    content = {
        "training": [{"image": "b.png", "patient_id": 4}, {"image": "label/e.png", "region": {"rows": [0, 2]}}],
        "validation": ["a.png"],
        "test": ["c.png", "gone.png"],
    }
    (tmp_path / list_name).write_text(json.dumps(content))
    selection = select_training_images(tmp_path)
    assert selection.training == (
        {"image": str(tmp_path / "b.png"), "patient_id": "4"},
        {"image": str(tmp_path / "label/e.png"), "region": {"rows": [0, 2]}},
    )
    assert names(selection.validation) == ["a.png"]
    text = "\n".join(selection.sentences)
    assert f"{list_name}, 2 training images" in text
    assert "1 validation image held out, 1 test image left out" in text
    assert "1 image that the list does not name left out" in text.replace("1 mask and ", "")
    every = select_training_images(tmp_path, transductive=True)
    assert names(every.training) == ["b.png", "e.png", "a.png", "c.png"]
    assert every.validation == ()
    assert "transductive: 1 validation image and 1 test image of the list train too" in every.sentences
    assert names(select_training_images(tmp_path, data_list="none").training) == ["a.png", "b.png", "c.png", "d.png"]


def test_users_list_must_find_its_images(write_png, tmp_path):
    write_png("a.png", 4, 4)
    with pytest.raises(UserError, match=r"'mine': 2 of 3 training images are not in .* \(first: b\.png\)"):
        select_training_images(tmp_path, {"name": "mine", "training": ["a.png", "b.png", "c.png"]})
    with pytest.raises(UserError, match="1 of 1 validation images are not in"):
        select_training_images(tmp_path, {"training": ["a.png"], "validation": ["b.png"]})


def test_nnu_net_dataset_json_does_not_pass_for_a_list(write_png, tmp_path):
    write_png("imagesTr/a.png", 4, 4)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0}, "numTraining": 1}))
    refused(r"'training' is missing.*--data_list none", select_training_images, tmp_path)


def test_shipped_list_matches_a_converted_folder(glas_folder):
    selection = select_training_images(glas_folder)
    assert selection.data_list.name == "glas"
    assert names(selection.training) == [f"train_{i}.png" for i in range(1, 61)]
    assert all(entry["patient_id"] for entry in selection.training)
    assert "62 masks and 0 images" in selection.sentences[2]
    assert "0 validation images held out, 2 test images left out" in selection.sentences
    assert len(selection.warnings) == 1
    assert "25 of 85 training images are not in" in selection.warnings[0]
    assert "train_61.bmp" in selection.warnings[0]
    assert "patient" not in repr(selection)


def test_shipped_list_matches_below_and_by_name(glas_folder):
    assert len(select_training_images(glas_folder.parent).training) == 60
    assert len(select_training_images(glas_folder, data_list="glas").training) == 60


def test_shipped_list_is_not_applied_to_a_minority(glas_folder, write_png):
    for i in range(70):
        write_png(f"png/other/{i}.png", 4, 4)
    selection = select_training_images(glas_folder)
    assert selection.data_list is None
    assert len(selection.training) == 132
    assert "60 training images of glas among many others" in selection.warnings[0]


def test_too_few_images_match_no_list(write_png, tmp_path):
    for i in range(1, 42):
        write_png(f"train_{i}.png", 4, 4)
    assert find_data_list(tmp_path) == (None, [])
    refused("30 of 30 training images are not in", select_training_images, tmp_path, data_list="monuseg")


def test_images_of_other_sizes_are_not_taken_for_glas(write_grey, tmp_path):
    for i in range(1, 101):
        write_grey(f"train_{i}.png", 8, 8)
    selection = select_training_images(tmp_path)
    assert len(selection.training) == 100
    assert selection.data_list is None
    assert "named as in glas but of other sizes" in selection.warnings[0]
    assert len(select_training_images(tmp_path, data_list="glas").training) == 85


def test_two_files_of_one_name_are_not_guessed(write_grey, tmp_path):
    for i in range(1, 86):
        write_grey(f"a/train_{i}.png")
    write_grey("b/train_1.png")
    selection = select_training_images(tmp_path)
    assert len(selection.training) == 84
    assert "1 of 85 training images are not in" in selection.warnings[0]


def test_demo():
    selection = select_training_images("demo")
    (training,), (validation,) = selection.training, selection.validation
    assert training["image"] == validation["image"]
    assert names([training]) == ["ihc.png"]
    assert training["region"] == {"rows": [0, 512], "columns": [0, 384]}
    assert validation["region"] == {"rows": [0, 512], "columns": [384, 512]}


def test_missing_folder(tmp_path):
    refused("gone does not exist", select_training_images, tmp_path / "gone")
    refused("gone does not exist", select_training_images, tmp_path / "gone", data_list="glas")


def test_real_glas(real_data):
    selection = select_training_images(real_data("glas"))
    assert sorted(names(selection.training)) == sorted(f"train_{i}.bmp" for i in range(1, 86))
    assert "105 masks and 0 images" in selection.sentences[2]
    assert len(select_training_images(real_data("glas"), transductive=True).training) == 105


def test_real_monuseg(real_data):
    selection = select_training_images(real_data("monuseg"))
    expected = {Path(entry["image"]).name for entry in load_data_list("monuseg").training}
    assert set(names(selection.training)) == expected
    assert len(selection.training) == 30


def test_real_dsb2018(real_data):
    selection = select_training_images(real_data("dsb2018"))
    assert len(selection.training) == 40
    assert all(Path(entry["image"]).parent.name == "images" for entry in selection.training)


def test_images_without_labels_train_and_a_set_for_testing_only_does_not(write_png, tmp_path):
    for name in "abc":
        write_png(f"{name}.png")
    content = {"training": ["a.png"], "unlabeled": ["b.png"], "test": ["c.png"]}
    found = select_training_images(tmp_path, content)
    assert [Path(entry["image"]).name for entry in found.training] == ["a.png", "b.png"]
    assert "1 training image and 1 unlabeled image" in found.sentences[0]
    refused("no image to pre-train on", select_training_images, tmp_path, {"test": ["c.png"]})
