"""What the numbers in labels mean."""

from __future__ import annotations

IGNORE = 255  # pixels that losses and metrics leave out, unless the list declares a class of that number
LABEL_TYPES = ("classes", "instances")
