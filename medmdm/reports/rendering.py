"""Rendering: what a report says becomes HTML and Markdown, from the templates in ``templates/``.

Templates ``*.html.j2`` escape every text; what comes from a user's file is never marked as finished markup.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from medmdm.errors import counted
from medmdm.files import no_formula


@dataclass(frozen=True)
class Metric:
    """A score of a case, by its column in ``per_case.csv``."""

    title: str  # its name in tables
    group: str  # "pixels", "surfaces" or "objects"
    explanation: str  # one sentence
    distance: bool = False  # whether it is a distance, of which less is better, rather than a share of 1


def asset(name: str) -> str:
    """Return the text of a file that comes with the reports: style, script, schema, metrics."""
    return resources.files("medmdm.reports").joinpath(f"assets/{name}").read_text(encoding="utf-8")


_TEXTS: dict[str, dict[str, Any]] = json.loads(asset("metrics.json"))
METRICS = {key: Metric(**texts) for key, texts in _TEXTS.items()}
PER_CLASS = tuple(key for key, metric in METRICS.items() if metric.group != "objects")
COUNTS = ("tp", "fp", "fn", "tn", "n_true", "n_pred")  # pixels of a class
# What the metrics of objects count in a case, and its column: objects, not pixels.
OBJECT_COUNTS = {"n_true": "objects_true", "n_pred": "objects_pred"}
OBJECT_COUNTS |= {key: key for key in ("object_tp", "pq_tp", "pq_iou", "aji_intersection", "aji_union")}
# Masks that cost nothing, which stand beside the scores, and their columns.
BASELINES = {"all_foreground": "marking every known pixel", "mean_mask": "the mean of the labelled masks"}
BASELINE_COLUMNS = tuple(f"{name}_{key}" for name in BASELINES for key in ("dice", "iou"))


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as a CSV file's text, in which no cell is a formula to a spreadsheet."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([[no_formula(cell) for cell in row] for row in rows])
    return buffer.getvalue()


def number_text(value: float | None, distance: bool = False, signed: bool = False) -> str:
    """Return a score with four digits, a distance with two, a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    digits = 2 if distance else 4
    value = round(value, digits) or 0.0  # no sign of a zero
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval_text(interval: Sequence[float | None], distance: bool = False, signed: bool = False) -> str:
    """Return ``"0.8012 to 0.8345"``; of a score what is between 0 and 1, of a distance what is above 0."""
    low, high = interval
    if low is None or high is None:
        return "\N{EN DASH}"
    if not signed:
        low, high = max(low, 0.0), high if distance else min(high, 1.0)
    return " to ".join(number_text(bound, distance, signed) for bound in (low, high))


def difference_text(difference: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval in words."""
    interval = interval_text(difference["interval"], signed=True)
    known = f"95 % interval {interval}" if None not in difference["interval"] else "no interval"
    return f"difference {number_text(difference['difference'], signed=True)}, {known}"


def metric_title(key: str, unit: str) -> str:
    """Return the name of a metric, with the unit where it is a distance."""
    title = METRICS[key].title
    return f"{title} ({'pixels' if key == 'object_hausdorff' else unit})" if METRICS[key].distance else title


_COLOURS = 5  # of classes, in the style sheet


def render(template: str, **content: Any) -> str:
    """Return a filled-in template, such as ``"page.html.j2"``; Markdown never has two empty lines in a row."""
    text = environment().get_template(template).render(**content)
    return text if template.endswith(".html.j2") else re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def flat(content: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return nested content as names and values, ``a.b`` for what is inside."""
    if isinstance(content, Mapping) and content:
        inner = [(f"{name}.{key}" if name else str(key), value) for key, value in content.items()]
        return [fact for key, value in inner for fact in flat(value, key)]
    return [(name, content)]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates with what they may use."""
    templates = Environment(
        loader=PackageLoader("medmdm.reports"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["asset"] = lambda name: Markup(asset(name))
    templates.tests |= {"nan": math.isnan, "infinite": math.isinf}
    templates.filters |= {
        "number": number_text,
        "interval": interval_text,
        "difference": difference_text,
        "p_value": lambda p: "\N{EN DASH}" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "counted": counted,
        "title_of": metric_title,
        "metric": METRICS.__getitem__,
        "is_distance": lambda key: key in METRICS and METRICS[key].distance,
        "flat": flat,
        "one_line": _one_line,
        "plain": _plain,
        "indented_json": lambda content: json.dumps(content, indent=2, ensure_ascii=False),
        "exact": lambda value: repr(float(value)),
        "names_of_columns": lambda cases: list(dict.fromkeys(name for case in cases for name in case.columns)),
        "colour": lambda number: f"class-{(number - 1) % _COLOURS + 1}",
        "place": lambda value: f"{value:.1f}".removesuffix(".0"),
        "tick": _tick,
        "shortened": lambda text, length: text if len(text) <= length else f"{text[: length - 1]}…",
        "data_uri": _data_uri,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
    }
    return templates


def _data_uri(picture: bytes) -> Markup:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode()}")


def _tick(value: float, signed: bool = False) -> str:
    return f"{value:{'+' if signed and value else ''}g}".replace("-", "\N{MINUS SIGN}")


def _one_line(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def _plain(text: Any) -> str:
    """Keep text from becoming a Markdown table's border, a line's end, a tag, code, a link or a picture."""
    text = re.sub(r"([\\\[\]`|])", r"\\\1", " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;"))
    return re.sub(r"(?i)(?<=\w):(?=//)|(?<=www)\.", lambda found: f"&#{ord(found[0])};", text)  # what links itself
