"""Peak memory of classifying one crop from its blocks' outputs, each side in a process of its own.

Every block of memory above 64 KiB is the system's own there. Counted is how far a second run lifts the peak of the
process's resident memory (VmHWM in Linux's ``/proc``) above what it held before: PyTorch's and the math library's
memory alike, of which PyTorch's own counters would miss the latter.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from published_way import CLASSES, published_classifier, published_stack
from torch import Tensor
from torch.nn import functional as F

from medmdm.backbones.feature_maps import normalize
from medmdm.heads.classifier_network import PixelClassifier

#: No block above 64 KiB is kept after it was freed, so that peaks are not hidden.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure_memory(
    grids: Sequence[tuple[int, int]], crop: int, threads: int, quick: bool
) -> dict[str, dict[str, float]] | None:
    """Return bytes of the peak above the start, for each side, of classifying a crop and of a training step.

    Each is the median of three processes, for a quick run only the first, of one process.

    Args:
        grids: channels and edge of each block's output for one crop.
        crop: its edge.
        threads: of each process.
        quick: see above.
    """
    if not Path("/proc/self/status").exists():
        return None
    found: dict[str, dict[str, float]] = {}
    for step in ("classify",) if quick else ("classify", "train"):
        found[step] = {}
        for side in ("ours", "published"):
            task = {"side": side, "step": step, "grids": grids, "size": crop, "threads": threads}
            command = [sys.executable, __file__, json.dumps(task)]
            environment = {**os.environ, **EXACT_MEMORY}
            peaks = [
                int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
                for _ in range(1 if quick else 3)
            ]
            found[step][side] = statistics.median(peaks)
    return found


def peak_memory(side: str, step: str, grids: Sequence[Sequence[int]], size: int, threads: int) -> int:
    """Return how far one step lifts the peak of this process's resident memory, in bytes."""
    torch.set_num_threads(threads)

    def run(grids: Sequence[Sequence[int]], size: int) -> Callable[[], Any]:
        maps = [torch.randn(1, channels, edge, edge) for channels, edge in grids]
        label = torch.randint(CLASSES, (size * size,))
        channels = sum(f.shape[1] for f in maps)
        if side == "ours":
            head = PixelClassifier(channels, CLASSES, members=1).train(step == "train")

            def logits() -> Tensor:
                with torch.no_grad():
                    scaled = normalize(maps, (size, size), "global_l2", consume=True)
                return head(scaled, (size, size))[0, 0].flatten(1).T
        else:
            mlp = published_classifier(channels).train(step == "train")

            def logits() -> Tensor:
                return mlp(published_stack(maps, (size, size)))

        def classify() -> Tensor:
            with torch.set_grad_enabled(step == "train"):
                out = logits()
                if step == "train":
                    F.cross_entropy(out, label).backward()
            return out

        return classify

    measured = run(grids, size)
    measured()  # libraries load what they need, and keep it
    ballast = []  # fills what the process held once and gave back, so that a new peak is a peak of the step
    while (gap := resident("VmHWM") - resident("VmRSS")) > 0:
        ballast.append(torch.ones(gap // 4 + 65536))
    before = resident("VmHWM")
    measured()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Return the process's resident memory (VmRSS) or its peak (VmHWM) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


if __name__ == "__main__":
    print(peak_memory(**json.loads(sys.argv[1])))
