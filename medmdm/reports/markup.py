"""HTML and SVG made of nested calls; whatever is text is escaped, so that no file name becomes a tag."""

from __future__ import annotations

import html
from typing import Any, TypeAlias

__all__ = ["Content", "Markup", "join", "raw", "tag"]

_VOID = {"meta", "img", "br", "hr", "input", "link", "wbr"}


class Markup(str):
    """Finished markup, not to be escaped again."""

    __slots__ = ()


Content: TypeAlias = "Markup | str | int | float | None"


def raw(text: str) -> Markup:
    """Take text as finished markup; for what this package ships, never for what a user's file holds."""
    return Markup(text)


def join(*content: Content) -> Markup:
    """Put pieces one after another, each escaped unless it is markup; ``None`` is nothing."""
    return Markup("".join(_piece(piece) for piece in content))


def tag(name: str, /, *content: Content, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: of the element, such as ``"td"`` or ``"circle"``.
        content: what it holds.
        attributes: ``class_`` and ``for_`` lose the underscore at the end, others become hyphens (``data_case`` →
            ``data-case``); ``True`` is an attribute without a value, ``None`` and ``False`` are left out.

    Example:
        >>> tag("td", "a < b", class_="name")
        '<td class="name">a &lt; b</td>'
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opening = " ".join(parts)
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(*content)}</{name}>")


def _piece(piece: Content) -> str:
    if piece is None:
        return ""
    return piece if isinstance(piece, Markup) else html.escape(str(piece), quote=False)
