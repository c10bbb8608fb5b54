"""Many machines: a run's independent pieces, cells of a study and cases of an inference, as tasks of Dask.

The process that was started stays the owner of its folder: it alone writes what the pieces share. A task is the name of
a method and its arguments; a worker opens the part of the config that has the method for itself, once, from the paths
in it, so that folders must be the same for all (a shared file system).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
import platform
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

import medmdm
from medmdm.errors import UserError, counted
from medmdm.progress import EVERY
from medmdm.runs.config import current_parser
from medmdm.runs.keys import untracked
from medmdm.runs.threads import cpus

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

_KINDS = re.compile(r"(local|slurm)(?::([1-9]\d*))?")
_PATIENCE = 30  # seconds for a scheduler to answer


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a run besides the task."""

    token: str
    config: Mapping[str, Any] = field(repr=False)
    part: str
    folder: str
    threads: int
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """Workers of Dask that open a part of this run's config and call its methods.

    Args:
        scheduler: ``"local"`` or ``"local:4"``, that many processes of this machine (as many as CPUs); ``"slurm"`` or
            ``"slurm:10"``, that many jobs by :class:`dask_jobqueue.SLURMCluster`, whose options are in Dask's
            ``jobqueue.yaml``; the address of a scheduler that runs (``"tcp://host:8786"``); or a cluster of Dask's, or
            what makes one when it is called (in a bundle a component with ``"_mode_": "callable"``).
        part: id of the part of the config whose methods are called.
        config: of the run; None for the one that is being evaluated.

    Raises:
        UserError: the scheduler is none of these.
    """

    scheduler: Any
    part: str
    config: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.scheduler, str) and not ("://" in self.scheduler or _KINDS.fullmatch(self.scheduler)):
            kinds = "local, local:4, slurm:10, or an address such as tcp://host:8786"
            raise UserError(f"scheduler is {self.scheduler!r}: give {kinds}.")
        if self.config is None:
            object.__setattr__(self, "config", _travelling(current_parser().get()))

    @contextlib.contextmanager
    def workers(self) -> Iterator[Workers]:
        """Connect to the scheduler, or start one that lives as long as the block.

        Raises:
            UserError: Dask is not installed, or the scheduler cannot be reached.
        """
        assert self.config is not None
        versions = _versions()
        job = Job(uuid.uuid4().hex, self.config, self.part, os.getcwd(), torch.get_num_threads(), versions)
        with contextlib.ExitStack() as stack:
            yield Workers(stack.enter_context(self._connected(stack)), job)

    def _connected(self, stack: contextlib.ExitStack) -> Client:
        distributed = _package("distributed")
        logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of every connection
        where = self.scheduler
        kind = _KINDS.fullmatch(where) if isinstance(where, str) else None
        if kind is not None and kind[1] == "local":
            where = distributed.LocalCluster(
                n_workers=int(kind[2] or cpus()), threads_per_worker=1, processes=True, memory_limit=None,
                dashboard_address=None,
            )  # fmt: skip
        elif kind is not None:
            where = _package("dask_jobqueue").SLURMCluster()
            where.scale(jobs=int(kind[2] or 1))
        elif callable(where):
            where = where()
        if hasattr(where, "scheduler_address"):
            stack.enter_context(where)
        try:
            client: Client = distributed.Client(where, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            what = f"the scheduler {self.scheduler} cannot be reached ({error or type(error).__name__})"
            raise UserError(f"{what}: see that it runs, and that this machine may connect to it.") from error
        return client


@dataclass
class Workers:
    """The workers of a run while it is connected to them.

    Args:
        client: of Dask's.
        job: what they need to know of the run.
    """

    client: Client
    job: Job

    def each(self, method: str, tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Call a method of the part once for each task; yield (name of the task, result) as results come.

        No worker is given a second task before it has done its first: one that dies costs that task, which Dask gives
        to another. A task that has killed more workers than Dask's ``distributed.scheduler.allowed-failures`` (3) is
        given up; the others go on.

        Args:
            method: its name.
            tasks: name → arguments, in the order in which they are begun.

        Raises:
            GivenUpError: once all others are done, naming what was given up.
            UserError: the scheduler has gone, or as the method; other exceptions of the method come as they are.
        """
        distributed = _package("distributed")
        waiting, running, given_up = list(tasks)[::-1], dict[Any, str](), list[str]()
        told = False
        while waiting or running:
            count = len(self.client.nthreads())
            if not count and not told:
                logger.info("waiting for a worker")
            told = not count
            while waiting and len(running) < max(1, count):
                name = waiting.pop()
                key = f"medmdm-{method}-{name}-{self.job.token}"
                running[self.client.submit(call, self.job, method, tasks[name], key=key, pure=False)] = name
            with self.client.as_current(), contextlib.suppress(TimeoutError, distributed.TimeoutError):
                distributed.wait(list(running), timeout=EVERY, return_when="FIRST_COMPLETED")
            for future in [one for one in running if one.done()]:
                name = running.pop(future)
                try:
                    result = future.result()
                except distributed.scheduler.KilledWorker as error:
                    logger.warning("%s is given up: %d workers died of it.", name, error.allowed_failures + 1)
                    given_up.append(name)
                except distributed.CancelledError as error:
                    raise UserError(
                        "The scheduler has gone: start it again, and the same command does the rest."
                    ) from error
                else:
                    yield name, result
        if given_up:
            raise GivenUpError(given_up, len(tasks))

    def in_order(self, method: str, tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
        """Yield the results of :meth:`each` in the order of the tasks, None of one that is given up.

        Raises:
            GivenUpError: after the last.
            UserError: as :meth:`each`.
        """
        found, results, failure = dict[str, Any](), self.each(method, tasks), None
        for name in tasks:
            while name not in found and failure is None:
                try:
                    done, found[done] = next(results)
                except GivenUpError as error:
                    failure = error
            yield found.pop(name, None)
        for _ in results:  # what was given up last is told now
            pass
        if failure is not None:
            raise failure


class GivenUpError(UserError):
    """Tasks whose workers died again and again.

    Args:
        names: of the tasks.
        total: how many tasks there were.
    """

    def __init__(self, names: Sequence[str], total: int) -> None:
        super().__init__(names, total)
        shown = ", ".join(names[:5]) + ("" if len(names) <= 5 else ", ...")
        others = counted(total - len(names), "other", "is done and kept", "are done and kept")
        advice = "look into the workers' logs, most often for memory; the same command tries again"
        self._sentence = f"Every worker that was given {shown} died: {advice}. {others}."

    def __str__(self) -> str:
        return self._sentence


_ALONE = threading.Lock()  # what tasks share (caches, random state, the folder) is not made for two threads
_OPEN: dict[str, Any] = {}


def call(job: Job, method: str, arguments: Mapping[str, Any]) -> Any:
    """Do a task, in a worker.

    Raises:
        UserError: the worker has other versions of the packages, or not the same folders.
    """
    with _ALONE, _working_in(job.folder):
        torch.set_num_threads(job.threads)
        if job.token not in _OPEN:
            _OPEN.clear()  # of another run
            _OPEN[job.token] = _opened(job)
        return getattr(_OPEN[job.token], method)(**arguments)


def _opened(job: Job) -> Any:
    if _versions() != job.versions:
        ours, theirs = (", ".join(versions) for versions in (_versions(), job.versions))
        raise UserError(f"A worker on {platform.node()} has {ours}, but the run {theirs}: install the same there.")
    set_determinism(seed=0)
    os.environ["MEDMDM_WORKER"] = "1"  # for the feature cache, into whose folder other workers write
    parser = ConfigParser(copy.deepcopy(dict(job.config)))
    parser.parse()
    return parser.get_parsed_content(job.part)


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """Read relative paths as the run's owner does."""
    before = os.getcwd()
    try:
        os.chdir(folder)
    except OSError as error:
        where = f"A worker on {platform.node()} cannot enter {folder} ({error.strerror})"
        raise UserError(f"{where}: workers need the folders of the run, on a file system that all share.") from error
    try:
        yield
    finally:
        os.chdir(before)


def _travelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what workers get of a config: without the scheduler, and without handlers, which hear of one process."""
    plain = copy.deepcopy({key: part for key, part in untracked(config).items() if key != "_meta_"})
    return {**plain, "scheduler": None, **({"handlers": []} if "handlers" in plain else {})}


def _versions() -> tuple[str, ...]:
    """Return the versions on which the bits depend."""
    return f"medmdm {medmdm.__version__}", f"torch {torch.__version__}", f"numpy {np.__version__}"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"scheduler needs {name}, which is not installed: pip install 'medmdm[cluster]'.") from error
