"""MONAI transforms that MONAI does not have."""

from __future__ import annotations
