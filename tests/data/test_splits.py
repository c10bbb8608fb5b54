"""Divisions by patient, folds and few-shot draws: what must hold for any data list."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmdm.cli import main
from medmdm.data.lists import load_data_list
from medmdm.data.splits import k_folds, patient_groups, split_by_patient, split_data_list, subset
from tests.made import refused

Entries = list[dict[str, Any]]


@st.composite
def entries(draw: st.DrawFn, least_patients: int = 6) -> Entries:
    """Cases of at least so many patients; some without an id, some in regions of one image."""
    patients = draw(st.integers(least_patients, 15))
    cases: Entries = []
    for patient in range(patients):
        known = draw(st.booleans())
        for image in range(draw(st.integers(1, 4)) if known else 1):
            name = f"{patient}_{image}.png"
            column = {"grade": draw(st.sampled_from(["low", "high", "other"]))}
            if known:
                column["patient_id"] = f"P{patient}"
            if draw(st.booleans()):
                cases += [
                    {"image": name, "region": {"rows": [0, 8]}, **column},
                    {"image": name, "region": {"rows": [8, 16]}, **column},
                ]
            else:
                cases.append({"image": name, **column})
    return cases


def keys(cases: Entries) -> list[str]:
    return sorted(json.dumps(case, sort_keys=True) for case in cases)


def people(cases: Entries) -> set[str]:
    return {case.get("patient_id", case["image"]) for case in cases}


@settings(max_examples=40, deadline=None)
@given(entries(), st.floats(0.05, 0.95), st.integers(0, 50), st.sampled_from([None, "grade"]), st.randoms())
def test_split_is_a_division_by_patient_whatever_the_order(cases, test, seed, stratify, random) -> None:
    training, held_out = split_by_patient(cases, test, stratify, seed)
    assert training
    assert held_out
    assert keys(training + held_out) == keys(cases)
    assert not people(training) & people(held_out)
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert split_by_patient(shuffled, test, stratify, seed) == (training, held_out)


@settings(max_examples=40, deadline=None)
@given(entries(), st.integers(2, 6), st.integers(0, 50), st.sampled_from([None, "grade"]), st.randoms())
def test_folds_are_a_division_by_patient_whatever_the_order(cases, folds, seed, stratify, random) -> None:
    parts = k_folds(cases, folds, stratify, seed)
    assert len(parts) == folds
    assert all(parts)
    assert keys([case for part in parts for case in part]) == keys(cases)
    assert sum(len(people(part)) for part in parts) == len(people(cases))
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert k_folds(shuffled, folds, stratify, seed) == parts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=6, max_size=40), st.integers(2, 5), st.integers(0, 20))
def test_folds_are_balanced_within_one_patient_where_patients_have_one_case(grades, folds, seed) -> None:
    parts = k_folds([{"image": f"{i}.png", "grade": grade} for i, grade in enumerate(grades)], folds, "grade", seed)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for grade in set(grades):
        share = [sum(case["grade"] == grade for case in part) for part in parts]
        assert max(share) - min(share) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=8, max_size=40), st.floats(0.2, 0.5), st.integers(0, 20))
def test_test_share_is_met_within_one_patient_in_every_stratum(grades, test, seed) -> None:
    cases = [{"image": f"{i}.png", "grade": grade} for i, grade in enumerate(grades)]
    _, held_out = split_by_patient(cases, test, "grade", seed)
    assert abs(len(held_out) - test * len(cases)) < 1
    for grade in set(grades):
        wanted = test * grades.count(grade)
        assert abs(sum(case["grade"] == grade for case in held_out) - wanted) < 1


def test_renaming_patients_changes_nothing() -> None:
    cases = [{"image": f"{i}.png", "patient_id": f"P{i // 3}"} for i in range(30)]
    renamed = [{**case, "patient_id": f"anonymous {case['patient_id'][::-1]}"} for case in cases]
    images = [case["image"] for case in split_by_patient(cases, 0.3, seed=4)[1]]
    assert [case["image"] for case in split_by_patient(renamed, 0.3, seed=4)[1]] == images


def test_seeds_differ() -> None:
    cases = [{"image": f"{i}.png"} for i in range(20)]
    assert len({json.dumps(split_by_patient(cases, 0.2, seed=seed)[1]) for seed in range(10)}) == 10


def test_regions_without_a_patient_stay_with_the_patients_on_their_image() -> None:
    cases = [
        {"image": "array.png", "region": {"rows": [0, 8]}, "patient_id": "a"},
        {"image": "array.png", "region": {"rows": [8, 16]}, "patient_id": "b"},
        {"image": "slide.png", "region": {"rows": [0, 8]}, "patient_id": "c"},
        {"image": "slide.png", "region": {"rows": [8, 16]}},
        {"image": "other.png", "patient_id": "c"},
    ]
    groups = [{(case["image"], str(case.get("region"))) for case in group} for group in patient_groups(cases)]
    assert sorted(map(len, groups)) == [1, 1, 3]


def test_several_sequences_are_one_case() -> None:
    cases = [{"image": [f"{i}_t1.nii.gz", f"{i}_t2.nii.gz"]} for i in range(4)]
    training, held_out = split_by_patient(cases, 0.25)
    assert (len(training), len(held_out)) == (3, 1)
    assert subset(cases, 1) == cases[:1]


def test_glas_by_patient_and_grade() -> None:
    glas = load_data_list("glas")
    for seed in range(5):
        training, held_out = split_by_patient([*glas.training, *glas.test], 0.2, "grade", seed)
        assert len(training) + len(held_out) == 165
        assert not people(training) & people(held_out)
        grades = Counter(case["grade"] for case in held_out)
        assert 25 <= len(held_out) <= 41
        assert 0.35 < grades["benign"] / len(held_out) < 0.55  # 0.45 in all


def test_paper_rule_is_string_order() -> None:
    cases = [{"image": f"train_{i}.bmp"} for i in range(85, 0, -1)]
    names = [case["image"] for case in subset(cases, 4)]
    assert names == ["train_1.bmp", "train_10.bmp", "train_11.bmp", "train_12.bmp"]


@given(st.permutations(range(12)), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_seeded_draws_are_nested_and_independent_of_order(order, seed) -> None:
    cases = [{"image": f"{i}.png"} for i in order]
    four, eight = subset(cases, 4, "seeded", seed), subset(cases, 8, "seeded", seed)
    assert all(case in eight for case in four)
    assert eight == subset(sorted(cases, key=str), 8, "seeded", seed)
    assert eight == sorted(eight, key=lambda case: case["image"])


def test_seeded_draws_reach_every_case() -> None:
    cases = [{"image": f"{i}.png"} for i in range(10)]
    drawn = Counter(case["image"] for seed in range(200) for case in subset(cases, 3, "seeded", seed))
    assert len(drawn) == 10
    assert 30 < min(drawn.values()) <= max(drawn.values()) < 95  # 60 expected


@pytest.mark.parametrize(("call", "words"), [
    (lambda cases: split_by_patient(cases, 1.5), "test is 1.5"),
    (lambda cases: split_by_patient(cases[:1], 0.2), "1 patient cannot be divided into 2 parts"),
    (lambda cases: split_by_patient(cases, 0.2, "grad"), "did you mean 'grade'"),
    (lambda cases: split_by_patient(cases, 0.2, seed=-1), "seed is -1"),
    (lambda cases: k_folds(cases, 1), "folds is 1"),
    (lambda cases: k_folds(cases, 9), "cannot be divided into 9 parts"),
    (lambda cases: subset(cases, 5), "there are 4"),
    (lambda cases: subset(cases, 0), "there are 4"),
    (lambda cases: subset(cases, 2, "papers"), "did you mean 'paper'"),
])  # fmt: skip
def test_mistakes_end_in_a_sentence(call, words) -> None:
    cases = [{"image": f"{i}.png", "grade": "low"} for i in range(4)]
    refused(words.replace("(", r"\("), call, cases)


@pytest.fixture
def data_list(tmp_path: Path) -> Path:
    path = tmp_path / "dataset.json"
    cases = [{"image": f"{i}.png", "patient_id": f"P{i // 2}", "grade": "ab"[i % 2]} for i in range(20)]
    content = {
        "name": "made", "split": "official", "labels": {"background": 0}, "training": cases[:15], "test": cases[15:],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_command_holds_out_and_folds(data_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["split", str(data_list), str(tmp_path / "own.json"), "--test", "0.2", "--folds", "4", "--seed", "3"]
    assert main([*arguments, "--stratify", "grade"]) == 0
    lists = [load_data_list(tmp_path / f"own_fold_{k}.json") for k in (1, 2, 3, 4)]
    assert "4 cases of 2 patients (2 a, 2 b)" in capsys.readouterr().out
    assert all(one.test == lists[0].test for one in lists)
    assert sum(len(one.validation) for one in lists) == 16
    for one in lists:
        parts = [people(list(part)) for part in (one.training, one.validation, one.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 10
        assert one.information["split"] != "official"
        assert one.information["labels"] == {"background": 0}
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([*arguments, "--stratify", "grade"]) == 0  # the same again is no harm
    assert main([*arguments[:-1], "4"]) == 1
    assert "exists and differs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_command_keeps_the_test_set_of_a_subset(data_list: Path, tmp_path: Path) -> None:
    out = tmp_path / "few" / "eight.json"
    assert main(["split", str(data_list), str(out), "--subset", "8", "--rule", "paper"]) == 0
    few, all_of_it = load_data_list(out), load_data_list(data_list)
    assert few.training == tuple(subset(all_of_it.training, 8))
    assert few.test == all_of_it.test
    assert few.information["split"] == "official"
    assert few.information["subset"] == "8 of 15 training cases, first in string order (paper)"


@pytest.mark.parametrize(("arguments", "words"), [
    (["x.json"], "nothing to do"),
    (["x.json", "--subset", "2", "--stratify", "grade"], "--stratify concerns a division"),
    (["x.txt", "--subset", "2"], "give the name of a JSON file"),
    (["x.json", "--folds", "99"], "cannot be divided into 99 parts"),
])  # fmt: skip
def test_command_refuses_in_a_sentence(data_list, tmp_path, monkeypatch, capsys, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["split", str(data_list), *arguments]) == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_folds_without_test_keep_the_lists_own() -> None:
    lists = split_data_list(load_data_list("glas"), folds=5, stratify="grade")
    assert [len(one["test"]) for one in lists] == [80] * 5
    assert sum(len(one["validation"]) for one in lists) == 85
    assert all(one["split"] == "official" for one in lists)


@pytest.mark.slow
def test_command_line_starts_without_torch() -> None:
    code = "import sys; from medmdm.cli import _parser; _parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
