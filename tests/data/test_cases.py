"""Which cases are labelled, by what, and what the numbers mean; nothing unlabelled passes for labelled."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medmdm.data.cases import case_names, select_cases
from medmdm.data.lists import label_names, load_data_list
from medmdm.data.splits import split_data_list
from medmdm.errors import UserError
from tests.made import refused

LABELS = {"background": 0, "gland": 1}


def ids(entries) -> list[str]:
    return [entry["case"] for entry in entries]


@pytest.fixture
def folder(write_png, tmp_path) -> Callable[..., Path]:
    """Write a data list and the small pictures that it names; those in ``missing`` are left out."""

    def write(content: dict, missing: tuple[str, ...] = ()) -> Path:
        for section in ("training", "validation", "test"):
            for entry in content.get(section, []):
                entry = {"image": entry} if isinstance(entry, str) else entry
                for key in ("image", "label"):
                    if key in entry and entry[key] not in missing:
                        write_png(entry[key], 6, 9, channels=1 if key == "label" else 3)
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return tmp_path

    return write


def pair(name: str, **more) -> dict:
    return {"image": f"{name}.png", "label": f"labels/{name}.png", **more}


def test_entries_keep_all_that_the_list_says(folder):
    region = {"rows": [0, 4], "columns": [2, 9]}
    path = folder(
        {
            "labels": LABELS,
            "spacing": 0.0005,
            "training": [
                pair("a", patient_id=7, region=region, grade="benign", site={"id": 3}),
                pair("b", magnification=20),
                pair("c", spacing=[0.25, 0.5], axis="axial", series_uid="1.2"),
            ],
            "validation": [pair("d")],
            "test": [pair("e")],
        }
    )
    cases = select_cases(path)
    assert cases.training[0] == {
        "case": "a", "name": "a.png", "image": str(path / "a.png"), "label": str(path / "labels/a.png"),
        "region": region, "patient_id": "7", "spacing": [0.0005, 0.0005],
        "columns": {"grade": "benign", "site": {"id": 3}},
    }  # fmt: skip
    assert cases.training[1]["spacing"] == [0.0005, 0.0005]
    assert "magnification" not in cases.training[1]
    assert cases.training[2]["spacing"] == [0.25, 0.5]
    assert (cases.training[2]["axis"], cases.training[2]["series_uid"]) == ("axial", "1.2")
    assert (ids(cases.validation), ids(cases.test)) == (["d"], ["e"])
    assert cases.sentences == (
        f"{path}: data list {path / 'dataset.json'}, cases: 3 training, 1 validation, 1 test",
        "classes: 0 background, 1 gland",
    )
    assert cases.warnings == ()
    assert "benign" not in repr(cases)


def test_paths_are_absolute(folder, monkeypatch):
    path = folder({"labels": LABELS, "training": [pair("a")]})
    monkeypatch.chdir(path.parent)
    (entry,) = select_cases(path.name).training
    assert entry["image"] == str(path / "a.png")
    assert Path(entry["label"]).is_absolute()


def test_sections(folder):
    content = {"labels": LABELS, "training": [pair("a")], "validation": [pair("b")], "test": [pair("c")]}
    path = folder(content, missing=("c.png", "labels/b.png"))
    cases = select_cases(path, sections=["training"])
    assert (ids(cases.training), cases.validation, cases.test) == (["a"], (), ())
    refused(r"section 'tests' is unknown \(did you mean 'test'\?\)", select_cases, path, sections=["tests"])


ONE = {"labels": LABELS, "training": [pair("a"), pair("b")], "test": [pair("c"), pair("d")]}


@pytest.mark.parametrize(("content", "missing", "sentence"), [
    (ONE, ("b.png",), r"1 of 2 training images are not in .* \(first: b\.png\): correct"),
    (ONE, ("d.png",), r"1 of 2 test images are not in .* \(first: d\.png\): correct"),
    (ONE, ("labels/a.png",), r"1 of 2 training labels are not in .* \(first: labels/a\.png\): correct"),
    (ONE, ("labels/c.png", "labels/d.png"), r"2 of 2 test labels are not in .* \(first: labels/c\.png\)"),
    ({**ONE, "training": ["a.png"]}, (), r"1 of 1 training cases have no 'label' \(first: a\.png\)"),
    ({**ONE, "test": [pair("c"), "d.png"]}, (), r"1 of 2 test cases have no 'label' \(first: d\.png\)"),
    ({**ONE, "labels": None}, (), "dataset.json: the list does not declare 'labels'"),
    ({**ONE, "labels": [1]}, (), r"dataset.json: 'labels' is \[1\]"),
    ({**ONE, "label_type": "instance"}, (), r"dataset.json: 'label_type' is 'instance' \(did you mean 'instances'"),
    ({**ONE, "labels": {"background": 0, "gland": 255}}, (), "the class 255, and classes must be below 255"),
    ({**ONE, "labels": {"background": 0, "ignore": 2}}, (), "the pixels to ignore 2: number them 255"),
    ({**ONE, "spacing": 0}, (), "the data list gives spacing 0"),
])  # fmt: skip
def test_mistakes_end_in_a_sentence(folder, content, missing, sentence):
    refused(sentence, select_cases, folder(content, missing))


def test_test_images_that_are_elsewhere(folder):
    path = folder(ONE, missing=("c.png", "d.png", "labels/c.png"))
    cases = select_cases(path)
    assert cases.test == ()
    assert "2 of 2 test images are not in" in cases.warnings[0]
    refused(r"no case is left in test; .*2 of 2 test images are not in", select_cases, path, sections=["test"])


def test_test_without_labels_as_in_the_decathlon(folder):
    path = folder({**ONE, "test": ["c.png", "d.png"]})
    cases = select_cases(path)
    assert ids(cases.training) == ["a", "b"]
    assert cases.test == ()
    assert "no test case has a 'label', so test is left out" in cases.warnings[0]
    assert ids(select_cases(path, labelled=False).test) == ["c", "d"]


def test_a_few_labelled(folder):
    """As ``prepare folder`` lists a folder in which some images have a mask."""
    path = folder({"labels": LABELS, "training": ["a.png", pair("b"), "c.png"], "test": [pair("d")]})
    cases = select_cases(path, sections=["training", "test", "unlabeled"])
    assert (ids(cases.training), ids(cases.unlabeled)) == (["b"], ["a", "c"])
    assert "2 of 3 training cases have no 'label' and are taken as 'unlabeled' ones" in cases.warnings[0]
    assert "cases: 1 training, 1 test, 2 unlabeled" in cases.sentences[0]
    refused(r"2 of 3 training cases have no 'label' \(first: a\.png\)", select_cases, path, sections=["training"])
    assert ids(select_cases(path, labelled=False).training) == ["a", "b", "c"]


def test_unlabelled(folder, tmp_path):
    path = folder({"training": [pair("a"), "b.png"]}, missing=("labels/a.png",))
    cases = select_cases(path, labelled=False)
    assert [entry.get("label") for entry in cases.training] == [None, None]
    assert len(cases.sentences) == 1
    everything = select_cases(path, data_list="none", labelled=False)
    assert ids(everything.test) == ["a", "b"]
    assert (everything.training, everything.data_list) == ((), None)
    refused("has no data list, so its labels are not known", select_cases, path, data_list="none")
    with pytest.raises(UserError, match="no data list: the list does not declare"):
        _ = everything.num_classes


def test_spacing_of_pictures_for_which_the_list_gives_none(folder):
    plain = folder({"training": ["a.png", {"image": "b.png", "magnification": 40}]})
    for option, spacing in ((0.001, [0.001, 0.001]), ([0.001, 0.002], [0.001, 0.002]), (None, None)):
        cases = select_cases(plain, labelled=False, image_spacing=option)
        assert [entry.get("spacing") for entry in cases.training] == [spacing, [0.00025, 0.00025]]
        everything = select_cases(plain, data_list="none", labelled=False, image_spacing=option)
        assert [entry.get("spacing") for entry in everything.test] == [spacing] * len(everything.test)
    for own in ({"spacing": 0.0005}, {"magnification": 20}):
        cases = select_cases(folder({"training": ["a.png"], **own}), labelled=False, image_spacing=0.001)
        assert cases.training[0]["spacing"] == [0.0005, 0.0005]
    refused("image_spacing gives spacing -1", select_cases, plain, labelled=False, image_spacing=-1)


@pytest.fixture
def glas_folder(write_grey, tmp_path) -> Path:
    """A rearranged copy of GlaS as PNG: 60 training and 2 test images, masks in a folder of their own."""
    for name in [f"train_{i}" for i in range(1, 61)] + ["testA_1", "testB_3"]:
        write_grey(f"png/{name}.png")
        write_grey(f"truth/masks/{name}_anno.png")
    return tmp_path


def test_shipped_list_finds_images_and_labels_anywhere(glas_folder):
    cases = select_cases(glas_folder)
    assert len(cases.training) == 60
    assert ids(cases.test) == ["testA_1", "testB_3"]
    for entry in (*cases.training, *cases.test):
        assert Path(entry["label"]) == glas_folder / "truth" / "masks" / f"{Path(entry['image']).stem}_anno.png"
        assert entry["columns"]["grade"] in ("benign", "malignant")
        assert entry["spacing"] == [0.00062, 0.00062]
    assert (cases.label_type, cases.classes, cases.class_names) == ("instances", (0, 1), ("background", "gland"))
    assert [warning.split(":")[1].split(" images")[0] for warning in cases.warnings] == [
        " 25 of 85 training",
        " 78 of 80 test",
    ]
    (glas_folder / "truth" / "masks" / "train_7_anno.png").unlink()
    refused(r"1 of 60 training labels are not in .* \(first: train_7_anno\.bmp\)", select_cases, glas_folder)


def test_two_labels_of_one_name_are_not_guessed(glas_folder, write_grey):
    write_grey("other/train_2_anno.png")
    refused(r"1 of 60 training labels.*train_2_anno\.bmp", select_cases, glas_folder)


def test_outlines_go_before_masks_and_masks_before_nothing(tmp_path):
    published = load_data_list("monuseg")
    entries = [*published.training, *published.test]
    for number, entry in enumerate(entries):
        stem = Path(entry["image"]).stem
        for name in ["tissue/{}.tif", *(["xml/{}.xml"] if number else []), "instances/{}.png"]:
            path = tmp_path / name.format(stem)
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".xml":
                path.write_text("<Annotations/>")
            else:
                Image.new("L", (4, 4)).save(path)
    cases = select_cases(tmp_path, "monuseg")
    assert len(cases.training) == 30
    assert len(cases.test) == 14
    assert [Path(entry["label"]).suffix for entry in (*cases.training, *cases.test)] == [".png"] + [".xml"] * 43


def test_a_shipped_list_without_its_images(tmp_path):
    refused("30 of 30 training images are not in", select_cases, tmp_path, "monuseg")


@pytest.mark.parametrize(("labels", "classes", "names"), [
    (LABELS, (0, 1), ("background", "gland")),
    ({"0": "background", "2": "tumour", "1": "liver"}, (0, 1, 2), ("background", "liver", "tumour")),
    ({"background": 0, "rim": 3}, (0, 3), ("background", "class 1", "class 2", "rim")),
    ({"background": 0, "tumour": [1, 2]}, (0, 1, 2), ("background", "tumour 1", "tumour 2")),
    ({"background": [0], "all": [1, 2], "core": 2}, (0, 1, 2), ("background", "all 1", "core")),
    ({"background": 0, "gland": 1, "ignore": 255}, (0, 1), ("background", "gland")),
])  # fmt: skip
def test_class_names(folder, labels, classes, names):
    cases = select_cases(folder({**ONE, "labels": labels}))
    assert (cases.classes, cases.class_names, cases.num_classes) == (classes, names, len(names))
    assert cases.ignore == 255


@pytest.mark.parametrize(("labels", "names"), [
    (None, ("background", "object")),
    ({"nothing": 0, "nucleus": 1}, ("nothing", "nucleus")),
    ({"nothing": 0, "a": 1, "b": 2}, ("nothing", "object")),
])  # fmt: skip
def test_instances_are_of_one_class(folder, labels, names):
    cases = select_cases(folder({**ONE, "labels": labels, "label_type": "instances"}))
    assert (cases.classes, cases.class_names, cases.num_classes) == ((0, 1), names, 2)
    assert cases.sentences[1] == f"classes: 0 {names[0]}, 1 {names[1]} (instances)"


def test_label_names_by_whole_numbers():  # as a dictionary in Python has them, and JSON cannot
    assert label_names({"labels": {0: "background", 1: "gland"}}) == {0: "background", 1: "gland"}


def test_label_names_of_nothing():
    assert label_names({}) == {}


@pytest.mark.parametrize(("rule", "seed"), [("paper", 0), ("seeded", 0), ("seeded", 5)])
def test_subset_is_that_of_the_split_command(folder, tmp_path, rule, seed):
    cases = select_cases(folder({**ONE, "training": [pair(f"train_{i}") for i in range(1, 13)]}))
    few = cases.subset(5, rule, seed)
    (written,) = split_data_list(load_data_list(tmp_path / "dataset.json"), n=5, rule=rule, seed=seed)
    assert [entry["name"] for entry in few.training] == [entry["image"] for entry in written["training"]]
    assert all(entry in cases.training for entry in few.training)
    assert few.test == cases.test
    if rule == "paper":
        assert ids(few.training) == ["train_1", "train_10", "train_11", "train_12", "train_2"]


def test_subset_of_regions_and_too_many(folder):
    regions = [{"rows": [i, i + 1]} for i in range(5)]
    cases = select_cases(folder({"labels": LABELS, "training": [pair("a", region=region) for region in regions]}))
    assert len({entry["case"] for entry in cases.subset(4, "seeded", 3).training}) == 4
    refused("a subset of 6 cases", cases.subset, 6)


@pytest.mark.parametrize(("images", "names"), [
    (["a/x.png", "b/y.tif"], ["x", "y"]),
    (["a/x.png", "b/x.png", "y.png"], ["a_x", "b_x", "y"]),
    (["a/X.png", "b/x.png"], ["a_X", "b_x"]),
    (["x.png", "x.tif"], ["x", "x_2"]),
    (["a b/ö (1).nii.gz"], ["ö_1_"]),
    (["...png", "a/...png"], ["case", "a_case"]),
    ([["p/t1.nii", "p/t2.nii"], ["q/t1.nii", "q/t2.nii"]], ["p_t1", "q_t1"]),
    (["a/b_c.png", "a_b/c.png", "a_b/d/c.png"], ["b_c", "a_b_c", "a_b_d_c"]),
])  # fmt: skip
def test_case_names(images, names, tmp_path):
    assert case_names([{"image": image} for image in images], tmp_path) == names


def test_case_names_of_regions(tmp_path):
    regions = [{"rows": [0, 4], "columns": [8, 16]}, {"columns": [0, 8]}, None]
    entries = [{"image": "a/x.png", "region": region} for region in regions]
    assert case_names(entries, tmp_path) == ["x_r0-4_c8-16", "x_c0-8", "x"]
    assert case_names(entries[:1], tmp_path) == ["x"]


@given(st.lists(st.text("aA/._ *", min_size=1, max_size=6), min_size=1, max_size=8))
def test_case_names_are_unique_and_safe(images):
    names = case_names([{"image": image} for image in images], Path("nowhere"))
    assert len({name.casefold() for name in names}) == len(images)
    assert all(name and not set(name) & set("/\\* ") and not name.startswith(".") for name in names)


def test_real_glas(real_data):
    cases = select_cases(real_data("glas"))
    assert (len(cases.training), len(cases.test)) == (85, 20)
    assert all(Path(e["label"]).name == f"{e['case']}_anno.bmp" for e in (*cases.training, *cases.test))


def test_real_monuseg(real_data):
    cases = select_cases(real_data("monuseg"))
    assert (len(cases.training), len(cases.test)) == (30, 7)
    assert all(Path(entry["label"]).stem == Path(entry["image"]).stem == entry["case"] for entry in cases.training)
