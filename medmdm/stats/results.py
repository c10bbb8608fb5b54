"""What statistics return: frozen dataclasses that become JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["Result", "json_ready"]


class Result:
    """A frozen dataclass of numbers, which may hold others."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON, inner results flat: ``None`` for what is not a finite number."""
        content: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            content |= value.as_dict() if isinstance(value, Result) else {field.name: json_ready(value)}
        return content


def json_ready(content: Any) -> Any:
    """Return ``content`` with plain numbers and lists, and ``None`` for NaN and infinities, which JSON lacks."""
    if isinstance(content, dict):
        return {str(key): json_ready(entry) for key, entry in content.items()}
    if isinstance(content, (list, tuple, np.ndarray)):
        return [json_ready(entry) for entry in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
