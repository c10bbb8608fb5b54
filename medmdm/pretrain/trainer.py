"""The pre-training engine: MONAI's supervised trainer with the objective of masked diffusion."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from medmdm.corruption import Corruption, Generators
from medmdm.errors import UserError
from medmdm.memory import keep_freed_memory
from medmdm.objectives.losses import ReconstructionLoss, WeightedSumLoss
from medmdm.objectives.target import check_target, restored
from medmdm.pretrain.checkpoints import Checkpoints, get_random_state, set_random_state
from medmdm.pretrain.dry_run import dry_run
from medmdm.pretrain.ema import EMA
from medmdm.runs.folder import RunFolder
from medmdm.runs.processes import is_main_process, rank, unwrap

__all__ = ["MDMTrainer"]

logger = logging.getLogger(__name__)

AMP_DTYPES = {None: None, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MDMTrainer(SupervisedTrainer):
    """Train a network to restore corrupted images (arXiv 2308.05695, section 3).

    One iteration of the engine is one optimiser step on one batch, whatever the number of micro-batches. Timestep and
    corruption of an image are drawn from the run's seed and the sample's number alone, so that neither the number of
    processes, micro-batches or loader workers nor an interruption changes what is learnt.

    Args:
        device: where to train.
        max_epochs: always 1: the run is counted in steps, images are drawn with replacement.
        epoch_length: number of optimiser steps of the whole run.
        train_data_loader: yields ``{"image": [B, C, *spatial] in [-1, 1], "index": [B] sample numbers}``; its batch
            sampler has a ``start_step`` that is set when a run resumes.
        network: called as ``network(x_t, t)``; a ``DistributedDataParallel`` wrapper is fine.
        optimizer: over the network's parameters.
        loss_function: called as ``loss(pred, target, visible)`` for the losses of ``medmdm.objectives``, else as
            ``loss(pred, target)``; always in float32 outside autocast.
        corruption: ``corrupt(x0, t, generators)``.
        timesteps: ``draw(batch_size, generators, device)``.
        ema: moving average of the network's weights, or None.
        target: what the network predicts: ``"image"`` or, for corruptions that add noise, ``"noise"``.
        seed: of timesteps, corruption and dropout.
        amp_dtype: ``"bfloat16"`` or ``"float16"`` for mixed precision on any device; "float32" or None for none.
        accumulation_steps: micro-batches into which each batch is cut.
        max_grad_norm: clip the gradient's global L2 norm to this, or None.
        lr_scheduler: stepped after each optimiser step, or None.
        compile: run the network through ``torch.compile``.
        checkpoints: where the run's state is saved and resumed from, or None.
        run_folder: the run's record and weights file, or None.
        inferer: MONAI inferer, default ``SimpleInferer``.
        train_handlers: MONAI or ignite handlers; checkpoints are saved after they have run.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        epoch_length: int,
        train_data_loader: DataLoader,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[..., Tensor],
        corruption: Corruption,
        timesteps: Callable[[int, Generators, torch.device], Tensor],
        ema: EMA | None = None,
        target: str = "image",
        seed: int = 0,
        amp_dtype: str | None = None,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        lr_scheduler: Any | None = None,
        compile: bool = False,
        checkpoints: Checkpoints | None = None,
        run_folder: RunFolder | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        if max_epochs != 1:
            raise UserError(f"max_epochs must stay 1, got {max_epochs}: set the length of a run with max_steps.")
        if amp_dtype not in AMP_DTYPES:
            raise UserError(f"amp_dtype must be 'bfloat16', 'float16', 'float32' or null, got {amp_dtype!r}.")
        if accumulation_steps < 1:
            raise UserError(f"accumulation_steps must be at least 1, got {accumulation_steps}.")
        check_target(target, corruption)
        super().__init__(
            device=device,
            max_epochs=1,
            epoch_length=epoch_length,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            inferer=inferer,
            train_handlers=train_handlers,
            decollate=False,
            optim_set_to_none=True,
        )
        self.corruption = corruption
        self.timesteps = timesteps
        self.ema = ema
        self.target = target
        self.seed = seed
        self.amp_dtype = AMP_DTYPES[amp_dtype]
        self.micro_batches = accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.lr_scheduler = lr_scheduler
        self.checkpoints = checkpoints
        self.run_folder = run_folder
        self.scaler = torch.amp.GradScaler(self.state.device.type, enabled=self.amp_dtype == torch.float16)
        self.wants_visible = isinstance(loss_function, (ReconstructionLoss, WeightedSumLoss))
        self.loss_function = (
            loss_function.to(self.state.device) if isinstance(loss_function, nn.Module) else loss_function
        )
        # Sum and number of losses since the last line of the log: part of the state, so that a resumed run writes
        # the same line.
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.loss_count = 0
        if compile:
            unwrap(network).compile()  # in place: parameter names stay as they are
        if checkpoints is not None:
            self.add_event_handler(Events.ITERATION_COMPLETED(every=checkpoints.every), self.save)

    # -- one step ------------------------------------------------------------------------------------------------

    def generators(self, indices: Tensor) -> list[torch.Generator]:
        """Return one generator for each sample, seeded by the run's seed and the sample's number.

        They live on the CPU, so that a GPU sees the same timesteps and the same damage.
        """
        return [torch.Generator().manual_seed(_mix(self.seed, 1, int(k))) for k in indices]

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        device, network = self.state.device, self.network
        images = batchdata[Keys.IMAGE].to(device, non_blocking=True)
        # Dropout and the like draw from the global generator: seeded a step, a resumed run draws the same.
        torch.manual_seed(_mix(self.seed, 2, self.state.iteration, rank()))
        generators = self.generators(batchdata["index"])
        t = self.timesteps(len(images), generators, device)
        corrupted = self.corruption(images, t, generators)
        target = images if self.target == "image" else corrupted.noise
        assert target is not None  # check_target
        if len(images) % self.micro_batches:
            raise UserError(
                f"A batch of {len(images)} images cannot be cut into {self.micro_batches} equal parts: "
                "choose an accumulation_steps that divides it."
            )

        network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        parts = [x.chunk(self.micro_batches) for x in (corrupted.x_t, t, target, corrupted.visible)]
        for part, (x_t, t_, target_, visible) in enumerate(zip(*parts, strict=True), start=1):
            # Processes exchange gradients once a step, after the last micro-batch.
            wait = part < self.micro_batches and isinstance(network, DistributedDataParallel)
            with network.no_sync() if wait else contextlib.nullcontext():
                with torch.autocast(device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                    pred = self.inferer(x_t, network, t_)
                pred = pred.float()[:, : target_.shape[1]]  # a learnt sigma's channels are not part of the objective
                extra = (visible,) if self.wants_visible else ()
                part_loss = self.loss_function(pred, target_, *extra)
                self.scaler.scale(part_loss / self.micro_batches).backward()
            loss += part_loss.detach() / self.micro_batches
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self._require_finite("loss", loss)
        grad_norm = self._optimizer_step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        self.loss_sum += loss.double().cpu()
        self.loss_count += 1
        return {Keys.LOSS: loss, "grad_norm": grad_norm, "batch_size": len(images)}

    def _optimizer_step(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        bound = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), bound)
        if not self.scaler.is_enabled():  # the scaler skips such a step by itself
            self._require_finite("gradient", grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            if self.ema is not None:
                self.ema.update(self.network)
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
        return grad_norm

    def _require_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            kept = self.checkpoints.paths()[-1:] if self.checkpoints is not None else []
            raise UserError(
                f"The {what} became {float(value)} at step {self.state.iteration}; "
                + (f"the last good checkpoint is {kept[0]}; " if kept else "no checkpoint had been written yet; ")
                + "try a lower learning rate, gradient clipping (max_grad_norm) or amp_dtype 'bfloat16' or 'float32'."
            )

    @torch.no_grad()
    def restore(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the image that the averaged weights see in ``x_t``, in float32 and evaluation mode."""
        network = unwrap(self.network) if self.ema is None else self.ema
        training = network.training
        network.eval()
        with torch.autocast(self.state.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            pred = network(x_t, t)
        network.train(training)
        return restored(pred.float()[:, : x_t.shape[1]], x_t, t, self.target, self.corruption)

    # -- a run ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on with the same bits."""
        return {
            "step": self.state.iteration,
            "network": unwrap(self.network).state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": get_random_state(),
            "loss_sum": self.loss_sum.clone(),
            "loss_count": self.loss_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, and start the loader at the step after it."""
        self.state.iteration = state["step"]
        unwrap(self.network).load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])
        self.loss_sum = state["loss_sum"].cpu()
        self.loss_count = state["loss_count"]
        self.data_loader.batch_sampler.start_step = state["step"]

    def save(self) -> None:
        """Write a checkpoint and the weights file; only the main process writes."""
        if is_main_process():
            if self.checkpoints is not None:
                self.checkpoints.save(self.state.iteration, self.state_dict())
            self.export()

    def export(self) -> None:
        """Write ``model.pt``: the averaged weights and the plan."""
        if self.run_folder is not None:
            weights = unwrap(self.network) if self.ema is None else self.ema.module
            self.run_folder.save_model(weights.state_dict(), self.state.iteration)

    def dry_run(self) -> None:
        """Print what the run would do and cost, after one batch; write nothing."""
        plan = dry_run(self)
        if is_main_process():
            print(plan)

    def run(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            UserError: if the run folder belongs to another configuration, or the loss is no longer finite.
            SystemExit: with status 130 or 143 after an interrupt or a termination signal, once the state is saved.
        """
        last = self.state.epoch_length
        if self.run_folder is not None:
            self.run_folder.open()
        checkpoint = None if self.checkpoints is None else self.checkpoints.load_newest(self.state.device)
        if checkpoint is not None:
            self.load_state_dict(checkpoint)
        if self.state.iteration >= last:
            if self.run_folder is not None and is_main_process() and self.run_folder.saved_steps() != last:
                self.export()
                self.run_folder.finish(last)
            logger.info("This run is finished: all %d steps are done.", last)
            return
        if self.state.device.type == "cpu":
            keep_freed_memory()
        if checkpoint is not None:
            logger.info("Going on after step %d of %d.", self.state.iteration, last)
        with _terminate_on_signal(self) as received:
            # Not SupervisedTrainer.run: it would replace the gradient scaler by one for CUDA.
            Workflow.run(self)
        if self.checkpoints is None or self.state.iteration % self.checkpoints.every:
            self.save()
        if self.state.iteration < last:
            logger.info("Stopped after step %d; the same command goes on from there.", self.state.iteration)
            sys.exit(128 + received[0])
        if self.run_folder is not None and is_main_process():
            self.run_folder.finish(last)


def _mix(*numbers: int) -> int:
    """Return one 32-bit seed that depends on all ``numbers``."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def _terminate_on_signal(engine: Engine) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end the run after the step in progress; a second one ends it at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        engine.terminate()
        for n, handler in previous.items():
            signal.signal(n, handler)

    for number in previous:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
