"""Compare a study of 24 cells on workers of Dask with that of one process: the same files, and the ratio of times.

The shipped study on the built-in image, its classifier with fewer epochs, after two steps of pre-training. Starting the
workers is timed by itself: it is paid once, whatever the size of a study.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.segment.test_cluster import assert_same_files


def run(*words: str, folder: Path) -> float:
    """Run a command of medmdm; return how many seconds it took."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "medmdm", *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - begun


def seconds_of_cells(folder: Path) -> float:
    """Return how long the fits of a study took, added up."""
    return sum(json.loads(path.read_text())["seconds"] for path in (folder / "cells").glob("*.json"))


def measure(workers: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Run the study in both ways and compare the files."""
    from distributed import LocalCluster

    run("pretrain", "--max_steps", "2", "--preview_crops", "1", folder=folder)
    fewer = [f"--heads#classifier#{key}={epochs}" for key in ("max_epochs", "min_epochs")]
    study = ["study", "--threads", "1", *fewer]
    one = run(*study, "--run_dir", "one", folder=folder)
    begun = time.perf_counter()
    with LocalCluster(workers, threads_per_worker=1, memory_limit=None, dashboard_address=None) as cluster:
        cluster.wait_for_workers(workers)
        starting = time.perf_counter() - begun
        several = run(*study, "--run_dir", "several", "--scheduler", cluster.scheduler_address, folder=folder)
    assert_same_files(folder / "one", folder / "several")
    return {
        "cells": len(list((folder / "one" / "cells").glob("*.json"))), "workers": workers, "one process (s)": one,
        "workers (s)": several, "starting the workers (s)": starting, "ratio": one / several,
        "fits in one process (s)": seconds_of_cells(folder / "one"),
        "fits in workers (s)": seconds_of_cells(folder / "several"),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60, help="of the classifier")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(given.workers, given.epochs, Path(scratch)), indent=2))
