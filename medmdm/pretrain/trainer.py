"""The pre-training engine: MONAI's supervised trainer with the objective of masked diffusion."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from medmdm.averaging import unwrap
from medmdm.backbones.layers import BlockNetwork
from medmdm.corruption.base import usual_timestep
from medmdm.errors import UserError
from medmdm.files import is_main_process, rank, world_size
from medmdm.objectives.objective import Objective
from medmdm.objectives.term import Restored, keep_features, step_terms
from medmdm.pretrain.checkpoints import Checkpoints, get_random_state, mix, set_random_state
from medmdm.pretrain.interruption import end_program, terminate_on_signal
from medmdm.pretrain.optimization import Optimization
from medmdm.progress import duration
from medmdm.runs.folder import RunFolder
from medmdm.runs.memory import peak_memory
from medmdm.runs.needs import disk_needed, weight_bytes


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of GPU memory"
    peak = peak_memory()
    return "memory not measured on this system" if peak is None else f"{peak / 2**30:.2f} GiB of memory"


logger = logging.getLogger(__name__)


class MDMTrainer(SupervisedTrainer):
    """Train a network to restore corrupted images (arXiv 2308.05695, section 3).

    One iteration of the engine is one optimiser step on one batch, whatever the number of micro-batches. Its
    ``state.output`` is ``[{"loss": scalar, "grad_norm": scalar, "batch_size": int}]``, which is what MONAI's handlers
    read by default (``output[0]``) and by ``from_engine(["loss"], first=True)``. Timestep and
    corruption of an image are drawn from the run's seed and the sample's number alone, so that neither the number of
    processes, micro-batches or loader workers nor an interruption changes what is learnt.

    Args:
        device: where to train.
        max_epochs: always 1: the run is counted in steps, images are drawn with replacement.
        epoch_length: number of optimiser steps of the whole run.
        train_data_loader: yields ``{"image": [B, C, *spatial] in [-1, 1], "index": [B] sample numbers}``, and maps
            that the corruption takes under their names; its batch sampler has a ``start_step`` that is set when a run
            resumes.
        network: called as ``network(x_t, t)``; a ``DistributedDataParallel`` wrapper is fine.
        objective: what the network learns.
        optimization: how a step changes its weights.
        seed: of timesteps, corruption and dropout.
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
        objective: Objective,
        optimization: Optimization,
        seed: int = 0,
        checkpoints: Checkpoints | None = None,
        run_folder: RunFolder | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        if max_epochs != 1:
            raise UserError(f"max_epochs must stay 1, got {max_epochs}: set the length of a run with max_steps.")
        super().__init__(
            device=device,
            max_epochs=1,
            epoch_length=epoch_length,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimization.optimizer,
            loss_function=objective.loss,
            inferer=inferer,
            train_handlers=train_handlers,
            decollate=False,
            optim_set_to_none=True,
        )
        if (objective.terms or "error" in objective.corruption.takes) and optimization.ema is None:
            raise UserError("Terms and adaptive masking need the averaged weights: leave `ema` in the config.")
        self.objective = objective.to(self.state.device)
        self.optimization = optimization
        self.seed = seed
        self.checkpoints = checkpoints
        self.run_folder = run_folder
        # Sum and number of losses since the last line of the log: part of the state, so that a resumed run writes
        # the same line.
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.loss_count = 0
        if checkpoints is not None:
            self.add_event_handler(Events.ITERATION_COMPLETED(every=checkpoints.every), self.save)

    # -- one step ------------------------------------------------------------------------------------------------

    def generators(self, indices: Tensor, stream: int = 1) -> list[torch.Generator]:
        """Return one generator for each sample, seeded by the run's seed, a stream's and the sample's number.

        They live on the CPU, so that a GPU sees the same timesteps and the same damage.
        """
        return [torch.Generator().manual_seed(mix(self.seed, stream, int(k))) for k in indices]

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Do a step; return its numbers as MONAI's handlers read them: of a batch that was taken apart, the first."""
        device, network, parts = self.state.device, self.network, self.optimization.accumulation_steps
        images = batchdata[Keys.IMAGE].to(device, non_blocking=True)
        # Dropout and the like draw from the global generator: seeded at each step, a resumed run draws the same.
        torch.manual_seed(mix(self.seed, 2, self.state.iteration, rank()))
        generators = self.generators(batchdata["index"])
        posed = self.objective.pose(images, generators, **self._given(images, batchdata))
        if len(images) % parts:
            fault = f"A batch of {len(images)} images cannot be cut into {parts} equal parts"
            raise UserError(f"{fault}: choose an accumulation_steps that divides it.")
        network.train()
        self.optimizer.zero_grad(set_to_none=True)
        for term in self.objective.terms:
            term.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for part, (x_t, t, target, visible) in enumerate(zip(*(x.chunk(parts) for x in posed), strict=True), start=1):
            # Processes exchange gradients once a step, after the last micro-batch.
            wait = part < parts and isinstance(network, DistributedDataParallel)
            with network.no_sync() if wait else contextlib.nullcontext():
                with self.optimization.autocast(device), keep_features(network, self.objective.blocks) as features:
                    pred = self.inferer(x_t, network, t)
                part_loss = self.loss_function(pred, target, visible)
                learnt = part_loss
                if self.objective.terms:
                    rows = slice((part - 1) * len(x_t), part * len(x_t))
                    known = {name: values[rows].to(device) for name, values in batchdata.items() if name != Keys.IMAGE}
                    seen = Restored(
                        images[rows], x_t, t, visible, self.objective.restored(pred, x_t, t), features, network,
                        self.optimization.averaged(network), known, generators[rows], self.progress,
                    )  # fmt: skip
                    with self.optimization.autocast(device):
                        added, own = self.objective.added(seen)
                    part_loss = part_loss + added
                    learnt = part_loss + own
                self.optimization.scaler.scale(learnt / parts).backward()
            loss += part_loss.detach() / parts
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self._require_finite("loss", loss)
        step_terms(self.objective.terms, self.optimization.scaler)
        grad_norm = self.optimization.step(network, self._require_finite)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        self.loss_sum += loss.double().cpu()
        self.loss_count += 1
        return [{Keys.LOSS: loss, "grad_norm": grad_norm, "batch_size": len(images)}]

    @property
    def progress(self) -> float:
        """How much of the run was done before the step in hand, in [0, 1)."""
        return (self.state.iteration - 1) / self.state.epoch_length

    def _given(self, images: Tensor, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the corruption takes of a batch's images."""
        takes = self.objective.corruption.takes
        given = {name: values.to(images.device) for name, values in batchdata.items() if name in takes}
        if "error" in takes:
            # A stream of its own: the timesteps stay those of a run without it.
            generators = self.generators(batchdata["index"], stream=4)
            given["error"] = self.objective.hardness(images, self.restore, generators)
        if "progress" in takes:
            given["progress"] = images.new_full((len(images), *[1] * (images.ndim - 1)), self.progress)
        return given

    def _require_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            kept = self.checkpoints.paths()[-1:] if self.checkpoints is not None else []
            last = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint had been written yet"
            advice = "a lower learning rate, gradient clipping (max_grad_norm) or amp_dtype 'bfloat16' or 'float32'"
            raise UserError(f"The {what} became {float(value)} at step {self.state.iteration}; {last}; try {advice}.")

    @torch.no_grad()
    def restore(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the image that the averaged weights see in ``x_t``, in float32 and evaluation mode."""
        network = self.optimization.averaged(self.network)
        training = network.training
        network.eval()
        with self.optimization.autocast(self.state.device):
            pred = network(x_t, t)
        network.train(training)
        return self.objective.restored(pred, x_t, t)

    @torch.no_grad()
    def features(self, x: Tensor) -> list[Tensor] | None:
        """Return what the averaged weights make of ``x`` in the blocks, and at the t, that heads read.

        None of a network without such blocks.
        """
        network = self.optimization.averaged(self.network)
        if not isinstance(network, BlockNetwork):
            return None
        training = network.training
        network.eval()
        with self.optimization.autocast(self.state.device):
            t = usual_timestep(self.objective.timesteps, self.objective.corruption.num_timesteps)
            maps = network.features(x, torch.full((len(x),), t, device=x.device), network.usual_blocks)
        network.train(training)
        return [f.float() for f in maps]

    # -- a run ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on with the same bits."""
        return {
            "step": self.state.iteration,
            "network": unwrap(self.network).state_dict(),
            **self.optimization.state_dict(),
            "random": get_random_state(),
            **({"terms": [term.state() for term in self.objective.terms]} if self.objective.terms else {}),
            "loss_sum": self.loss_sum.clone(),
            "loss_count": self.loss_count,
            "log": getattr(self.state, "log_digest", None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, and start the loader at the step after it."""
        self.state.iteration = state["step"]
        unwrap(self.network).load_state_dict(state["network"])
        self.optimization.load_state_dict(state)
        set_random_state(state["random"])
        for term, kept in zip(self.objective.terms, state.get("terms", []), strict=True):
            term.load_state(kept)
        self.loss_sum = state["loss_sum"].cpu()
        self.loss_count = state["loss_count"]
        self.state.log_digest = state.get("log")  # checkpoints of 0.2 have none
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
            weights = self.optimization.averaged(self.network).state_dict()
            self.run_folder.save_model(weights, self.state.iteration)

    def dry_run(self) -> None:
        """Print what the run would do and cost, after one batch (run twice: the first is slower); write nothing.

        The table names network, images, steps, time, memory and disk, the last three estimated.
        """
        device, steps, begun = self.state.device, self.state.epoch_length, time.perf_counter()
        batch = next(iter(self.data_loader))
        loading = time.perf_counter() - begun if self.data_loader.num_workers == 0 else 0.0
        self.state.iteration = 1
        for _ in range(2):
            begun = time.perf_counter()
            loss = self._iteration(self, batch)[0]["loss"].item()  # .item() waits for the GPU
            seconds = time.perf_counter() - begun + loading
        network, parts = unwrap(self.network), self.optimization.accumulation_steps
        parameters = sum(p.numel() for p in network.parameters())
        weights = weight_bytes(network)
        lines = [
            ("network", f"{type(network).__name__}, {parameters / 1e6:.2f} M parameters ({weights / 2**20:.0f} MiB)"),
            ("device", f"{device}, {world_size()} process(es), mixed precision {self.optimization.dtype or 'off'}"),
            ("batch", f"{tuple(batch['image'].shape)} per process in {parts} micro-batch(es)"),
            ("steps", f"{steps}, {seconds:.2f} s each as measured on one batch (loss {loss:.4f})"),
            ("time", f"about {duration(steps * seconds)}, previews and checkpoints not counted"),
            ("memory", f"{_peak_memory(device)} at the peak of this batch"),
        ]
        if self.run_folder is not None:
            data = self.run_folder.data
            lines.insert(0, ("run folder", str(self.run_folder.path)))
            lines.insert(1, ("images", f"{data['images']} to train on (data hash {data['hash'][:12]})"))
        if self.checkpoints is not None:
            kept = self.checkpoints.keep
            disk = disk_needed(weights, kept)
            lines.append(("disk", f"about {disk / 2**30:.2f} GiB at most ({kept} checkpoints are kept)"))
        if is_main_process():
            print("\n".join(f"{name + ':':<12}{text}" for name, text in lines))

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
        elif self.checkpoints is not None and self.run_folder is not None and (steps := self.run_folder.saved_steps()):
            fault = (
                f"{self.run_folder.model_path} holds weights of {steps} steps, but there is no checkpoint to go on from"
            )
            raise UserError(f"{fault}: choose another run_dir, or move that file away to begin again at step 0.")
        if self.state.iteration >= last:
            if self.run_folder is not None and is_main_process() and self.run_folder.saved_steps() != last:
                self.export()
                self.run_folder.finish(last)
            logger.info("This run is finished: all %d steps are done.", last)
            return
        if checkpoint is not None:
            logger.info("Going on after step %d of %d.", self.state.iteration, last)
        with terminate_on_signal(self) as received:
            super().run()
            if self.checkpoints is None or self.state.iteration % self.checkpoints.every:
                self.save()
        if self.state.iteration < last:
            end_program(received[0], self.state.iteration, last)
        if self.run_folder is not None and is_main_process():
            self.run_folder.finish(last)
