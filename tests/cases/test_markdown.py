"""Names of cases, classes and folders stay text in the Markdown that a report or a comparison writes."""

import html
import re

import pytest

from medmdm.reports.rendering import environment

plain = environment().filters["plain"]


@pytest.mark.parametrize("name", [
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://example.org/a.png)", "http://example.org",
    "[x]: http://example.org", "\\[x](y)", "`x` ![a][b]", "<http://example.org>", "www.example.org", "a | b\n# c",
    "&lt;b&gt; &#60;", "\\\\<img src=x onerror=y>", "https://a\\[b](c)", "case_01 (2)",
])  # fmt: skip
def test_nothing_comes_alive(name: str) -> None:
    text = plain(name)
    assert not re.search(r"<|\n|://|www\.", text)
    # Each character that begins markup stands behind a backslash of its own.
    assert re.fullmatch(r"(?:[^\\\[\]`|]|\\[\\\[\]`|])*", text), text
    # What a reader sees is the name.
    assert html.unescape(re.sub(r"\\([\\\[\]`|])", r"\1", text)) == " ".join(name.split())
