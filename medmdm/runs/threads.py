"""How many threads PyTorch computes with: set, recorded, or the fastest of a short measurement."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from medmdm.files import is_main_process

logger = logging.getLogger(__name__)

SECONDS = 0.5  # of the measurement
_BETTER = 1.1  # how much faster more threads must be, to be taken
#: Programs such as torchrun, and users, set a number by these.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose(
    threads: int | None, folder: str | os.PathLike[str] | None, on_cpu: bool = True, has_workers: bool = False
) -> int:
    """Set PyTorch's number of threads and say why; return it.

    On a CPU a run's bits depend on it. It is ``threads``; else what ``run.json`` of the run folder says of the last
    session, so that a run that goes on keeps its bits; else what the environment sets; else what is fastest now.

    Args:
        threads: 1 or more; None: not set.
        folder: the run folder, where there is one.
        on_cpu: whether networks run on the CPU; elsewhere nothing is measured.
        has_workers: whether workers compute, see :class:`medmdm.runs.Cluster`.
    """
    before = None if folder is None else recorded(Path(folder))
    if threads is not None:
        count, why = int(threads), "as set"
    elif before is not None:
        count, why = before, "as before in this run"
    elif has_workers:
        count, why = 1, "as in each worker"
    elif any(os.environ.get(name) for name in _VARIABLES) or not on_cpu:
        count, why = torch.get_num_threads(), "as the environment sets it"
    else:
        count, why = measured()
    torch.set_num_threads(count)
    if not is_main_process():
        return count
    logger.info("%d of %d CPUs compute (threads: %s)", count, cpus(), why)
    if before is not None and count != before:
        logger.warning("This run computed with threads %d before: with %d its last digits may differ.", before, count)
    elif why.startswith("as before") and count > cpus():
        logger.warning("This run began with threads %d, but there are %d CPUs: it will be slow.", count, cpus())
    return count


def recorded(folder: Path) -> int | None:
    """Return the number of threads of a run's last session, None where there was none."""
    try:
        sessions = json.loads((folder / "run.json").read_text(encoding="utf-8"))["sessions"]
        return int(sessions[-1]["hardware"]["torch_threads"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # whoever opens the folder says so
        return None


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measured(speed: Callable[[int, float], float] | None = None) -> tuple[int, str]:
    """Try 1, 2, 4, ... threads up to the number of CPUs; return the fastest, and a text of what was found.

    More threads are taken only where they are a tenth faster: on busy CPUs threads that wait for each other are slower
    than one.

    Args:
        speed: called with a number of threads and seconds, returns steps per second; default: of a small convolution.
    """
    most = cpus()
    counts = sorted({2**n for n in range(most.bit_length()) if 2**n <= most} | {most})
    if len(counts) == 1:
        return 1, "the only one"
    found: dict[int, float] = {}
    for count in counts:
        found[count] = (speed or _speed)(count, SECONDS / len(counts))
        if found[count] < found[1] / 2:  # more will be no better, and each step now takes long
            break
    best = 1
    for count, value in found.items():
        if value > _BETTER * found[best]:
            best = count
    return best, "measured, " + ", ".join(f"{count}: {value:.0f} steps/s" for count, value in found.items())


def convolution(device: torch.device | str = "cpu") -> tuple[Callable[[], None], int]:
    """Return a step of training a small convolution, the kind of work that a U-Net is, and its operations."""
    image = torch.ones(4, 32, 48, 48, device=device, requires_grad=True)
    weight = torch.ones(32, 32, 3, 3, device=device, requires_grad=True)

    def step() -> None:
        F.conv2d(image, weight, padding=1).sum().backward()

    return step, 3 * 2 * image.numel() * weight[0].numel()  # a backward pass is two forward ones


def _speed(threads: int, seconds: float) -> float:
    """Return how many forward and backward passes of a small convolution are done in a second."""
    torch.set_num_threads(threads)
    step, _ = convolution()
    step()  # threads are started
    done, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or not done:
        step()
        done += 1
    return done / passed
