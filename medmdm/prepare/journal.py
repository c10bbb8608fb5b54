"""The record of what has been prepared, by which a second run changes nothing and a killed one is continued."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medmdm.data.lists import LIST_NAMES
from medmdm.errors import UserError, refuse_full_disk
from medmdm.files import atomic_write, file_hash
from medmdm.intact import with_digest, without_digest
from medmdm.prepare.preparation import Made, SourceCase

NAME = "prepared.jsonl"
# To be raised when the same sources are to give other outputs, so that sets prepared before are made anew.
_VERSION = 1


class Journal:
    """``prepared.jsonl``: what it is a preparation of, then a line for each finished case.

    A line is added when all files of a case are written, so it never promises what is not there. When a run is killed
    its last line may be cut short; that case is made again. Cases are recognised by the hash of their sources'
    *content*, so moving, copying or unpacking them changes nothing. Each line carries its digest; those of earlier
    versions have none.

    Args:
        dest: folder that is written to.
        kind: what is prepared there.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, dest: Path, kind: str) -> None:
        self.dest = dest
        self._path = dest / NAME
        self._head = {"prepared": kind, "version": _VERSION}
        self.records: dict[str, dict[str, Any]] = {}  # by the name of the case
        self._continues = False  # whether lines may be added to the file as it is
        if self._path.exists():
            *lines, rest = self._path.read_bytes().split(b"\n")
            try:
                head, *records = [_content(line) for line in lines] or [self._head]
                if head["prepared"] != kind:
                    found = f"{dest} holds {head['prepared']} prepared before"
                    raise UserError(f"{found}: give another folder for {kind}.")
                if head["version"] == _VERSION:
                    self.records = {record["case"]: record for record in records}
                    self._continues = not rest and bool(lines)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{self._path} is damaged: delete {dest} and prepare again.") from error
        elif any((dest / name).exists() for name in (*LIST_NAMES, "images", "labels")):
            problem = f"{dest} holds a data set that prepare has not written ({NAME} is missing)"
            raise UserError(f"{problem}: give another folder.")

    def is_done(self, case: SourceCase, fingerprint: str) -> bool:
        """Whether the case is on record with these sources, and all its files are as they were written."""
        record = self.records.get(case.name)
        if record is None or record["fingerprint"] != fingerprint:
            return False
        written = {self.dest / path: digest for path, digest in record["written"].items()}
        return all(path.is_file() and file_hash(path) == digest for path, digest in written.items())

    def write(self, case: SourceCase, fingerprint: str, made: Made) -> None:
        """Write the files of a case and record it."""
        if not self._continues:  # before any other file, for without it the folder is not taken for ours
            self.finish(self.records)
            self._continues = True
        for path, content in made.files.values():
            write_if_changed(self.dest / path, content)
        record = {
            "case": case.name,
            "fingerprint": fingerprint,
            "files": {key: path for key, (path, _) in made.files.items()},
            "written": {path: hashlib.sha256(content).hexdigest() for path, content in made.files.values()},
            "facts": dict(made.facts),
            "columns": dict(made.columns),
            "notes": list(made.notes),
        }
        with refuse_full_disk(self.dest), open(self._path, "ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[case.name] = _content(_line(record))

    def finish(self, names: Iterable[str]) -> None:
        """Bring the lines into the order of ``names``, so that a continued run leaves the bytes of an unbroken one."""
        lines = [self._head, *(self.records[name] for name in names)]
        write_if_changed(self._path, b"".join(_line(line) for line in lines))


def write_if_changed(path: Path, content: bytes) -> None:
    """Write atomically, unless the file has this content already."""
    if not path.is_file() or path.read_bytes() != content:
        atomic_write(path, content)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(with_digest(record), allow_nan=False).encode() + b"\n"


def _content(line: bytes) -> dict[str, Any]:
    found = without_digest(json.loads(line))
    if found is None:
        raise ValueError("it has changed since it was written")
    return found
