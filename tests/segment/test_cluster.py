"""Cells and cases as tasks of Dask: the files of one process, whoever dies."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monai.bundle import ConfigParser

from medmdm.heads import ClosedFormHead
from medmdm.heads.task import Fitted, Task
from medmdm.runs.config import check
from tests.bundle_runs import BUNDLES, HEAD, UNET, Run

distributed = pytest.importorskip("distributed")

MLP = {**HEAD, "max_epochs": 3, "min_epochs": 3}
RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}
#: What may differ: times, hosts, paths, and how it was run.
VOLATILE = {"seconds", "git_revision", "sessions", "sha256", "run_dir", "output_dir", "scheduler"}


def study_settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """24 cells: ridge on two backbones, an MLP on one and a network from scratch, five draws of two and all four."""
    model = str(tmp_path / "model.pt")
    return {
        "backbones": {"MDM": {"path": model}, "raw": {"path": model, "initialise": "raw"}},
        "heads": {"ridge": RIDGE, "mlp": MLP, "unet": UNET}, "only": {"mlp": ["MDM"]},
        "shots": [2, 4], "draws": 5, "reference": ["MDM", "ridge"], "threads": 1, **changes,
    }  # fmt: skip


def files_of(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's files but its log, without what may differ."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
        return [plain(one) for one in value] if isinstance(value, list) else value

    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.log"]
    return {
        str(path.relative_to(folder)): plain(json.loads(path.read_text()))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in paths
    }


def assert_same_files(one: Path, other: Path) -> None:
    ours, theirs = files_of(one), files_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name


@pytest.fixture
def here() -> Iterator[Any]:
    """Two workers that are threads of this process."""
    with distributed.LocalCluster(2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        yield cluster


class Deadly(ClosedFormHead):
    """A head whose fit ends the worker, as far as Dask can tell."""

    def fit(self, task: Task, extractor: Any) -> Fitted:
        from distributed.scheduler import KilledWorker

        raise KilledWorker("fit", SimpleNamespace(address="tcp://host:1"), 3)


def test_a_study_on_workers_is_that_of_one_process(run: Run, tmp_path: Path, here: Any) -> None:
    settings = study_settings(tmp_path, draws=2)
    run("mdm_study", **settings, run_dir=str(tmp_path / "one"))
    two = tmp_path / "two"
    run("mdm_study", **settings, run_dir=str(two), scheduler=here.scheduler_address)
    assert_same_files(tmp_path / "one", two)
    before = {path: path.stat().st_mtime_ns for path in (two / "cells").iterdir()}
    next(iter(before)).unlink()  # the client was killed before it
    run("mdm_study", **settings, run_dir=str(two), scheduler=here.scheduler_address)
    assert sum(path.stat().st_mtime_ns != time_of for path, time_of in before.items()) == 1
    assert_same_files(tmp_path / "one", two)


def test_a_cell_that_kills_its_workers_costs_itself(run: Run, refused: Run, tmp_path: Path, here: Any) -> None:
    heads = {"deadly": {"_target_": "tests.segment.test_cluster.Deadly"}, "ridge": RIDGE}
    settings = study_settings(tmp_path, heads=heads, only={}, shots=[4], backbones={"raw": {
        "path": str(tmp_path / "model.pt"), "initialise": "raw"}}, reference=["raw", "ridge"],
    ) | {"run_dir": str(tmp_path / "study"), "scheduler": here.scheduler_address}  # fmt: skip
    sentence = "Every worker that was given raw__deadly__k4__draw0__seed0 died"
    refused(sentence, "mdm_study", **settings)
    kept = [path.name for path in (tmp_path / "study" / "cells").iterdir()]
    assert kept == ["raw__ridge__k4__draw0__seed0.json"]
    assert not (tmp_path / "study" / "study.csv").exists()


def test_an_inference_on_workers_is_that_of_one_process(run: Run, tmp_path: Path, pictures: Path, here: Any) -> None:
    run("mdm_segment", head=RIDGE)
    settings = {
        "segmenter": str(tmp_path / "run" / "segmenter.pt"), "write_overlays": 2, "write_probabilities": True,
        "postprocess": {"_target_": "medmdm.segment.PostProcess", "instances": "components"}, "threads": 1,
    }  # fmt: skip
    run("mdm_infer", **settings, output_dir=str(tmp_path / "one"))
    masks = run("mdm_infer", **settings, output_dir=str(tmp_path / "two"), scheduler=here.scheduler_address)
    assert [path.stem for path in masks] == [str(number) for number in range(6)]
    assert_same_files(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "boxes.csv").is_file()


@pytest.mark.parametrize(("scheduler", "sentence"), [
    ("lokal", 'scheduler must be "local", "local:4", "slurm:10"'),
    ("local:0", 'scheduler must be "local"'),
    ("tcp://127.0.0.1:9", "cannot be reached"),
])  # fmt: skip
def test_a_scheduler_that_is_none_is_refused(
    refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, sentence: str
) -> None:
    monkeypatch.setattr("medmdm.runs.cluster._PATIENCE", 1)
    run_dir = str(tmp_path / "study")
    refused(sentence, "mdm_study", **study_settings(tmp_path, run_dir=run_dir, scheduler=scheduler))


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = study_settings(tmp_path)
    run("mdm_study", **settings, run_dir=str(one))
    killed: list[int] = []
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, memory_limit=None) as cluster:

        def kill() -> None:
            while len(list((two / "cells").glob("*.json"))) < 8:
                time.sleep(0.02)
            busy: list[str] = []
            with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
                while not busy:
                    busy = [who for who, keys in client.processing().items() if any("compute" in k for k in keys)]
                (nanny,) = [nanny for nanny in cluster.workers.values() if nanny.worker_address == busy[0]]
                killed.append(nanny.pid)
                os.kill(nanny.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        run("mdm_study", **settings, run_dir=str(two), scheduler=cluster.scheduler_address)
        killer.join()
    assert killed
    assert len(list((one / "cells").iterdir())) == 24
    assert_same_files(one, two)


def test_slurm_by_its_options_in_json() -> None:
    """The job script alone: there is no Slurm here."""
    pytest.importorskip("dask_jobqueue")
    part = {
        "_target_": "dask_jobqueue.SLURMCluster", "_mode_": "callable", "queue": "gpu", "cores": 1, "processes": 1,
        "memory": "16GB", "walltime": "02:00:00", "job_extra_directives": ["--gres=gpu:1"], "n_workers": 0,
        "scheduler_options": {"dashboard_address": None},
    }  # fmt: skip
    config = {**json.loads((BUNDLES / "mdm_study.json").read_text()), "scheduler": part}
    check(config)
    parser = ConfigParser(config)
    parser.parse()
    cluster = parser.get_parsed_content("cluster")
    assert cluster.part == "study"
    assert cluster.config["scheduler"] is None
    with cluster.scheduler() as made:
        script = made.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH -t 02:00:00", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=1"):
        assert line in script.splitlines()
    assert "--nthreads 1" in script
