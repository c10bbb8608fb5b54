"""What a worker of Dask checks before it computes, and results in order; see also ``tests/segment/test_cluster.py``."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.errors import UserError
from medmdm.runs.cluster import _OPEN, Cluster, GivenUpError, Job, Workers, _versions, call
from tests.made import refused


class Doubler:
    """What a worker has opened."""

    def double(self, number: int) -> tuple[int, str, int]:
        return 2 * number, os.getcwd(), torch.get_num_threads()


def test_a_task_runs_in_the_folder_and_with_the_threads_of_its_owner(tmp_path: Path) -> None:
    before, threads = os.getcwd(), torch.get_num_threads()
    _OPEN["token"] = Doubler()
    try:
        job = Job("token", {}, "study", str(tmp_path), 2, _versions())
        assert call(job, "double", {"number": 21}) == (42, str(tmp_path.resolve()), 2)
    finally:
        _OPEN.clear()
        torch.set_num_threads(threads)
    assert os.getcwd() == before


def test_a_worker_with_other_folders_or_versions_refuses(tmp_path: Path) -> None:
    nowhere = Job("token", {}, "study", str(tmp_path / "nowhere"), 1, _versions())
    refused("cannot enter .*nowhere .*: workers need the folders of the run", call, nowhere, "compute", {})
    older = Job("token", {}, "study", str(tmp_path), 1, ("medmdm 0.1", "torch 1", "numpy 1"))
    refused("but the run medmdm 0.1, torch 1, numpy 1: install the same there", call, older, "compute", {})


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'medmdm\[cluster\]'"), Cluster("local", "study", {}).workers():
        pass


@pytest.mark.parametrize("scheduler", ["lokal", "local:", "local:0", "slurm:x", ""])
def test_what_is_no_scheduler(scheduler: str) -> None:
    refused("scheduler is", Cluster, scheduler, "study", {})


class Shuffled(Workers):
    """Results in the order of a text; what it does not name is given up."""

    def __init__(self, order: str) -> None:
        self.order = order

    def each(self, method: str, tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
        yield from ((name, name.upper()) for name in self.order)
        if missing := [name for name in tasks if name not in self.order]:
            raise GivenUpError(missing, len(tasks))


@pytest.mark.parametrize(("order", "expected"), [
    ("abcd", "ABCD"), ("dcba", "ABCD"), ("dab", "AB-D"), ("bcd", "-BCD"), ("cba", "ABC-"), ("", "----"),
])  # fmt: skip
def test_results_come_in_the_order_of_the_tasks(order: str, expected: str) -> None:
    results = Shuffled(order).in_order("method", {name: {} for name in "abcd"})
    found = [next(results) for _ in range(4)]
    assert "".join(one or "-" for one in found) == expected
    if "-" in expected:
        refused(f"{len(order)} others? .* done and kept", list, results)
    else:
        assert not list(results)
