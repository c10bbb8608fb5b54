"""A run: its config, its folder and record, its processes, and what it has seen."""

from __future__ import annotations

from medmdm.runs import config, processes
from medmdm.runs.folder import RunFolder

__all__ = ["RunFolder", "config", "processes"]
