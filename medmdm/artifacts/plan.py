"""The plan inside a weights file: what a later step needs to know and must not ask the user for again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medmdm.components import to_config
from medmdm.objectives.objective import Objective

__all__ = ["PLAN_FORMAT", "make_ledger", "make_plan", "patient_hashes"]

PLAN_FORMAT = 1


def make_plan(
    network: Mapping[str, Any],
    objective: Objective,
    channels: int,
    crop_size: Sequence[int],
    image_hashes: Iterable[str],
    patient_ids: Iterable[str] = (),
    intensity_range: Sequence[float] | None = None,
    percentiles: Mapping[str, Any] | None = None,
    spacing: Sequence[float] | None = None,
    slice_axis: str | None = None,
    context_slices: int = 0,
) -> dict[str, Any]:
    """Collect the plan of a pre-training run.

    Args:
        network: ``_target_`` and arguments from which it is made again.
        objective: what it learnt: corruption, timesteps and target are recorded.
        channels: channels of the images.
        crop_size: size of the training crops in pixels.
        image_hashes: SHA-256 of the decoded pixels of each training image.
        patient_ids: whose images they are, where known; only salted hashes go into the plan.
        intensity_range: stored values that became -1 and 1; None for the full range of the files' type.
        percentiles: ``{"lower": %, "upper": %, "nonzero": bool}`` of each volume (or picture) that became -1 and 1.
        spacing: mm between the pixels (rows, columns) to which images were resampled; None for their own.
        slice_axis: along which volumes were cut.
        context_slices: neighbours on each side of a slice that became channels.

    Returns:
        A JSON-able dictionary.
    """
    return {
        "format": PLAN_FORMAT,
        "network": dict(network),
        "corruption": to_config(objective.corruption),
        "timesteps": to_config(objective.timesteps),
        "num_timesteps": objective.corruption.num_timesteps,
        "target": objective.target,
        "channels": channels,
        "crop_size": list(crop_size),
        "intensity_range": None if intensity_range is None else list(intensity_range),
        "percentiles": percentiles,
        "spacing": None if spacing is None else list(spacing),
        "slice_axis": slice_axis,
        "context_slices": context_slices,
        "ledger": make_ledger(image_hashes, patient_ids),
    }


def make_ledger(image_hashes: Iterable[str] = (), patient_ids: Iterable[str] = ()) -> dict[str, Any]:
    """Return what training saw: ``{"images": hashes, "patients": salted hashes, "salt": ...}``; empty for nothing.

    Args:
        image_hashes: SHA-256 of the decoded pixels of each image.
        patient_ids: whose images they are, where known.
    """
    images = sorted(set(image_hashes))
    salt = hashlib.sha256("".join(images).encode()).hexdigest()[:32]
    return {"images": images, "patients": patient_hashes(patient_ids, salt), "salt": salt}


def patient_hashes(patient_ids: Iterable[str], salt: str) -> list[str]:
    """Return the sorted salted hashes of patient ids (PBKDF2, so that short ids are slow to guess).

    The salt follows from the training images, so that two runs on the same images write the same file; whoever wants
    to know if a patient of theirs is in a ledger hashes the id with the ledger's salt.
    """
    distinct = sorted({str(patient) for patient in patient_ids})
    return sorted(hashlib.pbkdf2_hmac("sha256", p.encode(), salt.encode(), 20_000).hex() for p in distinct)
