"""What ``check`` finds in a data list, and what it leaves in peace."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmdm.check.data_list import check
from medmdm.cli import main
from medmdm.errors import UserError
from tests.check.conftest import DataSet
from tests.made import refused
from tests.prepare.layouts import aperio, rectangle


def test_sound_data_has_no_findings(data: DataSet) -> None:
    report = data.check()
    assert report.findings == ()
    training, test = report.rows
    assert (training.cases, training.labels, training.patients) == (3, 3, 3)
    assert training.images == {(3, "12x20", "uint8"): 3}
    assert training.foreground == pytest.approx(12 / 240)
    assert training.values[1] == pytest.approx(12 / 240)
    assert test.cases == 1


def test_decathlon_classes_float_labels_and_ignored_pixels_are_fine(data: DataSet, tmp_path: Path) -> None:
    data.information["labels"] = {"0": "background", "1": "gland"}
    label = np.eye(12, 20, dtype=np.float32)
    label[5] = 255
    data.picture("a0_mask.tif", label)
    data.sections["training"][0]["label"] = "a0_mask.tif"
    report = data.check()
    assert report.findings == ()
    assert report.rows[0].foreground == pytest.approx((11 + 12 + 12) / (3 * 240 - 20))


def test_instances_may_have_any_number(data: DataSet, only: Callable) -> None:
    data.information["label_type"] = "instances"
    data.add("training", "many", np.arange(240).reshape(12, 20).astype(np.uint16) + 250)
    report = data.check()
    assert report.findings == ()
    assert report.rows[0].instances == 3 + 240


def test_aperio_outlines_count_as_instances(data: DataSet) -> None:
    (data.folder / "a0.xml").write_text(aperio([rectangle(2, 2, 8, 6)]))
    data.information["label_type"] = "instances"
    data.sections["training"] = [{"image": "a0.png", "label": "a0.xml"}]
    report = data.check()
    assert report.findings == ()
    assert (report.rows[0].instances, report.rows[0].foreground) == (1, 24 / 240)


def test_regions_of_one_image_are_different_cases(data: DataSet, only: Callable) -> None:
    data.sections["training"] = [{"image": "a0.png", "region": {"columns": [0, 10]}}]
    data.sections["test"] = [{"image": "a0.png", "region": {"columns": [10, 20]}}]
    assert data.check().findings == ()
    shutil.copy(data.folder / "a0.png", data.folder / "copy.png")
    data.sections["test"] = [{"image": "copy.png", "region": {"columns": [5, 20]}}]  # overlaps
    assert only(data.check(), "image-in-two-sections").files == ("a0.png", "copy.png")


def test_the_same_pixels_in_another_format_are_found(data: DataSet, only: Callable) -> None:
    Image.open(data.folder / "a1.png").save(data.folder / "b0.bmp")
    data.sections["test"][0]["image"] = "b0.bmp"
    assert only(data.check(), "image-in-two-sections").files == ("a1.png", "b0.bmp")


def test_copies_within_a_section_are_a_warning(data: DataSet, only: Callable) -> None:
    for name in ("c0", "c1"):
        data.add("training", name)
        shutil.copy(data.folder / "a0.png", data.folder / f"{name}.png")
    report = data.check()
    assert [(f.level, f.check) for f in report.findings] == [("warning", "duplicate-image")] * 2


def test_patients_in_two_sections(data: DataSet, only: Callable) -> None:
    data.sections["test"][0]["patient_id"] = "SECRET1"
    finding = only(data.check(), "patient-in-two-sections")
    assert "1 of 1 test cases" in finding.message
    assert "patient 2 of 3 (1 + 1 cases)" in finding.message
    assert "python -m medmdm split" in finding.message
    data.information["split"] = "official"
    assert "publisher's split" in only(data.check(), "patient-in-two-sections", "warning").message


def test_patient_ids_are_never_shown(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.sections["test"][0]["patient_id"] = "SECRET1"
    (data.folder / "a2.png").unlink()
    path = str(data.write())
    assert main(["check", path]) == 1
    assert main(["check", path, "--json"]) == 1
    shown = capsys.readouterr()
    assert "SECRET" not in shown.out + shown.err
    assert "SECRET" not in repr(data.check())


@pytest.mark.parametrize(("label", "words"), [
    (np.full((12, 20), 3), "holds 3, but the classes are 0, 1"),
    (np.eye(12, 20) / 2, "not whole numbers (such as 0.5)"),
    (np.full((12, 20), np.nan), "not finite"),
    (np.full((12, 20), -1), "negative values (-1)"),
])  # fmt: skip
def test_wrong_label_values(data: DataSet, only: Callable, label: np.ndarray, words: str) -> None:
    data.picture("a0_mask.tif", label.astype(np.float32))
    data.sections["training"][0]["label"] = "a0_mask.tif"
    assert words in only(data.check(), "label-values").message


@pytest.mark.parametrize(
    ("shape", "words"), [((20, 12), "its axes are swapped"), ((12, 21), "must have the size of its image")]
)
def test_wrong_label_sizes(data: DataSet, only: Callable, shape: tuple[int, int], words: str) -> None:
    data.picture("a0_mask.png", np.eye(*shape))
    assert words in only(data.check(), "label-size").message


def test_labels_painted_with_255(data: DataSet) -> None:
    for name in ("a0", "a1", "a2", "b0"):
        data.picture(f"{name}_mask.png", 255 * np.eye(12, 20))
    report = data.check()
    assert [(finding.level, finding.check) for finding in report.findings] == [("warning", "white-labels")]
    assert "4 labels of 4 of 0 and 255 (first: a0_mask.png): 255 is read as class 1" in report.findings[0].message
    data.picture("a0_mask.png", np.eye(12, 20) + 255 * np.eye(12, 20, 3))
    (error,) = [finding for finding in data.check().findings if finding.level == "error"]
    assert 'to ignore: if they are, add "ignore": 255' in error.message
    data.information["labels"]["ignore"] = 255
    assert {finding.check for finding in data.check().findings} == {"empty-label"}
    data.information["labels"] = {"background": 0, "gland": 255}
    refused("'labels' has the class 255, and classes must be below 255", data.check)


def test_warnings_on_labels(data: DataSet, only: Callable) -> None:
    data.information["labels"]["rare"] = 2
    assert "declared class 2" in only(data.check(), "class-not-trained", "warning").message
    del data.information["labels"]
    assert "found 0, 1" in only(data.check(), "no-classes", "warning").message
    data.information["labels"] = {"background": 0, "gland": 1}
    del data.sections["training"][1]["label"]
    assert "1 of 3 training cases have no label (first: a1.png)" in only(data.check(), "no-label", "warning").message
    data.sections["training"][1]["label"] = "a2_mask.png"
    assert "label of 2 images" in only(data.check(), "shared-label", "warning").message
    data.sections["training"][1]["label"] = "a1_mask.png"
    data.picture("a1_mask.png", np.zeros((12, 20)))
    assert "a1_mask.png holds no object" in only(data.check(), "empty-label", "warning").message


def test_images_of_another_kind(data: DataSet, only: Callable) -> None:
    data.picture("a0.png", np.arange(240).reshape(12, 20))
    assert "has 1 channel where 3 are expected" in only(data.check(), "channels-differ").message
    data.information["channels"] = {"0": "grey"}
    assert [finding.check for finding in data.check().errors] == ["channels-differ"] * 3
    del data.information["channels"]
    for i in range(3):
        data.picture(f"a{i}.png", np.arange(240).reshape(12, 20) + i)
    data.picture("b0.png", np.arange(240, dtype=np.uint16).reshape(12, 20))
    assert "is uint16 and most images are uint8" in only(data.check(), "types-differ", "warning").message


def test_names_that_get_in_each_others_way(data: DataSet, only: Callable) -> None:
    data.add("training", "A0")
    if (data.folder / "a0.png").samefile(data.folder / "A0.png"):
        pytest.skip("this file system does not tell letter cases apart")
    report = data.check()
    assert {(f.level, f.check) for f in report.findings} == {("warning", "names-differ-in-case")}
    data.sections["training"].pop()
    data.add("training", "other/a1")
    assert "2 images have the file name" in only(data.check(), "same-file-name", "warning").message
    data.sections["training"].pop()
    data.sections["training"][0]["label"] = "a1.png"
    assert "label-is-image" in {finding.check for finding in data.check().errors}


def test_missing_files_say_what_is_there(data: DataSet) -> None:
    (data.folder / "a0.png").rename(data.folder / "a0.PNG")
    os.symlink("nowhere.png", data.folder / "link.png")
    data.sections["training"][1]["image"] = "link.png"
    data.sections["training"][2]["image"] = "gone.png"
    messages = [finding.message for finding in data.check().errors]
    if (data.folder / "a0.png").exists():
        pytest.skip("this file system does not tell letter cases apart")
    assert "there is a0.PNG, correct the letter case" in messages[0]
    assert "link to nowhere" in messages[1]
    assert "gone.png in training does not exist: correct the list" in messages[2]


@pytest.fixture
def volumes(tmp_path: Path) -> DataSet:
    made = DataSet(tmp_path)
    for section, name in (("training", "v0"), ("training", "v1"), ("test", "v2")):
        rng = np.random.default_rng(list(name.encode()))
        made.volume(f"{name}.nii.gz", rng.normal(size=(5, 6, 7)).astype(np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
        label = np.zeros((5, 6, 7), np.float32)
        label[2:4] = 1
        made.volume(f"{name}_label.nii.gz", label, np.diag([1.0, 2.0, 3.0, 1.0]))
        made.sections[section].append({"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"})
    return made


def test_volumes(volumes: DataSet, only: Callable) -> None:
    report = volumes.check()
    assert report.findings == ()
    assert report.rows[0].images == {(1, "5x6x7", "float32"): 2}
    shifted = np.diag([1.0, 2.0, 3.0, 1.0])
    shifted[2, 3] = 1.5
    volumes.volume("v1_label.nii.gz", np.eye(5, 6)[..., None].repeat(7, 2).astype(np.uint8), shifted)
    assert "lies up to 1.5 mm beside its image v1.nii.gz" in only(volumes.check(), "label-affine").message


def test_the_same_volume_under_two_names_and_in_two_orders(volumes: DataSet, only: Callable) -> None:
    array = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(np.int16)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    flipped = np.diag([-1.0, 2.0, 3.0, 1.0])
    flipped[0, 3] = 4
    volumes.volume("v0.nii.gz", array, affine)
    volumes.volume("v2.nii.gz", array[::-1].astype(np.float32), flipped)
    del volumes.sections["test"][0]["label"]
    assert only(volumes.check(), "image-in-two-sections").files == ("v0.nii.gz", "v2.nii.gz")


def test_sequences_as_channels(volumes: DataSet) -> None:
    volumes.sections["training"] = [{"image": ["v0.nii.gz", "v1.nii.gz"], "label": "v0_label.nii.gz"}]
    volumes.sections["test"] = []
    report = volumes.check()
    assert report.findings == ()
    assert report.rows[0].images == {(2, "5x6x7", "float32"): 1}
    volumes.sections["training"][0]["image"][1] = "gone.nii.gz"
    assert [finding.check for finding in volumes.check().findings] == ["missing-file"]


def test_pictures_among_volumes(volumes: DataSet) -> None:
    volumes.picture("a.png", np.arange(35).reshape(5, 7))
    volumes.sections["training"].append({"image": "a.png", "label": "v0_label.nii.gz"})
    assert {finding.check for finding in volumes.check().errors} == {"label-kind", "dimensions-differ"}


def test_table_cuts_long_lists_short_and_json_does_not(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.sections["training"] += [{"image": f"gone{i}.png", "label": "a0_mask.png"} for i in range(9)]
    path = str(data.write())
    assert main(["check", path]) == 1
    text = capsys.readouterr().out
    assert "ERROR missing-file (9)" in text
    assert "… and 4 more like these" in text
    assert text.endswith("9 errors, 1 warning\n")
    assert main(["check", path, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False
    assert len(content["errors"]) == 9
    assert content["errors"][0]["files"] == ["gone0.png"]
    assert content["sections"]["training"]["cases"] == 12
    assert content["sections"]["training"]["images"] == {"3 x 12x20 uint8": 3}


def test_many_sizes_are_summed_up(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        data.picture(f"wide{i}.png", np.random.default_rng(i).integers(0, 256, (12, 30 + i, 3)))
        data.sections["training"].append({"image": f"wide{i}.png"})
    assert main(["check", str(data.write())]) == 0
    assert "9 of 3 x uint8 in 7 sizes" in capsys.readouterr().out


def test_exit_codes_and_ways_to_name_the_list(data, capsys, tmp_path) -> None:
    data.picture("a1_mask.png", np.zeros((12, 20)))
    path = data.write()
    assert main(["check", str(path.parent)]) == 0  # warnings do not fail
    assert "0 errors, 1 warning" in capsys.readouterr().out
    elsewhere = tmp_path / "lists" / "mine.json"
    elsewhere.parent.mkdir()
    path.rename(elsewhere)
    assert main(["check", str(elsewhere), "--dataset_dir", str(tmp_path)]) == 0
    assert main(["check", str(elsewhere)]) == 1  # no images there
    capsys.readouterr()
    for arguments, words in (
        ([str(tmp_path)], "holds no data list"),
        (["glas"], "pass --dataset_dir"),
        (["glass"], "does not exist"),
        ([str(elsewhere), "--dataset_dir", str(tmp_path / "x")], "does not exist"),
    ):
        assert main(["check", *arguments]) == 1
        assert words in capsys.readouterr().err
        assert main(["check", *arguments, "--json"]) == 1
        assert words in json.loads(capsys.readouterr().out)["errors"][0]["message"]


@pytest.mark.parametrize(("information", "words"), [
    ({"labels": [0, 1]}, "'labels' is"),
    ({"labels": {"background": "0"}}, "'labels' is"),
    ({"label_type": "instance"}, "did you mean 'instances'"),
    ({"split": 3}, "must be text"),
])  # fmt: skip
def test_a_list_that_declares_nonsense(data: DataSet, information: dict, words: str) -> None:
    data.information.update(information)
    with pytest.raises(UserError, match=words) as raised:
        data.check()
    assert "dataset.json" in str(raised.value)


def test_glas_shares_patients_and_no_image(real_data: Callable[[str], Path]) -> None:
    report = check("glas", real_data("glas"), progress=False)
    assert {finding.check for finding in report.errors} <= {"missing-file"}
    assert [finding.check for finding in report.warnings] == ["patient-in-two-sections"]
    assert "79 of 80 test cases" in report.warnings[0].message
    assert report.rows[0].instances == 769


def test_numbers_of_objects_that_are_declared_as_classes(data: DataSet, only: Callable) -> None:
    data.information["labels"] = {"background": 0, **{f"class {n}": n for n in range(1, 7)}}
    for name, numbers in zip(("a0", "a1", "a2", "b0"), ([1, 2, 6], [2, 4], [3, 5], [1, 2]), strict=True):
        mask = np.zeros((12, 20))
        for place, number in enumerate(numbers):
            mask[2:9, 6 * place : 6 * place + 4] = number
        data.picture(f"{name}_mask.png", mask)
    assert "the 6 numbers are in one piece" in only(data.check(), "objects-as-classes", "warning").message
    data.information |= {"label_type": "instances", "labels": {"background": 0, "gland": 1}}
    assert not data.check().findings
