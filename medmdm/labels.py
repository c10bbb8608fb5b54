"""What the numbers in labels mean."""

from __future__ import annotations

IGNORE = 255  # pixels that losses and metrics leave out
LABEL_TYPES = ("classes", "instances")
