"""A run: its config, its folder and record, its processes, and what it has seen."""

from medmdm.runs import config, processes
from medmdm.runs.cluster import Cluster
from medmdm.runs.folder import RunFolder

__all__ = ["Cluster", "RunFolder", "config", "processes"]
