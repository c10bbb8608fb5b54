"""What the backbone has seen of the test cases."""

from __future__ import annotations

from typing import Any

import pytest

from medmdm.artifacts.pretrained import patient_hashes
from medmdm.data.reading import LoadedCase
from medmdm.runs.record import find_provenance, support_ledger


def case(name: str, pixels: str, whole: str | None = None, **entry: Any) -> LoadedCase:
    return LoadedCase({"case": name, **entry}, [], (), None, None, (4, 5), (pixels, whole or pixels))


def ledger(*images: str, patients: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"images": list(images), "patients": patient_hashes(patients, "salt"), "salt": "salt"}


TESTED = [case("a", "1", patient_id="x"), case("b", "2", patient_id="y")]


@pytest.mark.parametrize(
    ("seen", "support", "kind", "overlapping"),
    [
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
    ],
)
def test_kinds(seen: Any, support: list[LoadedCase], kind: str, overlapping: list[str]) -> None:
    found = find_provenance(TESTED, seen, support_ledger(support))
    assert (found.kind, list(found.overlapping)) == (kind, overlapping)
    assert found.sentence.endswith(".")


def test_another_part_of_a_seen_image_counts_as_its_patient() -> None:
    parts = [case("left", "1", "whole"), case("other", "2", "elsewhere")]
    found = find_provenance(parts, ledger("9", "whole"))
    assert (found.kind, list(found.overlapping)) == ("patients shared", ["left"])


def test_a_ledger_holds_no_patient_in_clear() -> None:
    made = support_ledger([case("c", "3", "whole", patient_id="patient y")])
    assert made["images"] == ["3", "whole"]
    assert "patient y" not in str(made)


@pytest.mark.parametrize(
    ("cases", "ledgers", "named"),
    [
        (TESTED, [ledger("9", patients=("z",))], True),
        (TESTED, [ledger()], True),  # trained on nothing
        (TESTED, [ledger("9")], False),  # its list named no patients
        (
            TESTED,
            [ledger("9"), support_ledger([case("c", "3", patient_id="z")])],
            False,
        ),  # nor a labelled one
        ([case("a", "1")], [ledger("9", patients=("z",))], False),
    ],
)
def test_patients_are_called_new_only_where_they_are_named(cases: list, ledgers: list, named: bool) -> None:
    found = find_provenance(cases, *ledgers)
    assert found.kind == "inductive"
    assert ("none of the patients" in found.sentence) == named
