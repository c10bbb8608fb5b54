"""Segmenting a slide tile by tile against reading the picture whole: processor time and peak memory.

Each row of the table is a process of its own, on one thread. Slides are made (``tests/made_slides.py``, OME-TIFF,
deflated). Networks have random weights: time and memory do not depend on them. Peak is the most memory that the process
held (VmHWM in Linux's ``/proc``), Python and its libraries included; freed blocks above 64 KiB go back to the system at
once, so that peaks are not hidden.

    python benchmarks/slides.py --quick
    python benchmarks/slides.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet
from peak_memory import EXACT_MEMORY
from PIL import Image
from torch import nn

from medmdm.data.reading import CaseReader
from medmdm.data.selection import Selection
from medmdm.data.writers import encode_picture, write_mask
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import PaddedNetwork
from medmdm.heads.task import Reading
from medmdm.segment.evaluation import Outputs
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import PostProcess
from medmdm.segment.slides import segment_slide

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.made_slides import painted, tissue_everywhere, tissue_in, write_slide

#: way, network, side of the picture, share of it that is tissue.
ROWS = [
    ("whole", "stand-in", 3_000, 1.0), ("tiles", "stand-in", 3_000, 1.0), ("tiles", "stand-in", 10_000, 0.05),
    ("tiles", "stand-in", 40_000, 0.05), ("whole", "demo", 600, 1.0), ("tiles", "demo", 600, 1.0),
    ("tiles", "demo", 10_000, 0.05),
]  # fmt: skip
QUICK = [("whole", "stand-in", 1000, 1.0), ("tiles", "stand-in", 1000, 1.0), ("tiles", "stand-in", 2000, 0.05)]


def predictor(network: str) -> Predictor:
    """Return the stand-in, of one 1 x 1 convolution, in windows of 256²; or the demo's U-Net in windows of 64²."""
    torch.manual_seed(0)
    if network == "stand-in":
        return Predictor(nn.Conv2d(3, 2, 1).eval(), Reading((256, 256)))
    norm = ("group", {"num_groups": 8})
    made = BasicUNet(2, 3, 2, features=(16, 32, 64, 128, 256, 16), norm=norm)
    return Predictor(PaddedNetwork(made, multiple=16, flips=(0, 1), num_classes=2).eval(), Reading((64, 64)))


def write(way: str, side: int, share: float, folder: Path) -> None:
    """Write what is to be segmented."""
    paint = tissue_everywhere if share == 1 else tissue_in(side, side, share)
    if way == "tiles":
        write_slide(folder / "a.ome.tif", (side, side), paint, levels=6)
    else:
        (folder / "a.png").write_bytes(encode_picture(painted((side, side), paint), ".png"))


def segment(way: str, network: str, folder: Path) -> dict[str, float]:
    """Segment it; return seconds of the processor and MB: peak, and before it."""
    Image.MAX_IMAGE_PIXELS = None
    reader = CaseReader(Selection(Path(), None, (), (), (), (), ()), {"channels": 3})
    entry = {"case": "a", "image": str(folder / ("a.ome.tif" if way == "tiles" else "a.png"))}
    made, before, start = predictor(network), _memory("VmRSS"), time.process_time()
    if way == "tiles":
        segment_slide(entry, reader, made, PostProcess(), Outputs(folder))
    else:
        case = reader.read(entry)
        write_mask(folder / "mask.png", make_masks(case, made, PostProcess()).mask, entry["image"])
    return {"seconds": time.process_time() - start, "peak": _memory("VmHWM"), "before": before}


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--rows", help="numbers of the rows to measure, such as 0,2")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        way, network, folder = json.loads(given.one)
        print(json.dumps(segment(way, network, Path(folder))))
        return
    rows = QUICK if given.quick else ROWS
    rows = rows if given.rows is None else [rows[int(number)] for number in given.rows.split(",")]
    print("| network | picture | tissue | read | processor time (s) | Mpixel/s | peak (MB) | at start (MB) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for way, network, side, share in rows:
        with tempfile.TemporaryDirectory() as folder:
            write(way, side, share, Path(folder))
            command = [sys.executable, __file__, "--one", json.dumps([way, network, folder])]
            environment = {**os.environ, **EXACT_MEMORY, "OMP_NUM_THREADS": "1"}
            out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found = json.loads(out.splitlines()[-1])
        speed = side * side / 1e6 / found["seconds"]
        print(
            f"| {network} | {side:,}² | {share:.0%} | {way} | {found['seconds']:.1f} | {speed:.3g} "
            f"| {found['peak']:.0f} | {found['before']:.0f} |".replace(",", " "),
            flush=True,
        )


if __name__ == "__main__":
    main()
