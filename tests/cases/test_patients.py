"""Patients are named by a pattern, suspected by names, and "by patient" is never written without them."""

import json
import re
from pathlib import Path

import pytest

from medmdm.check.sharing import shared_patients
from medmdm.cli import main
from medmdm.data.lists import load_data_list
from medmdm.data.patients import find_subject, subject_pattern, suspected_patients
from medmdm.data.splits import patients_unknown, split_data_list
from medmdm.prepare import prepare
from tests.made import refused
from tests.written import picture


def tnbc(separator: str = "_") -> list[str]:
    return [f"images/{p:02}{separator}{i}.png" for p in range(1, 8) for i in range(1, 5)]


GROUPED = {
    "numbers": (tnbc(), "01"),
    "dashes": (tnbc("-"), "01"),
    "slices": ([f"case{p}_s{i}.tif" for p in range(5) for i in range(3)], "case0"),
    "two numbers": ([f"P{p}_left_{i}.png" for p in range(5) for i in range(3)], "P0_left"),
    "many names": ([f"{p}_{i}.png" for p in "abcde" for i in range(3)], "a"),
    "folders": ([f"images/{p:03}/{i}.png" for p in range(4) for i in range(3)], "000"),
    "folders of volumes": ([f"sub{p}/{name}.nii.gz" for p in range(4) for name in ("t1", "t2")], "sub0"),
}
PLAIN = {
    "one name": [f"train_{i}.png" for i in range(9)],
    "parts of a set": [f"{part}_{i}.png" for part in ("train", "testA", "testB") for i in range(9)],
    "sections": [f"{part}/{i}.png" for part in ("train", "test") for i in range(9)],
    "numbers": [f"{i}.png" for i in range(9)],
    "one image each": [f"{i}_1.png" for i in range(9)],
    "slides": ["TCGA-18-5592-01Z-00-DX1.tif", "TCGA-38-6178-01Z-00-DX1.tif"],
}


@pytest.mark.parametrize("names", GROUPED)
def test_names_that_look_like_groups(names: str) -> None:
    paths, group = GROUPED[names]
    sentence = suspected_patients(paths)
    assert sentence
    assert f"if {group!r} is a patient, give --subject" in sentence
    pattern = subject_pattern(re.search("--subject '(.*?)',", sentence)[1])
    assert find_subject(paths[0], pattern) == group  # what is advised does it
    assert len({find_subject(path, pattern) for path in paths}) == len({*paths}) / sum(group in p for p in paths)


@pytest.mark.parametrize("names", PLAIN)
def test_names_that_do_not(names: str) -> None:
    assert suspected_patients(PLAIN[names]) is None


def written(tmp_path: Path, entries: list[dict]) -> Path:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"name": "set", "training": entries}))
    return path


def test_split_without_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, [{"image": name} for name in tnbc()]), tmp_path / "out.json"
    assert main(["split", str(path), str(out), "--test", "0.3"]) == 0
    assert "by image (no patients are named)" in json.loads(out.read_text())["split"]
    assert "names look like group_number (images/01_1.png, images/01_2.png)" in capsys.readouterr().out
    assert main(["split", str(tmp_path), str(out), "--folds", "3"]) == 0  # the list in a folder
    assert json.loads((tmp_path / "out_fold_1.json").read_text())["fold"].startswith("1 of 3 by image")
    (finding,) = shared_patients(load_data_list(out))
    assert finding.check == "patients-unknown"


def test_split_with_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, [{"image": name} for name in tnbc()]), tmp_path / "out.json"
    assert main(["split", str(path), str(out), "--test", "0.3", "--subject", r"/([0-9]+)_"]) == 0
    assert "note:" not in capsys.readouterr().out
    content = load_data_list(out)
    assert content.information["split"] == "0.3 of the cases held out by patient, seed 0"
    patients = [{entry["patient_id"] for entry in section} for section in (content.training, content.test)]
    assert not patients[0] & patients[1]
    assert len(patients[0] | patients[1]) == 7
    refused("no regular expression", split_data_list, load_data_list(path), 0.3, subject="(")
    refused("finds nothing in images/01_1", split_data_list, load_data_list(path), 0.3, subject="P[0-9]+")


def test_split_of_a_list_that_names_some(tmp_path: Path) -> None:
    entries = [{"image": name} | ({"patient_id": name[7:9]} if i % 2 else {}) for i, name in enumerate(tnbc())]
    data_list = load_data_list(written(tmp_path, entries))
    (content,) = split_data_list(data_list, 0.3)
    assert "by patient for the 14 of 28 cases that name one, else by image" in content["split"]
    assert patients_unknown(data_list) is None
    (content,) = split_data_list(data_list, 0.3, subject=r"/([0-9]+)_")
    assert content["split"] == "0.3 of the cases held out by patient, seed 0"


@pytest.mark.parametrize(("pattern", "patients"), [
    (r"([0-9]+)_[0-9]+\.png", {"01", "02", "03", "04", "05", "06", "07"}),
    (r"0[1-3]|0[4-9]", {"01", "02", "03", "04", "05", "06", "07"}),
    (r"images/(.).*", {"0"}),
])  # fmt: skip
def test_prepare_with_a_pattern(pattern: str, patients: set[str], tmp_path: Path) -> None:
    for name in tnbc():
        picture(tmp_path / "set" / name)
    summary = prepare("folder", tmp_path / "set", tmp_path / "out", subject=pattern)
    entries = load_data_list(tmp_path / "out" / "dataset.json").training
    assert {entry["patient_id"] for entry in entries} == patients
    assert "--subject" not in summary
    assert "names look like group_number" in prepare("folder", tmp_path / "set", tmp_path / "plain")
    assert "patient_id" not in load_data_list(tmp_path / "plain" / "dataset.json").training[0]
    refused("finds nothing in", prepare, "folder", tmp_path / "set", tmp_path / "no", subject="sub-[0-9]+")
