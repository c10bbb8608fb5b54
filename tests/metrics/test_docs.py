"""The examples of the pages on metrics and statistics print what the pages say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["reference/metrics.md", "statistics.md"])
def test_example(page: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), {})
    promised = re.findall(r"^print\(.*\) +# (.*)$", code, re.MULTILINE)
    assert len(promised) == code.count("print(") >= 4
    for line, promise in zip(printed.getvalue().splitlines(), promised, strict=True):
        assert line.startswith(promise.removesuffix("...")), (line, promise)
