"""Which samples make up the batch of a training step: a function of the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from medmdm.errors import UserError

__all__ = ["StepSampler"]


class StepSampler(Sampler[list[int]]):
    """Batch sampler that gives step ``s`` the samples ``s·G … s·G + G − 1``, G being the global batch.

    With a data set whose sample ``k`` depends on ``k`` only (:class:`medmdm.data.CropDataset`) this makes a step the
    same whatever the number of workers and processes, and after resuming: set :attr:`start_step` before iterating.

    Args:
        num_steps: number of the step to stop before, counted from 0 (not from ``start_step``).
        batch_size: global batch G, the sum over all processes.
        start_step: first step to give.
        rank: this process, in ``0 … world_size − 1``; it gets its contiguous share of every batch.
        world_size: number of processes; must divide ``batch_size``.

    Raises:
        UserError: a number is out of range or the batch cannot be shared equally.
    """

    def __init__(
        self, num_steps: int, batch_size: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_steps < 0:
            raise UserError(f"num_steps is {num_steps}: give 0 or more")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give 1 or more")
        if start_step < 0:
            raise UserError(f"start_step is {start_step}: give 0 or more")
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank}: with world_size {world_size} it must be 0 … {world_size - 1}")
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be shared equally by {world_size} processes: give a multiple of "
                f"{world_size}"
            )
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.num_steps):
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)
