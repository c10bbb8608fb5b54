"""Turning the wheel: the pre-training engine, its handlers, and the record of a run."""

from __future__ import annotations

from medmdm.engines.announce import announce, data_record
from medmdm.engines.checkpoints import Checkpoints
from medmdm.engines.ema import EMA
from medmdm.engines.plan import make_plan, patient_hashes
from medmdm.engines.preview import Preview, score_names
from medmdm.engines.run_folder import RunFolder
from medmdm.engines.step_log import StepLog
from medmdm.engines.trainer import MDMTrainer

__all__ = [
    "EMA",
    "Checkpoints",
    "MDMTrainer",
    "Preview",
    "RunFolder",
    "StepLog",
    "announce",
    "data_record",
    "make_plan",
    "patient_hashes",
    "score_names",
]
