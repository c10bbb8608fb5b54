"""One process writes to a folder; one that was killed leaves it free."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medmdm import cli
from medmdm.files import claim
from tests.bundle_runs import bundle_command, run_python
from tests.made import refused

HOLD = """
import os, sys, time
from medmdm.files import claim
claim(sys.argv[1])
if len(sys.argv) > 2 and os.fork():  # the other, as a loader's worker, says when it is there
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "held"
    folder.mkdir()
    process = holder(folder)
    yield folder
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_second_is_told(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = held.parent / "link"
    link.symlink_to(held)
    for name in (held, link, held.parent / "x" / ".." / "held"):
        (held.parent / "x").mkdir(exist_ok=True)
        refused("another process is writing to .*: wait until it ends", claim, name)
    assert not any(held.iterdir())
    monkeypatch.setenv("RANK", "1")  # the main process of a torchrun claims for all
    claim(held)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("fork",)])
def test_a_killed_one_leaves_it_free(more: tuple[str, ...], tmp_path: Path) -> None:
    process = holder(tmp_path, *more)
    refused("another process is writing to", claim, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        claim(tmp_path)
        claim(tmp_path)  # of this process already
    finally:
        if more:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    claim(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_prepare(held: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "folder", str(image_folder), str(held)]) == 1
    assert f"another process is writing to {held}" in capsys.readouterr().err
    assert not any(held.iterdir())


@pytest.mark.slow
@pytest.mark.bundle
@pytest.mark.parametrize(("bundle", "key"), [
    ("mdm_pretrain", "run_dir"), ("mdm_segment", "run_dir"), ("mdm_study", "run_dir"), ("mdm_evaluate", "run_dir"),
    ("mdm_infer", "output_dir"),
])  # fmt: skip
def test_bundles(bundle: str, key: str, held: Path, image_folder: Path) -> None:
    command = bundle_command(held, image_folder)
    if bundle != "mdm_pretrain":
        config = command[2].replace("mdm_pretrain", bundle)
        command = ["run", "--config_file", config, "--dataset_dir", str(image_folder), f"--{key}", str(held)]
    done = run_python("-m", "monai.bundle", *command, cwd=held.parent, code=1)
    assert done.stderr.splitlines()[-1].startswith(f"error: another process is writing to {held}")
    assert "Traceback" not in done.stderr
    assert not any(held.iterdir())
