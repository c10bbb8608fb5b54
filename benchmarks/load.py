"""Much data, measured from outside: 20 000 images to pre-train on, a report of 2 000 cases, a picture of 8 000 x 8 000.

Each command runs in a process of its own. Measured are the seconds until lines of its log, the processor time, and the
peak of its resident memory as the system counts it. The data are made here, small and seeded.

``python benchmarks/load.py`` does all three (on an idle core about half an hour, nearly all of it the network on the
large picture); ``--only images`` one of them; ``--stand_in`` takes a network that costs little, where memory alone is
asked for. To measure an earlier version, put its checkout first in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PARTS = ("images", "report", "inference")


def measured(arguments: list[str], marks: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run a module of Python's; return its seconds, seconds of processor time, peak in MB, and when lines came.

    Args:
        arguments: of ``python -m``.
        marks: name -> text of the first line that counts; an empty text is any line.

    Raises:
        SystemExit: the command failed.
    """
    started, found, lines = time.perf_counter(), dict[str, float](), list[str]()
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        for name, text in (marks or {}).items():
            if text in line and "INFO" in line:
                found.setdefault(name, time.perf_counter() - started)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: status {status}\n{''.join(lines[-20:])}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = {"seconds": time.perf_counter() - started, "processor": usage.ru_utime + usage.ru_stime}
    return {**seconds, "peak_mb": usage.ru_maxrss * unit / 1e6, **found}


def images(folder: Path, count: int) -> dict[str, Any]:
    """Start to pre-train on many small images, four of a patient."""
    data, rng = folder / "images", np.random.default_rng(0)
    data.mkdir()
    entries = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(data / f"i{i:05d}.png")
        entries.append({"image": f"i{i:05d}.png", "patient_id": f"patient{i // 4}"})
    (data / "dataset.json").write_text(json.dumps({"name": "many", "training": entries}))
    options = ["--max_steps", "1", "--log_every", "1", "--preview_every", "1000", "--preview_crops", "1"]
    where = ["--dataset_dir", str(data), "--run_dir", str(folder / "pretrain")]
    marks = {"first_line": "", "first_of_images": "reading images", "first_step": "step 1"}
    return measured(["medmdm", "pretrain", *where, *options], marks)


def report(folder: Path, count: int) -> dict[str, Any]:
    """Report many cases of 128 x 128 pixels, six objects each, with their maps of uncertainty left out."""
    data, run, rng = folder / "cases", folder / "run", np.random.default_rng(0)
    for path in (data, run / "predictions"):
        path.mkdir(parents=True)
    grid, cases = np.indices((128, 128)), list[dict[str, Any]]()
    for i in range(count):
        label = np.zeros((128, 128), np.uint8)
        for row, column, radius in rng.uniform((10, 10, 4), (118, 118, 12), (6, 3)):
            label[(grid[0] - row) ** 2 + (grid[1] - column) ** 2 <= radius**2] = 1
        name, noise = f"case_{i:04d}.png", rng.integers(0, 120, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(noise + 100 * label[..., None]).save(data / name)
        Image.fromarray(label).save(data / f"label_{name}")
        Image.fromarray(np.roll(label, int(rng.integers(6)), axis=1)).save(run / "predictions" / name)
        files = {"image": name, "label": f"label_{name}", "prediction": f"predictions/{name}"}
        cases.append({"case": name[:-4], **files, "patient_id": f"patient{i // 4}", "spacing": None, "columns": {}})
    record = {"format": 1, "dataset": "many", "dataset_dir": str(data), "section": "test", "record": None}
    record |= {"data_list": {"name": "many"}, "ignore": 255, "stamp": None, "protocol": {}, "study": None}
    record |= {"num_classes": 2, "class_names": ["background", "object"], "cases": cases}
    (run / "evaluation.json").write_text(json.dumps(record))
    numbers = measured(["medmdm", "report", str(run)])
    return {**numbers, "page_mb": (run / "index.html").stat().st_size / 1e6}


def inference(folder: Path, side: int, stand_in: bool) -> dict[str, Any]:
    """Segment a picture with the demo's network, or with a small one in windows of 256 pixels."""
    model, segmenter = folder / "model" / "model.pt", folder / "segment" / "segmenter.pt"
    if not model.exists():
        short = ["--max_steps", "2", "--preview_every", "1000"]
        measured(["medmdm", "pretrain", "--run_dir", str(model.parent), *short])
        cheap = ["--head#network#features", "[8,8,8,8,8,8]", "--window", "[256,256]"] if stand_in else []
        where = ["--backbone", str(model), "--run_dir", str(segmenter.parent)]
        measured(["medmdm", "segment", *where, "--head#training#steps", "10", *cheap])
    data = folder / f"picture{side}"
    data.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR).save(data / "a.png", compress_level=1)
    where = ["--dataset_dir", str(data), "--output_dir", str(folder / f"masks{side}")]
    numbers = measured(["medmdm", "infer", "--segmenter", str(segmenter), *where])
    return {**numbers, "processor_per_megapixel": numbers["processor"] / (side * side / 1e6)}


def main() -> None:
    """Measure, and print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--images", type=int, default=20_000, metavar="N")
    parser.add_argument("--cases", type=int, default=2_000, metavar="N")
    parser.add_argument("--sides", type=int, nargs="+", default=[2_000, 8_000], metavar="PIXELS")
    parser.add_argument("--stand_in", action="store_true", help="a small network for the pictures")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in [asked.only] if asked.only else PARTS:
            if part == "images":
                found = {f"{asked.images} images": images(folder, asked.images)}
            elif part == "report":
                found = {f"{asked.cases} cases": report(folder, asked.cases)}
            else:
                found = {f"{side}^2 pixels": inference(folder, side, asked.stand_in) for side in asked.sides}
            for title, numbers in found.items():
                shown = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
                print(f"{title}: {shown}", flush=True)


if __name__ == "__main__":
    main()
