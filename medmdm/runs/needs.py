"""What a training needs of the machine, counted without allocating it, and what is free."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medmdm.runs.threads import convolution

_PROC, _CGROUPS = "/proc/meminfo", ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
GIB = 2**30
_STEPS = 10  # that are timed


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: number of them.
        weights: bytes of parameters and buffers.
        activations: bytes that one forward pass keeps for its backward pass, in float32.
        flops: floating-point operations of one forward pass.
    """

    parameters: int
    weights: int
    activations: int
    flops: int


def forward_cost(network: nn.Module, *inputs: Tensor) -> tuple[Cost, tuple[int, ...]]:
    """Count what a forward pass costs; return it, and the shape of what the network returns.

    Args:
        network: on the device ``"meta"``, where tensors have a shape and no memory.
        *inputs: what it is called with, on the same device.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    own = {p.untyped_storage()._cdata for p in network.parameters()}
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(*inputs)
    out = out[-1] if isinstance(out, (list, tuple)) else out
    activations = sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in own)
    parameters = sum(p.numel() for p in network.parameters())
    cost = Cost(parameters, weight_bytes(network), activations, counter.get_total_flops())
    return cost, tuple(out.shape)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers."""
    return sum(p.numel() * p.element_size() for p in network.state_dict().values())


def disk_needed(weights: int, keep: int) -> int:
    """Return the most bytes that checkpoints and weights file take.

    Weights, their average and two moments of AdamW; old checkpoints are there while a new one is written.
    """
    return weights * (4 * (keep + 1) + 2)


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """Return (free, total) bytes of a GPU's memory, or of the memory that this process may use; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = dict(line.split(":", 1) for line in Path(_PROC).read_text(encoding="ascii").splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        for limit, used in zip(_CGROUPS, _USED, strict=True):  # of a container or a job
            with contextlib.suppress(OSError, ValueError):
                most = int(Path(limit).read_text(encoding="ascii"))
                if most < total:
                    free, total = min(free, most - int(Path(used).read_text(encoding="ascii"))), most
        return free, total
    return None


def nearest_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that exists already of a path that is to be made."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_disk(path: str | os.PathLike[str]) -> int:
    """Return the free bytes of the disk on which a path lies or is to be made."""
    return shutil.disk_usage(nearest_folder(path)).free


def speed(device: torch.device) -> float:
    """Return the floating-point operations a second of :func:`medmdm.runs.threads.convolution`.

    Of a CPU those of one thread in its own processor time: what else computes now takes none of it.
    """
    step, operations = convolution(device)
    on_gpu = device.type == "cuda"
    clock, threads = time.perf_counter if on_gpu else time.thread_time, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()  # what the first one prepares is left out
        if on_gpu:
            torch.cuda.synchronize(device)
        begun = clock()
        for _ in range(_STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
        return _STEPS * operations / (clock() - begun)
    finally:
        torch.set_num_threads(threads)
