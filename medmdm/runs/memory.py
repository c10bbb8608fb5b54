"""A process's memory: what it took at most, and training without asking the system for the same again at every step."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed activations for the next step.

    By default glibc returns large blocks to the system as soon as they are freed, which then clears every page of
    them again for the next step: more than a tenth of a step of the demo (``docs/benchmarks.md``).

    Returns:
        Whether the setting was made; False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return kept == (1, 1)


def peak_memory() -> int | None:
    """Return how many bytes of memory the process has held at most; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose ru_maxrss begins with what the program held that started this one
        lines = (line.split() for line in status.read_text().splitlines())
        found = next((int(words[1]) for words in lines if words[0] == "VmHWM:"), None)
        if found is not None:
            return found * 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
