"""Data lists are checked key by key; the shipped ones hold the official splits."""

import json
from collections import Counter

import pytest

from medmdm.data.lists import load_data_list, regions_overlap, shipped_data_lists
from medmdm.errors import UserError
from medmdm.files import resource_folder
from tests.made import refused


def test_loads_every_key(tmp_path):
    entry = {"image": "./a.png", "label": "a_mask.png", "patient_id": 7, "region": {"rows": [0, 5]}, "grade": "benign"}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"name": "x", "licence": "CC0", "training": [entry], "test": ["b.png"]}))
    data_list = load_data_list(path)
    assert data_list.name == "x"
    assert data_list.training == ({**entry, "image": "a.png", "patient_id": "7"},)
    assert data_list.test == ({"image": "b.png"},)
    assert data_list.validation == ()
    assert data_list.information == {"licence": "CC0"}
    assert not data_list.shipped
    assert "7" not in repr(data_list).replace(str(path), "")


def test_given_as_a_dictionary():
    assert load_data_list({"training": ["a.png"]}).training == ({"image": "a.png"},)


A, PART = {"image": "a.png"}, {"image": "a.png", "region": {"columns": [0, 9]}}


@pytest.mark.parametrize(("content", "sentence"), [
    ({}, "'training' is missing or empty"),
    ({"training": []}, "'training' is missing or empty"),
    ({"training": {"a": 1}}, "'training' is a dict: it must be a list"),
    ({"training": [A], "name": 3}, "'name' is 3, but must be text"),
    ({"training": [A], "val": [A]}, "'val' is not a section.*use training, validation, test"),
    ({"training": [A], "validaton": [A]}, r"'validaton' is not a section \(did you mean 'validation'\?\)"),
    ({"training": [3]}, r"training\[0\] is 3: an entry must be an object"),
    ({"training": [A, {"imge": "b"}]}, r"training\[1\] has no 'image' \(did you mean 'imge'\?\)"),
    ({"training": [{"image": 5}]}, r"training\[0\]: 'image' is 5: it must be a path"),
    ({"training": [{"image": ""}]}, r"training\[0\]: 'image' is ''"),
    ({"training": [{"image": "/etc/a.png"}]}, "leaves the data set's folder"),
    ({"training": [{"image": "C:\\a.png"}]}, "leaves the data set's folder"),
    ({"training": [{"image": "x/../../a.png"}]}, "leaves the data set's folder"),
    ({"training": [{**A, "label": "../a.png"}]}, r"'label' is '\.\./a\.png', which leaves"),
    ({"training": [{**A, "patient_id": ["secret"]}]}, "'patient_id' must be text or a whole number\\.$"),
    ({"training": [{**A, "region": [0, 1]}]}, "'region' must be an object"),
    ({"training": [{**A, "region": {"row": [0, 1]}}]}, r"the key 'row' \(did you mean 'rows'\?\)"),
    ({"training": [{**A, "region": {"rows": [1, 1]}}]}, r"'rows' is \[1, 1\]: give \[first, end\]"),
    ({"training": [{**A, "region": {"rows": [0.0, 1]}}]}, "whole numbers"),
    ({"training": [{**A, "region": {"rows": [-1, 1]}}]}, "0 <= first"),
    ({"training": [A, {"image": "./a.png"}]}, r"'training' lists 'a\.png' twice"),
    ({"training": [PART, PART]}, r"'training' lists 'a\.png' twice"),
    ({"training": [A], "test": [A]}, r"'a\.png' is in 'training' and in 'test'"),
    ({"training": [PART], "test": [A]}, "one section only"),
    ({"training": [PART], "validation": [{**A, "region": {"columns": [8, 12]}}]}, "one section only"),
])  # fmt: skip
def test_mistakes_are_one_sentence_with_file_and_key(tmp_path, content, sentence):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence) as caught:
        load_data_list(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_are_no_list(tmp_path):
    sentence = "nowhere does not exist: give a JSON file or one of demo, demo_labelled, glas, monuseg"
    refused(sentence, load_data_list, "nowhere")
    (tmp_path / "a.json").write_text("{")
    refused(r"a\.json is not JSON", load_data_list, tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"training": [], "test": [], "training": [{"image": "a.png"}]}')
    refused(r"a\.json is not JSON \('training' stands twice", load_data_list, tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    refused("holds a list", load_data_list, tmp_path / "a.json")
    refused("cannot be read", load_data_list, tmp_path)


def test_regions():
    left, right, top = {"columns": [0, 5]}, {"columns": [5, 9]}, {"rows": [0, 3]}
    assert not regions_overlap(left, right)
    assert regions_overlap(left, top)
    assert regions_overlap(None, left)
    assert regions_overlap(None, None)


def test_glas_is_the_official_split_with_patients():
    glas = load_data_list("glas")
    assert glas.shipped
    assert [entry["image"] for entry in glas.training] == [f"train_{i}.bmp" for i in range(1, 86)]
    expected = [f"testA_{i}.bmp" for i in range(1, 61)] + [f"testB_{i}.bmp" for i in range(1, 21)]
    assert [entry["image"] for entry in glas.test] == expected
    every = [*glas.training, *glas.test]
    assert all(entry["label"] == entry["image"].replace(".bmp", "_anno.bmp") for entry in every)
    assert Counter(entry["grade"] for entry in every) == {"benign": 74, "malignant": 91}
    in_training = {entry["patient_id"] for entry in glas.training}
    shared = [entry["image"][:5] for entry in glas.test if entry["patient_id"] in in_training]
    assert Counter(shared) == {"testA": 59, "testB": 20}


def test_monuseg_is_the_papers_thirty_and_the_official_fourteen():
    monuseg = load_data_list("monuseg")
    assert len(monuseg.training) == 30
    assert len(monuseg.test) == 14
    every = [*monuseg.training, *monuseg.test]
    assert len({entry["patient_id"] for entry in every}) == 44
    for entry in every:
        assert entry["image"].split("/")[-1].startswith(entry["patient_id"])
        assert len(entry["patient_id"]) == len("TCGA-XX-0000")


def test_shipped_lists_name_licence_and_citation():
    lists = shipped_data_lists()
    assert [data_list.name for data_list in lists] == ["demo", "demo_labelled", "glas", "monuseg"]
    for data_list in lists:
        assert data_list.information["licence"]
        assert data_list.information["citation"]
        assert data_list.information["description"]
        assert data_list.path == resource_folder("data_lists") / f"{data_list.name}.json"


def test_lists_in_an_installed_package_come_first(tmp_path, monkeypatch):
    import medmdm.files

    package = tmp_path / "site-packages" / "medmdm"
    (package / "_resources" / "data_lists").mkdir(parents=True)
    monkeypatch.setattr(medmdm.files, "__file__", str(package / "shipped.py"))
    assert resource_folder("data_lists") == package / "_resources" / "data_lists"
    refused("'bundles' that comes with medmdm is missing", resource_folder, "bundles")


def test_images_without_labels_are_a_section() -> None:
    found = load_data_list({"name": "few", "training": ["a.png"], "unlabeled": ["b.png", {"image": "c.png"}]})
    assert [entry["image"] for entry in found.unlabeled] == ["b.png", "c.png"]
    assert "unlabeled" not in found.information
    for_testing = {"test": [{"image": "a.png", "label": "a_mask.png"}]}
    assert load_data_list(for_testing).training == ()
    for content, sentence in (
        ({"training": ["a.png"], "unlabeled": ["a.png"]}, "in 'training' and in 'unlabeled'"),
        ({"unlabeled": [{"image": "a.png", "label": "b.png"}]}, r"unlabeled\[0\] has a 'label'"),
        ({"training": ["a.png"], "unlabelled": [{"image": "b.png"}]}, "'unlabelled' is not a section .did you mean"),
        ({"name": "empty"}, "'training' is missing or empty"),
    ):
        refused(sentence, load_data_list, content)
