"""Who is one patient: the one rule for data lists, divisions, ledgers, statistics and reports."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import Any

from medmdm.errors import UserError

_UNKNOWN = ("nan", "none", "<na>", "nat")
_WHOLE = re.compile(r"(\d+)\.0+")  # what pandas makes of whole numbers where one of them is missing


def patient_id(value: Any) -> str | None:
    """Return the id that stands for a patient.

    ``1``, ``"1"``, ``" 1"``, ``1.0`` and ``"1.0"`` are one patient, ``"01"`` is another.

    Args:
        value: text or a whole number; ``None`` and NaN mean that the patient is not known, and so do the texts that
            pandas makes of them.

    Returns:
        Text without blanks around it, ``None`` where the patient is not known.

    Raises:
        UserError: it is neither, or empty. The sentence does not show it.
    """
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return None
    text = value.strip() if isinstance(value, str) else ""
    if isinstance(value, Real) and not isinstance(value, bool) and (isinstance(value, Integral) or value % 1 == 0):
        text = str(int(float(value) if not isinstance(value, Integral) else value))
    if not text:
        raise UserError("'patient_id' must be text or a whole number.")
    if text.lower() in _UNKNOWN:
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text
