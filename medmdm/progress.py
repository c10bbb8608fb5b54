"""How far a long step has come and what is left of it: a line of the log now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)

FIRST_LINE, EVERY = 5.0, 15.0  # seconds
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Return a number of seconds in words: "5 min 07 s", "2 h 01 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


class Progress:
    """Log ``"<what>: <done> of <total>, <time> left"`` five seconds after the start, then every fifteen.

    A step that is over sooner says nothing.

    Args:
        what: is done, such as ``"reading images"``.
        total: how many there are.
        done: how many of them were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.first = what, total, done, done
        self.started = time.perf_counter()
        self.next_line = self.started + FIRST_LINE

    def tick(self, note: str = "") -> str | None:
        """Count one; return the line that was logged, if one was due, with ``note`` in it."""
        self.done += 1
        now = time.perf_counter()
        if now < self.next_line:
            return None
        self.next_line = now + EVERY
        line = f"{self.what}: {self.done} of {self.total}{note and f', {note}'}, {self.left()} left"
        logger.info(line)
        return line

    def left(self) -> str:
        """Return the time left in words, by the mean time of what was done."""
        each = (time.perf_counter() - self.started) / max(self.done - self.first, 1)
        return duration(each * max(self.total - self.done, 0))


def followed(items: Iterable[Item], what: str, total: int | None = None, shown: bool = True) -> Iterator[Item]:
    """Yield the items, and log how far it has come; see :class:`Progress`.

    Args:
        items: are worked on one after the other.
        what: is done to them.
        total: how many there are, for items that do not say it themselves.
        shown: False logs nothing.
    """
    counter = Progress(what, len(items) if total is None and isinstance(items, Sized) else total or 0)
    for item in items:
        yield item
        if shown:
            counter.tick()
