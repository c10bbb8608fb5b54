"""Writing files so that a killed program never leaves half of one."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

TEMPORARY_SUFFIX = ".part"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that a reader sees the old file or the whole new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is renamed; after an
    exception the temporary file is deleted and the old one stays.

    Args:
        path: where to write; missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk would keep gigabytes of it
        raise


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write ``content`` (bytes, or text as UTF-8) to ``path``, see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def save_torch(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to ``path``, atomically.

    It is given an open file because ``torch.save(path)`` puts the file's name into the archive, so that equal
    contents under two names would differ in bytes.
    """
    with atomic_file(path) as file:
        torch.save(content, file)


def save_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write ``content`` as indented JSON, atomically; NaN and infinities are refused (they are not JSON)."""
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sweep_temporaries(folder: str | os.PathLike[str], seconds: float = 0) -> None:
    """Delete what killed :func:`atomic_write` left in ``folder``.

    Args:
        folder: it is not searched below.
        seconds: age from which a file counts as left behind, where other processes may be writing.
    """
    for leftover in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if not seconds or time.time() - leftover.stat().st_mtime > seconds:
                leftover.unlink()
