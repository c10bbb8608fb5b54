"""The record of what has been prepared, by which a second run changes nothing and a killed one is continued."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmdm.data.lists import LIST_NAMES
from medmdm.errors import UserError, refuse_full_disk
from medmdm.files import atomic_write, file_hash, text_hash
from medmdm.prepare.preparation import Made, SourceCase

NAME = "prepared.jsonl"
# To be raised when the same sources are to give other outputs, so that sets prepared before are made anew.
_VERSION = 1


class Journal:
    """``prepared.jsonl``: what it is a preparation of, then a line for each finished case.

    A line is added when all files of a case are written, so it never promises what is not there. When a run is killed
    its last line may be cut short; that case is made again. Cases are recognised by the hash of their sources'
    *content*, so moving, copying or unpacking them changes nothing.

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
        self._records: dict[str, dict[str, Any]] = {}
        self._continues = False  # whether lines may be added to the file as it is
        if self._path.exists():
            try:
                self._read(kind)
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{self._path} is damaged: delete {dest} and prepare again.") from error
        elif any((dest / name).exists() for name in (*LIST_NAMES, "images", "labels")):
            raise UserError(
                f"{dest} holds a data set that prepare has not written ({NAME} is missing): give another folder."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Cases that are on record."""
        return tuple(self._records)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._records[name]

    def is_done(self, case: SourceCase, fingerprint: str) -> bool:
        """Whether the case is on record with these sources, and all its files are as they were written."""
        record = self._records.get(case.name)
        return (
            record is not None
            and record["fingerprint"] == fingerprint
            and all(
                (self.dest / path).is_file() and file_hash(self.dest / path) == digest
                for path, digest in record["written"].items()
            )
        )

    def write(self, case: SourceCase, fingerprint: str, made: Made) -> None:
        """Write the files of a case and record it."""
        if not self._continues:  # before any other file, for without it the folder is not taken for ours
            self.finish(self.names)
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
        self._records[case.name] = json.loads(_line(record))

    def finish(self, names: Sequence[str]) -> None:
        """Bring the lines into the order of ``names``, so that a continued run leaves the bytes of an unbroken one."""
        lines = [self._head, *(self._records[name] for name in names)]
        write_if_changed(self._path, b"".join(_line(line) for line in lines))

    def _read(self, kind: str) -> None:
        *lines, rest = self._path.read_bytes().split(b"\n")
        records = [json.loads(line) for line in lines]
        head = records[0] if records else self._head
        if head["prepared"] != kind:
            raise UserError(f"{self.dest} holds {head['prepared']} prepared before: give another folder for {kind}.")
        if head["version"] == _VERSION:
            self._records = {record["case"]: record for record in records[1:]}
            self._continues = not rest and bool(records)


def fingerprint_of(case: SourceCase) -> str:
    """Return the hash of what a case is made from."""
    return text_hash(case.recipe + "".join(source.sha256() for source in case.sources))


def write_if_changed(path: Path, content: bytes) -> None:
    """Write atomically, unless the file has this content already."""
    if not path.is_file() or path.read_bytes() != content:
        atomic_write(path, content)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
