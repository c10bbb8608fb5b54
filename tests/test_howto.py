"""The how-to pages keep their promises: every ``bash`` block is run, on tiny data sets made here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bundle_runs import write_backbone
from tests.data.dicom_files import write_series
from tests.prepare import layouts
from tests.written import picture, write_nifti

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
EVERY = re.compile(r"(?P<before>[^\n]*)\n\n?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(\$ )?(python|medmdm|torchrun|sbatch|srun|make|pip|huggingface-cli|hf)\b", re.MULTILINE)
MARK = re.compile(r"\*Not executed by the tests: .{8,}\.\*$")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the pages call ``$GLAS``, ``$HIPPOCAMPUS`` and so on."""
    root = tmp_path_factory.mktemp("sources")
    made = {name.upper(): layouts.MAKERS[name](root / name) for name in ("glas", "monuseg", "dsb2018")}
    made |= {"CVAT": layouts.cvat(root / "cvat"), "COCO": layouts.coco(root / "coco")}
    made["ANNOTATED_SLIDES"] = layouts.slides(root / "slides")
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
    if page.stem == "slides":
        pytest.importorskip("zarr")
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


def blocks(kind: str) -> list[pytest.param]:
    """Every block of a kind, with the line before it."""
    found = []
    for page in PAGES:
        matches = [m for m in EVERY.finditer(page.read_text(encoding="utf-8")) if m["kind"].partition(" ")[0] == kind]
        found += [pytest.param(m["text"], m["before"], id=f"{page.stem}-{n}") for n, m in enumerate(matches)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_read_or_marked(page: Path) -> None:
    """A block of commands that no test runs says so to whoever reads it, and why."""
    text = page.read_text(encoding="utf-8")
    matches = list(EVERY.finditer(text))
    assert len(matches) == sum(line.startswith("```") for line in text.splitlines()) / 2
    for match in matches:
        kind, marked = match["kind"].partition(" ")[0], MARK.search(match["before"]) is not None
        assert kind in ("bash", "json", "python", "text", "mermaid"), f"{page.name}: a block of kind {kind!r}"
        if kind == "text" and COMMAND.search(match["text"]):
            assert marked, f"{page.name}: '*Not executed by the tests: <reason>.*' is missing before\n{match['text']}"


@pytest.mark.parametrize(("text", "before"), blocks("json"))
def test_json_of_the_page_is_json(text: str, before: str) -> None:
    assert json.loads(text if text.lstrip().startswith(("{", "[")) else f"{{{text}}}")


@pytest.mark.slow
@pytest.mark.parametrize(("text", "before"), blocks("python"))
def test_python_of_the_page_runs(text: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if MARK.search(before):
        compile(text, "page", "exec")
        pytest.skip(before)
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "data" / "case_1.tif", np.zeros((20, 30)))
    volume(tmp_path / "data" / "case_2.nii.gz", np.int16)
    series = np.zeros((4, 6, 8), np.int16)
    write_series(tmp_path / "data" / "case_3_dicom", series)
    (tmp_path / "out").mkdir()
    write_backbone(tmp_path / "runs" / "mdm_pretrain" / "model.pt")
    names = {
        "mask": np.zeros((20, 30), np.uint8),
        "probabilities": np.full((2, 20, 30), 0.5, np.float32),
        "volume_mask": np.zeros((24, 32, 20), np.uint8),
        "uncertainty": np.zeros(series.shape[::-1], np.float32),
        "masks_of_slices": [],
    }
    exec(compile(text, "page", "exec"), names)


def test_pages_with_commands_are_found() -> None:
    assert {"check", "monai", "splits", "glas", "monuseg", "dsb2018", "folder", "nifti", "dicom", "ct"} <= {
        page.stem for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))
    }
