"""What a training needs of memory, disk and time against what there is."""

from __future__ import annotations

import torch

from medmdm.errors import counted
from medmdm.runs.examination import Examination
from medmdm.runs.needs import GIB, Cost, disk_needed, free_disk, free_memory, speed, weight_bytes

_LONG = 60 * 24 * 3600  # seconds


def look_at_machine(x: Examination, network: torch.nn.Module, cost: Cost | None, stored: int) -> None:
    """Compare what a pre-training needs of memory, disk and time with what there is."""
    weights, keep = weight_bytes(network), x.given("keep_checkpoints")
    parameters = sum(p.numel() for p in network.parameters())
    x.info("network", f"network: {type(network).__name__}, {parameters / 1e6:.2f} M parameters")
    need, free = disk_needed(weights, keep), free_disk(x.given("run_dir"))
    said = f"disk: about {in_gib(need)} for weights and checkpoints, {in_gib(free)} free at {x.given('run_dir')}"
    x.error("disk", f"{said}: free some, or lower keep_checkpoints") if need > free else x.info("disk", said)
    if cost is None:
        return
    device = torch.device(x.given("device"))
    half = x.given("amp_dtype") in ("bfloat16", "float16")
    # Weights, gradients, two moments of AdamW and the average.
    need = 5 * weights + (cost.activations // 2 if half else cost.activations)
    if device.type == "cpu":
        need += min(int(x.given("cache_gib") * GIB), stored)
    look_at_memory(x, need, device, "smaller batch_size, more accumulation_steps or smaller crop_size")
    steps, parts = x.given("max_steps"), x.given("accumulation_steps")
    if cost.flops and device.type in ("cpu", "cuda"):
        threads = (x.given("threads") or torch.get_num_threads()) if device.type == "cpu" else 1
        # A backward pass is two forward ones.
        roughly = 3 * cost.flops * parts * steps / (speed(device) * threads)
        where = f"on {counted(threads, 'CPU')} that nothing else uses" if device.type == "cpu" else "here and now"
        said = f"time: roughly {_time(roughly)}, estimated from {steps} steps and the speed of a convolution {where}"
        x.warning("time", said) if roughly > _LONG else x.info("time", f"{said}; --dry_run true measures a step")


def look_at_memory(x: Examination, need: int, device: torch.device, remedy: str) -> None:
    """Compare bytes that are needed with those that a device has."""
    found = free_memory(device)
    if found is None:
        return
    said = f"memory: about {in_gib(need)} on {device}, estimated; {in_gib(found[0])} of {in_gib(found[1])} free"
    if need > found[1]:
        x.error("memory", f"{said}: choose a {remedy}")
    elif need > found[0]:
        x.warning("memory", f"{said}: close other programs, or choose a {remedy}")
    else:
        x.info("memory", said)


def in_gib(number: float) -> str:
    """Return bytes in words."""
    return f"{number / GIB:.2f} GiB"


def _time(seconds: float) -> str:
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
