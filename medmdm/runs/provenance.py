"""What training saw of the test cases, by the ledgers of the backbone and of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.artifacts.plan import make_ledger, patient_hashes
from medmdm.data.reading import LoadedCase
from medmdm.runs.record import Provenance

__all__ = ["find_provenance", "support_ledger"]


def support_ledger(support: Sequence[LoadedCase]) -> dict[str, Any]:
    """Return the ledger of the labelled cases that a head was trained on, in the form of a backbone's."""
    hashes = [digest for case in support for digest in case.hashes]
    return make_ledger(hashes, [str(case.entry["patient_id"]) for case in support if "patient_id" in case.entry])


def find_provenance(cases: Sequence[LoadedCase], *ledgers: Mapping[str, Any] | None) -> Provenance:
    """Compare test cases with the images and patients that trained.

    Args:
        cases: that are tested.
        *ledgers: of the backbone's plan and of the labelled support: ``{"images": hashes, "patients": salted hashes,
            "salt": ...}``; None where it is not known what trained.

    Returns:
        The kind is the worst that is certain: "transductive", "patients shared", "unknown" where a ledger is missing,
        or "inductive".
    """
    known = [ledger for ledger in ledgers if ledger is not None]
    images = {digest for ledger in known for digest in ledger["images"]}
    seen = [case.name for case in cases if case.hashes[0] in images]
    if seen:
        sentence = f"{len(seen)} of {len(cases)} test images were seen in training, with or without labels."
        return Provenance("transductive", tuple(seen), sentence)
    ids = {str(case.entry["patient_id"]) for case in cases if "patient_id" in case.entry}
    shared_ids = {i for ledger in known for i in ids if _holds_patient(ledger, i)}
    shared = [case.name for case in cases if case.entry.get("patient_id") in shared_ids or case.hashes[1] in images]
    if shared:
        sentence = (
            f"The test images are new, but {len(shared)} of {len(cases)} are of patients (or parts of images) that "
            "training saw, so the scores are for new images of known patients."
        )
        return Provenance("patients shared", tuple(shared), sentence)
    if len(known) < len(ledgers):
        sentence = "It is not known which images the encoder was trained on: its weights come without a ledger."
        return Provenance("unknown", (), sentence)
    # A list without patient ids leaves a ledger of images alone: then nobody can say that the patients are new.
    named = all("patient_id" in case.entry for case in cases)
    named = named and all(ledger["patients"] or not ledger["images"] for ledger in known)
    sentence = "No test image was seen in training" + (
        ", and none of the patients that the data lists name." if named else "; whether patients were is not known."
    )
    return Provenance("inductive", (), sentence)


def _holds_patient(ledger: Mapping[str, Any], patient: str) -> bool:
    return bool(ledger["patients"]) and patient_hashes([patient], str(ledger["salt"]))[0] in ledger["patients"]
