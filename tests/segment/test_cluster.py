"""Cells and cases as tasks of Dask: the files of one process, whoever dies."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bundle_runs import HEAD, UNET, Run

pytest.importorskip("distributed")

MLP = {**HEAD, "max_epochs": 3, "min_epochs": 3}
RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}


def study_of_24(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Two backbones x two heads, and a network from scratch; five draws of two images, and all four."""
    model = str(tmp_path / "model.pt")
    return {
        "backbones": {"MDM": {"path": model}, "raw": {"path": model, "initialise": "raw"}},
        "heads": {"ridge": RIDGE, "mlp": MLP, "unet": UNET}, "only": {"mlp": ["MDM"]},
        "shots": [2, 4], "draws": 5, "reference": ["MDM", "ridge"], "threads": 1, **changes,
    }  # fmt: skip


def files_of(folder: Path, *volatile: str) -> dict[str, Any]:
    """Return the files of a run, by name, without times, hosts, paths and how it was run."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in volatile}
        return [plain(one) for one in value] if isinstance(value, list) else value

    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: plain(json.loads(path.read_text())) if name.endswith(".json") else path.read_bytes()
        for name, path in found.items()
        if name != "run.log"
    }


VOLATILE = ("seconds", "sessions", "sha256", "run_dir", "output_dir", "scheduler")


@pytest.mark.slow
def test_a_study_on_workers_equals_that_of_one_process_file_for_file(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    begun = time.perf_counter()
    run("mdm_study", **study_of_24(tmp_path, run_dir=str(one)))
    print("one", time.perf_counter() - begun)
    begun = time.perf_counter()
    run("mdm_study", **study_of_24(tmp_path, run_dir=str(two), scheduler="local:2"))
    print("two", time.perf_counter() - begun)
    assert len(list((one / "cells").iterdir())) == 24
    ours, theirs = (files_of(folder, *VOLATILE) for folder in (one, two))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
