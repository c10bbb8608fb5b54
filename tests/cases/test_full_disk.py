"""A full disk ends in one sentence that names the folder, and leaves nothing half-written."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmdm import cli, files
from medmdm.errors import FullDiskError, NotWritableError, UserError, find_user_error, refuse_full_disk
from medmdm.files import atomic_write, save_json, save_torch
from tests.bundle_runs import bundle_command
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

FULL = [errno.ENOSPC, errno.EFBIG, errno.EDQUOT]


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
@pytest.mark.parametrize("write", [
    lambda path: atomic_write(path, "x"), lambda path: save_json({}, path), lambda path: save_torch({}, path),
])  # fmt: skip
def test_every_file_that_is_written_whole(
    number: int, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FullDiskError) as caught:
        write(tmp_path / "out" / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'out'} cannot be written ({os.strerror(number)}): free some")
    assert isinstance(caught.value, OSError)  # for caches that a run can do without
    assert not any((tmp_path / "out").iterdir())


def test_torch_hides_the_reason() -> None:
    for words in ("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0", "PytorchStreamWriter failed"):
        with (
            pytest.raises(FullDiskError, match=r"^runs cannot be written \(the file was cut short"),
            refuse_full_disk("runs"),
        ):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="another"), refuse_full_disk("runs"):
        raise RuntimeError("another")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR], ids=errno.errorcode.get)
def test_a_folder_that_may_not_be_written(number: int) -> None:
    sentence = r"^runs cannot be written \(.*\): choose a folder"
    with pytest.raises(NotWritableError, match=sentence), refuse_full_disk("runs"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("command", [["prepare", "folder", "{s}", "{f}/x"], ["init", "{f}/y"], ["init", "{f}"]])
def test_below_a_file(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "s").mkdir()
    Image.new("L", (20, 20), 7).save(tmp_path / "s" / "a.png")
    words = [word.format(s=tmp_path / "s", f=tmp_path / "file") for word in command]
    assert cli.main(words) == 1
    assert f"{words[-1]} cannot be written (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["~t", "~$lock", "~"])
def test_a_folder_that_begins_like_a_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "~"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    Image.new("L", (20, 20), 7).save(tmp_path / name / "a.png")
    assert cli.main(["prepare", "folder", name, "out"]) == 0


def test_wherever_it_is_found() -> None:
    error = RuntimeError("Failed to evaluate")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    assert str(find_user_error(error)).startswith("runs/x cannot be written (No space left on device)")
    error.__context__ = error.__cause__ = UserError("first")
    assert str(find_user_error(error)) == "first"


@pytest.fixture
def small_files() -> Any:
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_prepare(tmp_path: Path, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(noise).save(tmp_path / "in" / f"{name}.png")
    for size in (0, 4000):
        small_files(size)
        assert cli.main(["prepare", "folder", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
        assert "cannot be written (File too large): free some space" in capsys.readouterr().err
        assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.bundle
@pytest.mark.parametrize("size", [4_000, 300_000])
def test_segment_and_infer(size: int, run: Any, pictures: Path, tmp_path: Path, small_files: Any) -> None:  # noqa: F811
    small_files(size)
    with pytest.raises((RuntimeError, UserError)) as caught:
        run("mdm_segment")
    assert "cannot be written" in str(find_user_error(caught.value))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.bundle
@pytest.mark.parametrize("size", [2_000, 40_000, 1_000_000])
def test_pretraining_ends_in_a_sentence(size: int, tmp_path: Path, image_folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", *bundle_command(tmp_path / "run", image_folder)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit, timeout=240)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize(("names", "shown"), [
    (["runs/x/run.log"], "runs/x/run.log"), (["runs/x/.run.json.1.2.part"], "runs/x"),
    (["runs/.a.1.2.part", None, "runs/a"], "runs/a"), ([], "a file"),
])  # fmt: skip
def test_what_may_not_be_written(number: int, names: list[Any], shown: str) -> None:
    error = RuntimeError("Failed to evaluate")  # MONAI's
    error.__cause__ = OSError(number, os.strerror(number), *names)
    found = str(find_user_error(error))
    assert found.startswith(f"{shown} cannot be used ({os.strerror(number)}): check its permissions")
