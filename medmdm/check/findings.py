"""What a check found, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medmdm.errors import counted

_SHOWN = 5  # findings of one kind on the screen


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (an error), that someone should know (a warning), or that is worth a word (an info).

    Args:
        level: ``"error"``, ``"warning"`` or ``"info"``.
        check: a word that tells kinds of findings apart, such as ``"missing-file"``.
        message: one sentence; no patient id is in it.
        files: the files concerned, as the list names them.
    """

    level: str
    check: str
    message: str
    files: tuple[str, ...] = ()

    @classmethod
    def error(cls, check: str, message: object, *files: str) -> Finding:
        """Return an error; of a sentence without its full stop, for it stands in a list."""
        return cls("error", check, str(message).removesuffix("."), files)

    @classmethod
    def warning(cls, check: str, message: object, *files: str) -> Finding:
        """Return a warning."""
        return cls("warning", check, str(message), files)


@dataclass(frozen=True)
class Row:
    """A line of the table: one section of the list.

    Args:
        section: its name.
        cases: entries.
        labels: entries with a label.
        patients: distinct patients, ``None`` where no entry has one.
        images: (channels, size, type), such as ``(3, "522x775", "uint8")``, with the number of cases.
        values: label value → share of all labelled pixels, for class labels.
        instances: objects in all labels, for instance labels.
        foreground: share of labelled pixels that are not background, ``None`` without labels.
    """

    section: str
    cases: int
    labels: int
    patients: int | None
    images: Mapping[tuple[int, str, str], int]
    values: Mapping[int, float] = field(default_factory=dict)
    instances: int | None = None
    foreground: float | None = None


@dataclass(frozen=True)
class Report:
    """The outcome of a check.

    Args:
        title: how messages name the data list.
        dataset_dir: the folder of the images.
        rows: one per section.
        findings: errors and warnings, in the order in which they were found.
    """

    title: str
    dataset_dir: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "ok": not self.errors,
            "data_list": self.title,
            "dataset_dir": self.dataset_dir,
            "sections": {
                row.section: {
                    "cases": row.cases,
                    "labels": row.labels,
                    "patients": row.patients,
                    "images": {_kind(kind): count for kind, count in row.images.items()},
                    "label_values": {str(value): share for value, share in sorted(row.values.items())},
                    "instances": row.instances,
                    "foreground": row.foreground,
                }
                for row in self.rows
            },
            "errors": [_as_json(finding) for finding in self.errors],
            "warnings": [_as_json(finding) for finding in self.warnings],
        }

    def as_text(self) -> str:
        """Return a table of the sections, then errors, then warnings; many of one kind are cut short."""
        lines = [f"{self.title}, images in {self.dataset_dir}", "", *_table(self.rows)]
        for title, findings in (("ERROR", self.errors), ("WARNING", self.warnings)):
            lines += _listed(title, findings)
        lines += ["", f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}"]
        return "\n".join(lines)


def _as_json(finding: Finding) -> dict[str, Any]:
    return {"check": finding.check, "message": finding.message, "files": list(finding.files)}


def _table(rows: Sequence[Row]) -> list[str]:
    header = ("section", "cases", "labels", "patients", "images", "foreground", "label values")
    body = [
        (
            row.section,
            str(row.cases),
            str(row.labels),
            str(row.patients or "-"),
            _images(row.images),
            "-" if row.foreground is None else f"{100 * row.foreground:.1f} %",
            _values(row),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rule = ["-" * width for width in widths]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (header, rule, *body)]


def _images(images: Mapping[tuple[int, str, str], int]) -> str:
    if len(images) <= 4:
        return ", ".join(f"{n} of {_kind(kind)}" for kind, n in Counter(images).most_common()) or "-"
    cases, sizes = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
    for (channels, _, dtype), n in images.items():
        cases[channels, dtype] += n
        sizes[channels, dtype] += 1
    most = cases.most_common(4)
    return ", ".join(f"{n} of {channels} x {dtype} in {sizes[channels, dtype]} sizes" for (channels, dtype), n in most)


def _kind(kind: tuple[int, str, str]) -> str:
    channels, size, dtype = kind
    return f"{channels} x {size} {dtype}"


def _values(row: Row) -> str:
    if row.instances is not None:
        return counted(row.instances, "object")
    shares = [f"{value}: {100 * share:.1f} %" for value, share in sorted(row.values.items())]
    return ", ".join(shares[:3]) + (f", {len(shares) - 3} more" if len(shares) > 3 else "") or "-"


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    for check in dict.fromkeys(finding.check for finding in findings):
        same = [finding for finding in findings if finding.check == check]
        lines += ["", f"{title} {check} ({len(same)})"]
        lines += [f"  {finding.message}" for finding in same[:_SHOWN]]
        if len(same) > _SHOWN:
            lines.append(f"  … and {len(same) - _SHOWN} more like these: --json lists all")
    return lines
