"""The how-to pages keep their promises: every ``bash`` block is run, on tiny data sets made here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.dicom_files import write_series
from tests.prepare import layouts
from tests.written import write_nifti

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the pages call ``$GLAS``, ``$HIPPOCAMPUS`` and so on."""
    root = tmp_path_factory.mktemp("sources")
    made = {name.upper(): layouts.MAKERS[name](root / name) for name in ("glas", "monuseg", "dsb2018")}
    made |= {"CVAT": layouts.cvat(root / "cvat"), "COCO": layouts.coco(root / "coco")}
    made["HIPPOCAMPUS"] = hippocampus(root / "hippocampus")
    made["CT"] = volume(root / "ct" / "ct.nii.gz", np.int16, -1000)
    made["DICOM"] = root / "dicom"
    write_series(made["DICOM"], np.random.default_rng(0).integers(0, 1000, (12, 24, 32)).astype(np.int16))
    return {name: str(path) for name, path in made.items()}


def hippocampus(root: Path) -> Path:
    for i in range(6):
        volume(root / "images" / f"hippocampus_{i:03}.nii.gz", np.float32)
        label = np.zeros((24, 32, 20), np.float32)
        label[8:12, 10:20, 5:15] = 1
        label[12:16, 10:20, 5:15] = 2
        write_nifti(root / "labels" / f"hippocampus_{i:03}.nii.gz", label, np.eye(4))
    return root


def volume(path: Path, dtype: type, low: int = 0) -> Path:
    values = np.random.default_rng(list(path.name.encode())).integers(low, 1000, (24, 32, 20)).astype(dtype)
    return write_nifti(path, values, np.eye(4))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_run(page: Path, sources: dict[str, str], tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if not blocks:
        pytest.skip("no bash block: its commands take paths or machines that a test has not")
    if any("prepare coco" in block for block in blocks):
        pytest.importorskip("pycocotools")
    if any("--scheduler" in block for block in blocks):
        pytest.importorskip("distributed")
    commands = tmp_path / "bin"
    commands.mkdir()
    python = commands / "python"  # not a link: through one a virtual environment is not found
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {
        **os.environ,
        **sources,
        "OUT": str(tmp_path / "out"),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),  # nothing of the user's, such as a cache, is read or written
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    script = "set -euo pipefail\n" + "\n".join(blocks)
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_pages_with_commands_are_found() -> None:
    assert {"check", "monai", "splits", "glas", "monuseg", "dsb2018", "folder", "nifti", "dicom", "ct"} <= {
        page.stem for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))
    }
