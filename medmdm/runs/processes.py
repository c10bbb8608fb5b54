"""The few things that differ when torchrun starts several processes."""

from __future__ import annotations

import atexit
import gc
import os

import torch
from torch import Tensor, distributed, nn

from medmdm.files import rank as rank  # overlays ask for both here
from medmdm.files import world_size as world_size


def device() -> torch.device:
    """Return this process' GPU (by torchrun's ``LOCAL_RANK``), or the CPU where there is none."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def start() -> None:
    """Join the process group that torchrun describes: NCCL on GPUs, gloo on CPUs. A no-op where already joined."""
    if distributed.is_initialized():
        return
    where = device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    distributed.init_process_group(backend="nccl" if where.type == "cuda" else "gloo")
    # A wrapped network keeps the group, and so its threads, after stop(), and a finished run has been seen to abort
    # while the interpreter was taken apart. What nothing refers to any more is freed before that.
    atexit.register(gc.collect)


def stop() -> None:
    """Leave the process group, if any, once every process is done.

    A process that leaves early has been seen to abort, and torchrun then kills the others, the one that writes among
    them.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def average(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over all processes."""
    if not distributed.is_initialized():
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


def largest(value: int) -> int:
    """Return the largest ``value`` of all processes."""
    if not distributed.is_initialized():
        return value
    found = torch.tensor(value, device=device())
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def place(
    network: nn.Module, device: torch.device | str, channels_last: bool = False, compile: bool = False
) -> nn.Module:
    """Move a network to ``device``, optionally with its convolution weights in channels-last layout and compiled."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    if compile:
        network.compile()  # in place: parameter names stay as they are
    return network
