"""Masks that a person corrected come back as labels, and the next fit uses them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.cli import main
from medmdm.data.added_labels import add_labels, label_changes
from medmdm.data.lists import load_data_list
from medmdm.files import mark_outputs
from tests.bundle_runs import Run
from tests.made import refused
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures
from tests.written import picture, random, write_nifti


def mask(shape: tuple[int, ...] = (12, 20), value: int = 1) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[2:6, 3:9] = value
    return label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labelled pictures, four without labels (two of one name), one to test on; masks in ``masks/``."""
    root = tmp_path / "data"
    for name in ("t0", "t1", "u0", "a/x", "b/x", "r", "v"):
        picture(root / f"{name}.png", random((12, 20, 3), name))
    for name in ("t0", "t1", "v"):
        picture(root / f"{name}_mask.png", mask())
    content = {
        "name": "few", "labels": {"background": 0, "a": 1, "b": 4},
        "training": [
            {"image": "t0.png", "label": "t0_mask.png", "patient_id": 0},
            {"image": "t1.png", "label": "t1_mask.png", "patient_id": 1},
        ],
        "test": [{"image": "v.png", "label": "v_mask.png"}],
        "unlabeled": [
            {"image": "u0.png", "age": 50, "patient_id": 1.0}, "a/x.png", "b/x.png",
            {"image": "r.png", "region": {"rows": [0, 8]}},
        ],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "masks").mkdir()
    return root


def listed(folder: Path, name: str = "dataset.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_added_and_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = folder.parent / "masks"
    for name, value in (("u0", 4), ("b_x", 1), ("t1", 4), ("r", 1), ("v", 1), ("nobody", 1)):
        picture(masks / f"{name}.png", mask(value=value))
    picture(masks / "u0_uncertainty.tif", np.zeros((12, 20), np.float32))
    before = (folder / "dataset.json").read_bytes()
    assert main(["add-labels", str(folder), str(masks)]) == 0
    said = capsys.readouterr().out
    new = listed(folder)
    assert new["training"] == [
        {"image": "t0.png", "label": "t0_mask.png", "patient_id": "0"},
        {"image": "t1.png", "label": "labels_added/t1.png", "patient_id": "1"},
        {"image": "u0.png", "age": 50, "patient_id": "1", "label": "labels_added/u0.png"},
        {"image": "b/x.png", "label": "labels_added/b_x.png"},
        {"image": "r.png", "region": {"rows": [0, 8]}, "label": "labels_added/r.png"},
    ]
    assert new["unlabeled"] == [{"image": "a/x.png"}]
    assert new["test"] == listed(folder, "dataset_before_labels.json")["test"]
    assert (folder / "dataset_before_labels.json").read_bytes() == before
    assert (folder / "labels_added" / "u0.png").read_bytes() == (masks / "u0.png").read_bytes()
    for sentence in (
        "3 cases had no label and went to training: u0.png, b/x.png, r.png", "1 case got another label: t1.png",
        "5 training, 1 unlabeled", "held out for validation or test: v.png", "no case has their name: nobody.png",
    ):  # fmt: skip
        assert sentence in said
    assert main(["check", str(folder)]) == 0
    capsys.readouterr()
    # Once more: nothing changes. Another correction: the label of the list before stays.
    after = (folder / "dataset.json").read_bytes()
    assert main(["add-labels", str(folder), str(masks)]) == 0
    assert "4 cases had this label before" in capsys.readouterr().out
    assert (folder / "dataset.json").read_bytes() == after
    picture(masks / "u0.png", mask(value=1))
    assert main(["add-labels", str(folder), str(masks)]) == 0
    assert (folder / "dataset_before_labels_2.json").read_bytes() == after
    assert listed(folder)["training"][2]["label"] == "labels_added/u0_2.png"
    assert listed(folder)["labels_added"] == [
        {"added": ["u0.png", "b/x.png", "r.png"], "replaced": ["t1.png"]},
        {"added": [], "replaced": ["u0.png"]},
    ]


def test_another_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, out, before = folder.parent / "masks", folder / "new.json", (folder / "dataset.json").read_bytes()
    picture(masks / "u0.png", mask())
    arguments = ["add-labels", str(folder / "dataset.json"), str(masks), "--out", str(out)]
    assert main(arguments) == 0
    assert main(arguments) == 0  # the same content again
    assert (folder / "dataset.json").read_bytes() == before
    assert len(load_data_list(out).training) == 3
    picture(masks / "b_x.png", mask())
    assert main(arguments) == 1
    assert "exists and differs: give another name or pass --overwrite" in capsys.readouterr().err
    assert len(load_data_list(out).training) == 3
    out.write_bytes("Drüsen".encode("latin-1"))  # whatever it is
    assert main(arguments) == 1
    assert "exists and differs: give another name or pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert len(load_data_list(out).training) == 4


@pytest.mark.parametrize(("name", "label", "said"), [
    ("u0.png", mask((12, 19)), "u0.png is 12x19 but its image u0.png is 12x20"),
    ("u0.png", mask(value=3), "u0.png holds 3, but the classes are 0, 1, 4"),
    ("u0.png", random((12, 20, 3), "c"), "3 channels"),
    ("r.png", mask((8, 20)), "r.png is 8x20 but its image r.png is 12x20"),
    ("nobody.png", mask(), "no mask has the name of a case of the list"),
    ("v.png", mask(), "no mask has the name of an unlabelled or training case"),
])  # fmt: skip
def test_refused_before_anything_is_written(folder: Path, name: str, label: np.ndarray, said: str) -> None:
    masks = folder.parent / "masks"
    picture(masks / name, label)
    before = sorted(folder.rglob("*"))
    refused(said, add_labels, load_data_list(folder / "dataset.json"), masks, folder)
    assert main(["add-labels", str(folder), str(masks)]) == 1
    assert sorted(folder.rglob("*")) == before


def test_two_masks_of_one_case(folder: Path) -> None:
    masks = folder.parent / "masks"
    for name in ("u0.png", "U0.tif"):
        picture(masks / name, mask())
    refused("are both masks of u0: keep one", add_labels, load_data_list(folder / "dataset.json"), masks, folder)


def test_objects(folder: Path) -> None:
    content = {**listed(folder), "label_type": "instances"}
    masks, two = folder.parent / "masks", mask()
    two[8:10, 12:15] = 1
    picture(masks / "u0.png", two)
    refused("gives 2 separate objects the number 1", add_labels, load_data_list(content), masks, folder)
    two[8:10, 12:15] = 2
    picture(masks / "u0_instances.png", two)
    found = add_labels(load_data_list(content), masks, folder)
    assert found.files == {"labels_added/u0.png": masks / "u0_instances.png"}


def test_volumes(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for name in ("a", "b"):
        write_nifti(tmp_path / "data" / f"{name}.nii.gz", random((8, 9, 5), name).astype(np.float32), affine)
    write_nifti(tmp_path / "masks" / "b.nii.gz", mask((8, 9, 5)), affine)
    listed = load_data_list({"labels": {"no": 0, "a": 1}, "unlabeled": ["a.nii.gz", "b.nii.gz"]})
    found = add_labels(listed, tmp_path / "masks", tmp_path / "data")
    assert found.content["training"] == [{"image": "b.nii.gz", "label": "labels_added/b.nii.gz"}]
    write_nifti(tmp_path / "masks" / "b.nii.gz", mask((8, 9, 5)), np.diag([1.0, 1.0, 2.0, 1.0]))
    refused("lies up to 4 mm beside its image", add_labels, listed, tmp_path / "masks", tmp_path / "data")


def test_what_nobody_corrected_is_said(folder: Path) -> None:
    masks = folder.parent / "masks"
    mark_outputs(masks)
    picture(masks / "u0.png", mask())
    said = add_labels(load_data_list(folder / "dataset.json"), masks, folder).sentences
    assert any("those that nobody corrected became labels too" in sentence for sentence in said)


def test_what_changed_in_a_support() -> None:
    history = {"labels_added": [{"added": ["x"], "replaced": []}, {"added": ["b", "c"], "replaced": ["a"]}]}
    support = [{"name": name} for name in "abx"]
    said = ["labels since the last add-labels: 1 added (b), 1 replaced (a), of 3 labelled cases"]
    assert label_changes(history, support) == said
    assert label_changes(history, [{"name": "x"}]) == label_changes({}, support) == []


@pytest.mark.bundle
def test_round(run: Run, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """Label four, apply to two, correct one of these, fit again."""
    content = json.loads((pictures / "dataset.json").read_text())
    unlabeled = [{k: v for k, v in entry.items() if k != "label"} for entry in content.pop("test")]
    (pictures / "dataset.json").write_text(json.dumps({**content, "unlabeled": unlabeled}))
    ridge = {"_target_": "medmdm.heads.ClosedFormHead"}
    run("mdm_segment", head=ridge)
    corrected = tmp_path / "corrected"
    corrected.mkdir()
    for name in ("4.png",):
        (corrected / name).write_bytes((tmp_path / "run" / "applied" / "predictions" / name).read_bytes())
    assert main(["add-labels", str(pictures), str(corrected)]) == 0
    with caplog.at_level(logging.INFO):
        run("mdm_segment", head=ridge, run_dir=str(tmp_path / "second"))
    assert "labels since the last add-labels: 1 added (4.png), of 5 labelled cases" in caplog.text
    assert json.loads((tmp_path / "second" / "plan.json").read_text())["protocol"]["shots"] == 5
    assert [p.name for p in (tmp_path / "second" / "applied" / "predictions").glob("?.png")] == ["5.png"]


def test_training_cases_that_stay_without_a_label_are_counted(folder: Path) -> None:
    """As ``prepare folder`` lists a folder without masks, of which somebody then labels one."""
    content = {"name": "few", "labels": {"background": 0, "a": 1}, "training": ["t0.png", "t1.png", "u0.png"]}
    picture(folder.parent / "masks" / "t1.png", mask())
    found = add_labels(load_data_list(content), folder.parent / "masks", folder)
    assert found.sentences[-1] == "the list has 3 training, 0 unlabeled now; 2 of the training ones have no label"


def test_a_mask_with_the_name_of_its_image(folder: Path) -> None:
    """Whose characters the name of the case has not."""
    picture(folder / "f#1.png", random((12, 20, 3), "f"))
    content = listed(folder)
    content["unlabeled"].append({"image": "f#1.png"})
    (folder / "dataset.json").write_text(json.dumps(content))
    picture(folder.parent / "masks" / "f#1.png", mask())
    added = add_labels(load_data_list(folder / "dataset.json"), folder.parent / "masks", folder)
    assert added.added == ("f#1.png",)
