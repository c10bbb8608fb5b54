"""``run.log``: what a run says, kept in its folder; a later session of the run appends to it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO

from medmdm.errors import SHOWN
from medmdm.files import is_main_process

NAME = "run.log"


class _RunLog(logging.Handler):
    """Lines wait until the run's folder is there: a run that is refused leaves nothing."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.waiting: list[str] = []
        self.file: IO[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n"
        if self.file is None:
            self.waiting.append(line)
            return
        try:
            self.file.write(line)
            self.file.flush()
        except OSError:  # a full disk is told by what must be written
            self.file = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


_current: list[_RunLog] = []


def begin_log() -> None:
    """Take down what is logged from now on, for the run that begins."""
    while _current:
        old = _current.pop()
        for name in ("", SHOWN):
            logging.getLogger(name).removeHandler(old)
        old.close()
    own = logging.getLogger("medmdm")
    if not own.isEnabledFor(logging.INFO):  # in a program of somebody's own, whose handlers have levels too
        own.setLevel(logging.INFO)
    if is_main_process():
        _current.append(_RunLog())
        for name in ("", SHOWN):
            logging.getLogger(name).addHandler(_current[0])


def keep_log(folder: str | os.PathLike[str]) -> None:
    """Write what was taken down, and what follows, to ``run.log`` in a folder that exists."""
    for log in _current:
        if log.file is None:
            log.file = open(Path(folder) / NAME, "a", encoding="utf-8")  # noqa: SIM115 - open until the run ends
            log.file.writelines(log.waiting)
            log.file.flush()
            log.waiting.clear()
