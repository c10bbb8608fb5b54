"""Threads that decode files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool


@contextmanager
def decoding_threads(most: int) -> Iterator[ThreadPool]:
    """Give a pool of threads, as many as there are cores at most; when the block is left, they have ended.

    Leaving a ``ThreadPool`` as a context does not wait for its threads: after an error they would still be decoding
    when the interpreter ends, and a decoder in C++ (GDCM) then aborts the program with status 134. What has not begun
    is dropped, so the wait is for one file a thread.

    Args:
        most: threads, from 1.
    """
    pool = ThreadPool(max(1, min(most, os.cpu_count() or 1)))
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()
