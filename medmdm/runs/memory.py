"""Training on a CPU without asking the system for the same memory again at every step."""

from __future__ import annotations

import ctypes
import platform

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
