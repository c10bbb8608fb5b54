from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from medmdm.memory import keep_freed_memory

pytestmark = pytest.mark.slow  # starts programs
assert sys.argv[1] == "without" or keep_freed_memory()
def step():
    blocks = [torch.ones(500_000) for _ in range(20)]  # 2 MB each
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_not_asked_for_again() -> None:
    faults = {}
    for how in ("without", "with"):
        command = [sys.executable, "-c", PROGRAM, how]
        faults[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["without"] > 10_000
    assert faults["with"] < faults["without"] / 10
