"""Rendering: what a report says becomes HTML and Markdown, from the templates in ``templates/``.

Templates ``*.html.j2`` escape every text; what comes from a user's file is never marked as finished markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from medmdm.reports.definitions import METRICS, asset
from medmdm.reports.wording import counted, interval_text, metric_title, number_text, p_text

__all__ = ["environment", "flat", "render"]

_COLOURS = 5  # of classes, in the style sheet


def render(template: str, **content: Any) -> str:
    """Fill in a template.

    Args:
        template: its file's name, such as ``"page.html.j2"``.
        content: what it speaks of.

    Returns:
        The whole document; in Markdown never more than one empty line in a row.
    """
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
        "p_value": p_text,
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
    text = f"{value:+g}" if signed and value else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _one_line(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def _plain(text: Any) -> str:
    """Keep text from becoming a Markdown table's border, a line's end or a tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
