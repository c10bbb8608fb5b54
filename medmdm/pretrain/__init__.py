"""Pre-training: the trainer, its handlers, checkpoints and log."""

from medmdm.pretrain.checkpoints import Checkpoints
from medmdm.pretrain.log import StepLog, announce, data_record
from medmdm.pretrain.optimization import EMA, Optimization
from medmdm.pretrain.preview import Preview
from medmdm.pretrain.probe import Probe
from medmdm.pretrain.trainer import MDMTrainer

__all__ = ["EMA", "Checkpoints", "MDMTrainer", "Optimization", "Preview", "Probe", "StepLog", "announce", "data_record"]
