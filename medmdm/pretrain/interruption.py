"""Ending a training by a signal, after a whole step and in all processes alike."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from ignite.engine import Engine, Events

from medmdm.errors import Terminated, show_interruption, when_interrupted
from medmdm.files import is_main_process, world_size
from medmdm.runs import processes


@contextlib.contextmanager
def terminate_on_signal(engine: Engine) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end the run after a step, the same one in all processes; a second one ends it at once.

    Of several processes each may get it more than once, from the terminal or scheduler and from torchrun, which itself
    kills them after a while: there the first one counts.
    """
    own, received = [0], [0]  # what this process got may come while the processes agree
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        own[0] = number
        if world_size() == 1:
            restore()

    def heed() -> None:
        received[0] = processes.largest(own[0])
        if received[0]:
            engine.terminate()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, stop)
    try:
        with engine.add_event_handler(Events.ITERATION_COMPLETED, heed):
            yield received
    finally:
        restore()


def end_program(number: int, step: int, last: int) -> NoReturn:
    """Say how far a training has come that a signal ended and that is saved; leave together with the other processes.

    Raises:
        SystemExit: with status 130 for SIGINT or 143 for SIGTERM.
    """
    processes.stop()
    if not is_main_process():
        sys.exit(128 + number)
    when_interrupted(f"stopped after step {step} of {last}; the same command goes on from there.")
    sys.exit(show_interruption(Terminated() if number == signal.SIGTERM else KeyboardInterrupt()))
