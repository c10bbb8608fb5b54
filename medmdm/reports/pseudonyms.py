"""Taking patients out of what leaves a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Pseudonyms"]

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

    def name(self, patient: str | None) -> str | None:
        """Return what stands for a patient."""
        return None if patient is None else self._names[patient]

    def clean(self, text: str) -> str:
        """Return text without patient ids."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._names[match.group()], text)

    def clean_all(self, content: Any) -> Any:
        """Return JSON-able content without patient ids, in keys and in values.

        Text under keys such as ``patient_id`` is hidden whether it is known as an id or not.
        """
        if isinstance(content, str):
            return self.clean(content)
        if isinstance(content, Mapping):
            return {
                self.clean(str(key)): self.clean_all(self._hidden(value) if "patient" in str(key).lower() else value)
                for key, value in content.items()
            }
        if isinstance(content, (list, tuple)):
            return [self.clean_all(value) for value in content]
        return content

    def _hidden(self, value: Any) -> Any:
        """Return what stands for the value of a key about patients: ids of one character are ids too."""
        if isinstance(value, str) and not self._keep:
            return self._names.get(value, value if value in self._names.values() else "(hidden)")
        return [self._hidden(one) for one in value] if isinstance(value, (list, tuple)) else value
