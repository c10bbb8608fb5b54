"""Files that are read back are what was written, or say so."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.errors import UserError
from medmdm.files import save_torch
from medmdm.intact import DamagedFileError, file_checksum, load_record, load_torch, save_record
from tests.damage.flips import equal, flipped

CONTENT = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}, "plan": {"steps": 3}}


@pytest.mark.slow
def test_every_byte_of_an_archive(tmp_path: Path) -> None:
    """Archives are small: no place in one is left out, headers, lists of parts and padding included."""
    path, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    save_torch(CONTENT, path)
    whole, rng = path.read_bytes(), random.Random(0)
    found = {"equal": 0, "damaged": 0}
    for place in range(len(whole)):
        for bits in {1 << rng.randrange(8), 255} if place % 4 == 0 else {1 << rng.randrange(8)}:
            damaged.write_bytes(flipped(whole, place, bits))
            try:
                content: Any = load_torch(damaged)
            except DamagedFileError as error:
                content = str(error)
            assert str(damaged) in content if isinstance(content, str) else equal(content, CONTENT), place
            found["damaged" if isinstance(content, str) else "equal"] += 1
    assert min(found.values()) > 200


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA error: device-side assert triggered"),
    PermissionError(13, "Permission denied"),
    OSError(5, "Input/output error"),
    pickle.UnpicklingError("Weights only load failed."),
])  # fmt: skip
def test_other_failures_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    save_torch(CONTENT, tmp_path / "a.pt")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=r"a\.pt") as caught:
        load_torch(tmp_path / "a.pt")
    assert not isinstance(caught.value, DamagedFileError)


def test_files_without_checksums_load(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        save_torch(CONTENT, tmp_path / "switched_off.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pt", "switched_off.pt"):
        assert equal(load_torch(tmp_path / name), CONTENT)
    assert load_torch(tmp_path / "old.pt", "meta")["model"]["a"].is_meta
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "none.pt")


def test_records_say_when_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"b": [1, 2.5, None], "a": {"x": "ü", "y": True}}
    save_record(content, path)
    assert load_record(path) == content
    text = path.read_text()
    for old, new in (("2.5", "2.6"), ("true", "false"), ('"x"', '"z"'), ("sha256", "sha257")):
        path.write_text(text.replace(old, new))
        with pytest.raises(DamagedFileError, match="has changed since it was written"):
            load_record(path)
    path.write_text('{"a": 1}')  # of version 0.1
    assert load_record(path) == {"a": 1}
    for broken in (b"", b"{", b"[1]", b"\xff{}", b"[" * 100_000):
        path.write_bytes(broken)
        with pytest.raises(DamagedFileError, match=r"a\.json"):
            load_record(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    save_record({}, tmp_path / "a.json")
    save_torch(CONTENT, tmp_path / "a.pt")
    for name, load in (("a.json", load_record), ("a.pt", load_torch)):
        (tmp_path / name).chmod(0)
        with pytest.raises(UserError, match="Permission denied") as caught:
            load(tmp_path / name)
        assert not isinstance(caught.value, DamagedFileError)


def test_checksum_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456789")
    assert file_checksum(tmp_path / "a") == 0xCBF43926  # the check value of CRC-32
