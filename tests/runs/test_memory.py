import platform
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "medmdm" / "runs" / "memory.py"  # by itself: a program of few allocations
PROGRAM = """
import resource, runpy, sys
assert sys.argv[1] == "without" or runpy.run_path(sys.argv[2])["keep_freed_memory"]()
def step():
    blocks = [bytearray(2_000_000) for _ in range(20)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_not_asked_for_again() -> None:
    faults = {}
    for how in ("without", "with"):
        command = [sys.executable, "-c", PROGRAM, how, str(MODULE)]
        faults[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["with"] < faults["without"] / 10


TOLD = """
import runpy, sys
peak_memory = runpy.run_path(sys.argv[1])["peak_memory"]
before = peak_memory()
kept = bytearray(b"x") * 60_000_000
print(before, peak_memory())
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere a small program is no smaller than Python says")
def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    ballast = bytearray(b"x") * 300_000_000  # this program is larger than the one it starts
    printed = subprocess.run([sys.executable, "-c", TOLD, str(MODULE)], check=True, capture_output=True, text=True)
    before, after = map(int, printed.stdout.split())
    assert 1e6 < before < 100e6 < len(ballast)
    assert 60e6 <= after - before < 80e6
