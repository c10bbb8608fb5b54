"""The summary at the end of a preparation, as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

__all__ = ["summary"]

_MAX_NOTES = 40


def summary(rows: Sequence[tuple[str, Mapping[str, Any]]], labels: Mapping[str, int], notes: Sequence[str]) -> str:
    """Return the table, the classes and the notes.

    Args:
        rows: of each case the row that it counts in and its facts (see ``Made``).
        labels: name and value of each class.
        notes: sentences for the end, in order.
    """
    names = list(dict.fromkeys(row for row, _ in rows))
    groups = {name: [facts for row, facts in rows if row == name] for name in names}
    if len(names) > 1:
        groups["all"] = [facts for _, facts in rows]
    table = pd.DataFrame([_row(name, group) for name, group in groups.items()]).dropna(axis="columns", how="all")
    if "objects" in table:
        table["objects"] = table["objects"].astype("Int64")
    text = table.to_string(index=False, na_rep="-")
    lines = [line.rstrip() for line in text.splitlines()]
    pixels = _sum(facts["pixels"] for _, facts in rows if "pixels" in facts)
    if pixels:
        lines += ["", "classes: " + ", ".join(_class(name, value, pixels) for name, value in labels.items())]
    outlined = [facts for _, facts in rows if "regions" in facts]
    if outlined:
        regions, objects = (sum(facts[key] for facts in outlined) for key in ("regions", "objects"))
        lines.append(f"outlines: {regions} regions in {len(outlined)} files became {objects} objects")
    if notes:
        lines += ["", "notes:", *(f"- {note}" for note in notes[:_MAX_NOTES])]
    if len(notes) > _MAX_NOTES:
        lines.append(f"- and {len(notes) - _MAX_NOTES} more, in prepared.jsonl")
    return "\n".join(lines)


def _row(name: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pixels = _sum(facts["pixels"] for facts in group if "pixels" in facts)
    return {
        "split": name,
        "images": len(group),
        "labels": sum("pixels" in facts for facts in group),
        "objects": _total(facts.get("objects") for facts in group),
        "size": _sizes(["x".join(map(str, facts["shape"])) for facts in group]),
        "foreground": f"{1 - pixels['0'] / pixels.total():.1%}" if pixels else None,
    }


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _sizes(sizes: Sequence[str]) -> str:
    """Return the commonest size (rows x columns) and how many images have others."""
    (commonest, number), *others = Counter(sizes).most_common()
    return f"{commonest}" + (f", {len(sizes) - number} in {len(others)} others" if others else "")


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _class(name: str, value: int, pixels: Counter[str]) -> str:
    return f"{value} {name} {pixels[str(value)] / pixels.total():.1%}"
