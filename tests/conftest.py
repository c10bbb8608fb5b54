"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of values measured on the method's published program."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of restored public data sets; tests that need it are skipped where it is not given."""
    folder = os.environ.get("MEDMDM_TEST_DATA")
    if not folder:
        pytest.skip("MEDMDM_TEST_DATA is not set: no real data sets to test on")
    return Path(folder)
