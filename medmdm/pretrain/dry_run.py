"""What a run would do and cost, found out by running one batch of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from medmdm.pretrain.log import duration
from medmdm.runs.processes import unwrap, world_size


def dry_run(trainer: Any) -> str:
    """Run one batch of a trainer (twice: the first time is slower) and describe the run; nothing is written.

    Args:
        trainer: a :class:`medmdm.pretrain.MDMTrainer`.

    Returns:
        A table as text: network, images, steps, time, memory and disk, the last three estimated.
    """
    device = trainer.state.device
    steps = trainer.state.epoch_length
    begun = time.perf_counter()
    batch = next(iter(trainer.data_loader))
    loading = time.perf_counter() - begun if trainer.data_loader.num_workers == 0 else 0.0
    trainer.state.iteration = 1
    for _ in range(2):
        begun = time.perf_counter()
        loss = trainer._iteration(trainer, batch)["loss"].item()  # .item() waits for the GPU
        seconds = time.perf_counter() - begun + loading

    network = unwrap(trainer.network)
    parameters = sum(p.numel() for p in network.parameters())
    weights = sum(p.numel() * p.element_size() for p in network.state_dict().values())
    parts = trainer.optimization.accumulation_steps
    lines = [
        ("network", f"{type(network).__name__}, {parameters / 1e6:.2f} M parameters ({weights / 2**20:.0f} MiB)"),
        ("device", f"{device}, {world_size()} process(es), mixed precision {trainer.optimization.dtype or 'off'}"),
        ("batch", f"{tuple(batch['image'].shape)} per process in {parts} micro-batch(es)"),
        ("steps", f"{steps}, {seconds:.2f} s each as measured on one batch (loss {loss:.4f})"),
        ("time", f"about {duration(steps * seconds)}, previews and checkpoints not counted"),
        ("memory", f"{_peak_memory(device)} at the peak of this batch"),
    ]
    if trainer.run_folder is not None:
        data = trainer.run_folder.data
        lines.insert(0, ("run folder", str(trainer.run_folder.path)))
        lines.insert(1, ("images", f"{data['images']} to train on (data hash {data['hash'][:12]})"))
    if trainer.checkpoints is not None:
        # Weights, their average and two moments of AdamW; the old checkpoints are there while a new one is written.
        disk = weights * (4 * (trainer.checkpoints.keep + 1) + 2)
        lines.append(
            ("disk", f"about {disk / 2**30:.2f} GiB at most ({trainer.checkpoints.keep} checkpoints are kept)")
        )
    return "\n".join(f"{name + ':':<12}{text}" for name, text in lines)


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of GPU memory"
    try:
        import resource  # not on Windows
    except ImportError:
        return "memory not measured on this system"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of memory"
