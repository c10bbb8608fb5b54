"""The script that plays damage and faults, few of each kind."""

import json

import pytest

from tests.bundle_runs import REPOSITORY, run_python

COUNTS = ("differences", "silent", "tracebacks", "leftovers")


@pytest.mark.slow
@pytest.mark.bundle
def test_nothing_is_lost_and_nothing_silent(tmp_path) -> None:
    done = run_python(str(REPOSITORY / "benchmarks" / "faults.py"), "--quick", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert len(found) == 7
    for row in found.values():
        assert {name: row[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0)
        assert row["tried"] >= 2
