"""Hashes of cases that were read: of what a run or a cell of a study was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmdm.data.reading import LoadedCase
from medmdm.files import lines_hash, pixel_hash, text_hash


def content_hash(case: LoadedCase) -> str:
    """Return hashes of a case's image and label, whatever the file formats."""
    return f"{case.hashes[0]} {'' if case.truth is None else pixel_hash(np.ascontiguousarray(case.truth))}"


def data_hash(**sections: Sequence[LoadedCase]) -> str:
    """Return one SHA-256 for the images and labels of the sections, whatever their order and file formats.

    An image that moves from one section to another changes it.
    """
    lines = [f"{section} {content_hash(case)}" for section, cases in sections.items() for case in cases]
    return lines_hash(lines)


def data_identity(sections: Mapping[str, Sequence[LoadedCase]], others: Sequence[LoadedCase] = ()) -> dict[str, Any]:
    """Return what a record says of the cases of the sections, and of ``others``, which are learnt from unlabelled.

    That is ``hash`` (:func:`data_hash`), ``arrangement`` (one SHA-256 that covers names and order as well, on which
    draws depend) and the number of cases of each section.
    """
    counts = {f"{section}_cases": len(cases) for section, cases in sections.items()}
    every = {**sections, "others": others}
    named = {section: [[case.name, content_hash(case)] for case in cases] for section, cases in every.items()}
    return {"hash": data_hash(**sections), "arrangement": text_hash(json.dumps(named)), **counts}
