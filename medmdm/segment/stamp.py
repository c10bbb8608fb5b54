"""What the backbone has seen of the test cases, from the ledger in its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmdm.engines.plan import patient_hashes
from medmdm.segment.reading import LoadedCase

__all__ = ["ledger_stamp"]


def ledger_stamp(
    cases: Sequence[LoadedCase], ledger: Mapping[str, Any] | None, support: Sequence[LoadedCase] = ()
) -> dict[str, Any]:
    """Compare test cases with the images and patients that a backbone and its head were trained on.

    Args:
        cases: that are tested.
        ledger: of the backbone's plan, ``{"images": hashes, "patients": salted hashes, "salt": ...}``; None where it is
            not known what the backbone was trained on; empty for a network that saw nothing but the support.
        support: the labelled cases that the head was trained on.

    Returns:
        ``{"kind": ..., "overlapping": [names], "sentence": ...}``, the kind being "transductive", "patients shared",
        "inductive" or "unknown".
    """
    if ledger is None:
        return {
            "kind": "unknown",
            "overlapping": [],
            "sentence": "It is not known which images the encoder was trained on: its weights come without a ledger.",
        }
    images = set(ledger.get("images", ()))
    seen_by_head = {case.hashes[0] for case in support}
    seen = [case.name for case in cases if case.hashes[0] in images or case.hashes[0] in seen_by_head]
    if seen:
        sentence = f"{len(seen)} of {len(cases)} test images were seen in training, without or with labels."
        return {"kind": "transductive", "overlapping": seen, "sentence": sentence}
    patients = set(ledger.get("patients", ()))
    ids = sorted({str(case.entry["patient_id"]) for case in cases if "patient_id" in case.entry})
    salt = str(ledger.get("salt", ""))
    shared_ids = {i for i in ids if patients and patient_hashes([i], salt)[0] in patients}
    shared_ids |= {str(case.entry["patient_id"]) for case in support if "patient_id" in case.entry} & set(ids)
    wholes = images | {case.hashes[1] for case in support}
    shared = [
        case.name for case in cases if str(case.entry.get("patient_id")) in shared_ids or case.hashes[1] in wholes
    ]
    if shared:
        sentence = (
            f"The test images are new, but {len(shared)} of {len(cases)} are of patients (or parts of "
            "images) that training saw, so the scores are for new images of known patients."
        )
        return {"kind": "patients shared", "overlapping": shared, "sentence": sentence}
    known = all("patient_id" in case.entry for case in cases)
    sentence = "No test image was seen in training" + (
        " and no test patient." if known and (patients or support) else "; patients are not known."
    )
    return {"kind": "inductive", "overlapping": [], "sentence": sentence}
