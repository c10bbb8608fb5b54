"""What stands for patients, and for paths, in all that leaves a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from medmdm.files import local_path_name
from medmdm.runs.record import Evaluation

_SHORTEST = 4  # characters of an id that is looked for inside other text: a "7" is in many names by chance


class Pseudonyms:
    """Numbers in the place of patient ids: ``P1``, ``P2``, ... in the order in which the cases are listed.

    A number says nothing of the id, whatever its length; hashes of short ids can be undone by trying all of them, for
    their salt has to be the same each time. Ids of four and more characters are replaced wherever they stand as a word:
    file names of public sets hold them (``TCGA-18-5592-01Z``).

    Args:
        patients: the ids by case; ``None`` for cases without one.
        keep: leave everything as it is.
    """

    def __init__(self, patients: Iterable[str | None], keep: bool = False) -> None:
        self._keep = keep
        distinct = list(dict.fromkeys(patient for patient in patients if patient is not None))
        width = len(str(len(distinct)))
        self._names = {patient: patient if keep else f"P{i:0{width}}" for i, patient in enumerate(distinct, 1)}
        hidden = sorted((p for p in distinct if len(p) >= _SHORTEST), key=len, reverse=True)
        words = "|".join(re.escape(patient) for patient in hidden)
        # Not inside a longer word, so that the patient 1234 does not change image_12345.
        self._pattern = re.compile(f"(?<![0-9A-Za-z])(?:{words})(?![0-9A-Za-z])") if words and not keep else None

    @classmethod
    def of(cls, evaluations: Iterable[Evaluation], keep: bool = False) -> Pseudonyms:
        """Return those of the patients of evaluations, the tested ones first, then those that a head learnt from."""
        known = list(evaluations)
        tested = [case.patient for one in known for case in one.cases]
        learnt = [str(patient) for one in known for patient in one.protocol.get("training_patients") or ()]
        return cls([*tested, *learnt], keep)

    def name(self, patient: str | None) -> str | None:
        """Return what stands for a patient."""
        return None if patient is None else self._names[patient]

    def clean(self, text: str) -> str:
        """Return text without patient ids."""
        return text if self._pattern is None else self._pattern.sub(lambda match: self._names[match.group()], text)

    def clean_all(self, content: Any) -> Any:
        """Return JSON-able content without patient ids, in keys and in values.

        Text under keys such as ``patient_id`` is hidden whether it is known as an id or not.
        """
        if isinstance(content, str):
            return self.clean(content)
        if isinstance(content, Mapping):
            held = ((str(k), self._hidden(v) if "patient" in str(k).lower() else v) for k, v in content.items())
            return {self.clean(key): self.clean_all(value) for key, value in held}
        if isinstance(content, (list, tuple)):
            return [self.clean_all(value) for value in content]
        return content

    def _hidden(self, value: Any) -> Any:
        """Return what stands for the value of a key about patients: ids of one character are ids too."""
        if isinstance(value, str) and not self._keep:
            return self._names.get(value, value if value in self._names.values() else "(hidden)")
        return [self._hidden(one) for one in value] if isinstance(value, (list, tuple)) else value


def without_paths(content: Any) -> Any:
    """Return JSON-able content with the last name of each absolute path in its place; an address stays as it is."""
    if isinstance(content, str):
        name = local_path_name(content)
        return content if name is None else name
    if isinstance(content, Mapping):
        return {key: without_paths(value) for key, value in content.items()}
    return [without_paths(value) for value in content] if isinstance(content, (list, tuple)) else content


def public_protocol(evaluation: Evaluation) -> dict[str, Any]:
    """Return how a model came about, without paths, and without names of cases whose patients are not known.

    Records of medmdm 0.1 name the training cases and not their patients, so that no id could be found in them.
    """
    protocol = dict(evaluation.protocol)
    if "training_cases" in protocol and "training_patients" not in protocol:
        protocol["training_cases"] = f"{len(protocol['training_cases'])} (names not shown)"
    return without_paths(protocol)
