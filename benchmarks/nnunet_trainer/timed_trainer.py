"""nnU-Net's trainer with a time instead of a number of epochs; loaded by nnU-Net itself (``nnUNet_extTrainer``)."""

from __future__ import annotations

import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

TIMED = 3  # iterations by which a time becomes a number of them, after one that is not counted
EPOCHS = 20  # in which the learning rate falls


class TimedTrainer(nnUNetTrainer):
    """Trains for ``MINUTES`` (an environment variable), the learning rate falling over that time as it always does."""

    def on_train_start(self) -> None:
        """Count the iterations that fit into the time, by those of a network that is thrown away."""
        super().on_train_start()
        kept = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.train()
        batches = [next(self.dataloader_train) for _ in range(TIMED + 1)]
        self.train_step(batches[0])
        started = time.perf_counter()
        for batch in batches[1:]:
            self.train_step(batch)
        each = (time.perf_counter() - started) / TIMED
        self.network.load_state_dict(kept)
        iterations = max(1, round(60 * float(os.environ["MINUTES"]) / each))
        self.num_epochs = min(EPOCHS, iterations)
        self.num_iterations_per_epoch = max(1, round(iterations / self.num_epochs))
        self.num_val_iterations_per_epoch = 1
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.print_to_log_file(f"{self.num_epochs * self.num_iterations_per_epoch} iterations of {each:.2f} s")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Do nothing: the images of "fold all" are those that were trained on."""

    def run_training(self) -> None:
        """Train, on as many threads as the environment allows."""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        super().run_training()
