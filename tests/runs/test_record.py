import json
from pathlib import Path
from typing import Any

import pytest

from medmdm.artifacts.pretrained import join_ledgers, make_ledger, patient_hashes
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError
from medmdm.intact import load_record
from medmdm.runs.record import Evaluation, Provenance, cases_ledger, find_provenance
from tests.made import refused
from tests.reports.runs import change, change_case, picture_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return picture_run(tmp_path, cases=2)


def test_everything_is_read(run: Path, tmp_path: Path) -> None:
    evaluation = Evaluation.load(run)
    assert evaluation.class_names == ("background", "gland")
    assert evaluation.instance_labels
    assert evaluation.provenance.overlapping == ("case_1",)
    assert evaluation.record == {"medmdm": "0.1.0", "seed": 7, "data": {"hash": "ab12"}, "sessions": []}
    case = evaluation.cases[1]
    assert case.image == tmp_path / "data" / "case_1.png"
    assert case.prediction == run / "masks" / "case_1.png"
    assert (case.patient, case.spacing, set(case.maps)) == ("SECRET-0", (0.0005, 0.0005), {"uncertainty"})
    assert "SECRET" not in repr(evaluation.cases)


def test_what_is_saved_is_what_was_read(run: Path) -> None:
    change(run, study="cells/study.csv")
    change_case(run, 0, region={"rows": [0, 9]}, series_uid="1.2", image=["case_0.png", "/elsewhere/case_0.png"])
    before = json.loads((run / "evaluation.json").read_text())
    evaluation = Evaluation.load(run)
    evaluation.save()
    after = load_record(run / "evaluation.json")
    cases = [{"disagreement": None, **case} for case in before["cases"]]
    assert after == {**before, "cases": cases}
    assert Evaluation.load(run) == evaluation


def test_what_may_be_missing(run: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    for key in ("data_list", "stamp", "protocol", "record", "study", "section", "class_names", "ignore"):
        del content[key]
    for key in ("label", "columns", "spacing", "patient_id", "uncertainty"):
        del content["cases"][0][key]
    (run / "evaluation.json").write_text(json.dumps(content))
    (run / "run.json").unlink()
    evaluation = Evaluation.load(run)
    assert (evaluation.provenance.kind, evaluation.record, evaluation.ignore) == ("unknown", None, 255)
    assert evaluation.class_names == ("background", "class 1")
    assert evaluation.cases[0].label is None


def test_relative_data_folder_counts_from_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)  # where ../data is no folder
    change(run, dataset_dir="../data")
    assert Evaluation.load(run).cases[0].image.exists()  # type: ignore[union-attr]


@pytest.mark.parametrize(("content", "said"), [
    ({"format": 2}, "format 2"),
    ({"num_classes": 1}, "num_classes"),
    ({"num_classes": "2"}, "num_classes"),
    ({"class_names": ["a"]}, "1 names for 2 classes"),
    ({"cases": []}, "'cases' is empty"),
    ({"cases": [3]}, "cases[0]: 3 is not of type 'object'"),
    ({"data_list": {"label_type": "instance"}}, "'instance'"),
    ({"stamp": {"kind": "inductiv"}}, "did you mean 'inductive'"),
    ({"stamp": "inductive"}, "stamp: 'inductive' is not of type 'object'"),
    ({"protocol": "nnU-Net v2"}, "protocol: 'nnU-Net v2' is not of type 'object'"),
    ({"ignore": "none"}, "ignore: 'none' is not of type 'integer'"),
    ({"data_list": "list.json"}, "data_list: 'list.json' is not of type 'object'"),
    ({"class_names": 3}, "class_names: 3 is not of type 'array'"),
])  # fmt: skip
def test_wrong_content_is_named(run: Path, content: dict[str, Any], said: str) -> None:
    change(run, **content)
    with pytest.raises(UserError) as caught:
        Evaluation.load(run)
    assert said in str(caught.value)
    assert "evaluation.json" in str(caught.value)


@pytest.mark.parametrize(("value", "said"), [
    ({"spacing": 0.5}, "cases[1].spacing: 0.5 is not of type 'array'"),
    ({"window": [0, 255]}, "cases[1].window[1]: 255 is not of type 'array'"),
    ({"region": [0, 9, 0, 9]}, "cases[1].region: [0, 9, 0, 9] is not of type 'object'"),
    ({"region": {"rows": [0.5, 9]}}, "cases[1].region.rows[0]: 0.5 is not of type 'integer'"),
    ({"columns": ["a"]}, "cases[1].columns: ['a'] is not of type 'object'"),
    ({"prediction": 3}, "cases[1].prediction: 3 is not of type 'string'"),
    ({"object_scores": ["high"]}, "cases[1].object_scores[0]: 'high' is not of type 'number'"),
])  # fmt: skip
def test_wrong_values_of_a_case_are_named(run: Path, value: dict[str, Any], said: str) -> None:
    change_case(run, 1, **value)
    with pytest.raises(UserError) as caught:
        Evaluation.load(run)
    assert said in str(caught.value)
    assert "evaluation.json" in str(caught.value)


def test_cases_need_names_of_their_own(run: Path) -> None:
    change_case(run, 1, case="case_0")
    refused("'case_0' twice", Evaluation.load, run)
    change_case(run, 1, case="case_1", image="")
    refused(r"cases\[1\] has no 'image'", Evaluation.load, run)


@pytest.mark.parametrize(("content", "said"), [("", "not JSON"), ("[]", "holds a list"), (None, "does not exist")])
def test_a_file_that_is_none(run: Path, content: str | None, said: str) -> None:
    path = run / "evaluation.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    refused(said, Evaluation.load, run)


def case(name: str, pixels: str, whole: str | None = None, **entry: Any) -> LoadedCase:
    return LoadedCase({"case": name, **entry}, [], (), None, None, (4, 5), (pixels, whole or pixels))


def ledger(*images: str, patients: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"images": list(images), "patients": patient_hashes(patients, "salt"), "salt": "salt"}


TESTED = [case("a", "1", patient_id="x"), case("b", "2", patient_id="y")]


@pytest.mark.parametrize(("seen", "support", "kind", "overlapping"), [
    (None, [], "unknown", []),
    (ledger("9"), [], "inductive", []),
    (ledger("9", patients=("z",)), [], "inductive", []),
    (ledger("2"), [], "transductive", ["b"]),
    (ledger("9", patients=("x", "z")), [], "patients shared", ["a"]),
    (ledger("2", patients=("x",)), [], "transductive", ["b"]),  # the worse of the two
    (ledger(), [case("c", "3", patient_id="y")], "patients shared", ["b"]),
    (ledger(), [case("c", "1")], "transductive", ["a"]),
    # What is certain is said even where the backbone's images are not known.
    (None, [case("c", "1")], "transductive", ["a"]),
    (None, [case("c", "3", patient_id="y")], "patients shared", ["b"]),
])  # fmt: skip
def test_kinds(seen: Any, support: list[LoadedCase], kind: str, overlapping: list[str]) -> None:
    found = find_provenance(TESTED, seen, cases_ledger(support))
    assert (found.kind, list(found.overlapping)) == (kind, overlapping)
    assert found.sentence.endswith(".")


def test_labels_that_a_pre_training_saw_are_told_first() -> None:
    labelled = {**ledger("1", "9"), "labelled": {"1": "1", "9": "9"}}
    seen = find_provenance(TESTED, labelled, cases_ledger([]))
    assert (seen.kind, seen.overlapping, seen.labels_seen) == ("transductive", ("a",), 2)
    assert seen.sentence.startswith("THE LABELS OF 1 OF 2 TEST IMAGES WERE SEEN")
    assert seen.sentence.endswith(find_provenance(TESTED, ledger("1", "9")).sentence)
    new = find_provenance(TESTED[1:], labelled, cases_ledger([]))
    assert new.kind == "inductive"
    assert new.sentence.startswith("The encoder's pre-training saw the labels of 2 images, which count beside those")
    # Of a whole image of which a part was labelled, and of another part of it.
    part = {**ledger("p", "whole"), "labelled": {"p": "whole"}}
    assert "THE LABELS OF 1" in find_provenance([case("a", "whole")], part).sentence
    other = find_provenance([case("a", "q", "whole")], part)
    assert (other.kind, other.labels_seen) == ("patients shared", 1)
    assert "TEST IMAGES WERE SEEN" not in other.sentence


def test_ledgers_of_labels_are_joined_and_older_ones_stay_as_they_are() -> None:
    plain = make_ledger(["a"])
    assert plain.keys() == {"images", "patients", "salt"}
    first, second = make_ledger(["a", "b"], labelled={"b": "b"}), make_ledger(["b", "c"], labelled={"b": "b", "c": "w"})
    joined = join_ledgers([first, second, plain])
    assert joined is not None
    assert joined["labelled"] == {"b": "b", "c": "w"}
    unlabelled = join_ledgers([plain, plain])
    assert unlabelled is not None
    assert "labelled" not in unlabelled
    assert Provenance("inductive", (), "x").as_dict() == {"kind": "inductive", "overlapping": (), "sentence": "x"}


def test_another_part_of_a_seen_image_counts_as_its_patient() -> None:
    found = find_provenance([case("left", "1", "whole"), case("other", "2", "elsewhere")], ledger("9", "whole"))
    assert (found.kind, list(found.overlapping)) == ("patients shared", ["left"])


def test_a_ledger_holds_no_patient_in_clear() -> None:
    made = cases_ledger([case("c", "3", "whole", patient_id="patient y")])
    assert made["images"] == ["3", "whole"]
    assert "patient y" not in str(made)


@pytest.mark.parametrize(("cases", "ledgers", "named"), [
    (TESTED, [ledger("9", patients=("z",))], True),
    (TESTED, [ledger()], True),  # trained on nothing
    (TESTED, [ledger("9")], False),  # its list named no patients
    (TESTED, [ledger("9"), cases_ledger([case("c", "3", patient_id="z")])], False),  # nor a labelled one
    ([case("a", "1")], [ledger("9", patients=("z",))], False),
])  # fmt: skip
def test_patients_are_called_new_only_where_they_are_named(cases: list, ledgers: list, named: bool) -> None:
    found = find_provenance(cases, *ledgers)
    assert found.kind == "inductive"
    assert ("none of the patients" in found.sentence) == named
