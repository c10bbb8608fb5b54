"""What the site adds to the pages in docs/: a home page, the pages at the top of the repository, the Python reference.

MkDocs calls these functions while it builds (``hooks`` in mkdocs.yml). Files are named relative to where GitHub shows
them, so that each link works there and on the site.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
log = logging.getLogger("mkdocs.hooks.site")
#: File at the top of the repository -> page of the site.
TOP = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
#: The rooms of the reference, in the order of the method.
ROOMS = (
    "data", "corruption", "objectives", "pretrain", "backbones", "heads", "segment", "metrics", "stats", "reports",
    "artifacts", "runs", "prepare", "check",
)  # fmt: skip
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_config(config: Any) -> Any:
    """Make the navigation: folders are listed as they are found, so that a new page needs no line anywhere."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")  # as GitHub names headings
    first = [
        "howto/index.md",
        "howto/demo.md",
        "howto/running.md",
        "howto/doctor.md",
        "howto/pretrain.md",
        "howto/segment.md",
        "howto/study.md",
        "howto/report.md",
    ]
    howto = _pages("howto")
    config.nav = [
        {"Home": "index.md"},
        {"Tutorial": ["tutorial.md", *_pages("notebooks")]},
        {"How to": [*first, *(page for page in howto if page not in first)]},
        {"Reference": [*_pages("reference"), {"Python": [f"reference/python/{room}.md" for room in ROOMS]}]},
        {"Explanation": ["explanation.md", "statistics.md", "architecture.md", "security.md"]},
        {"Results": ["results.md", "benchmarks.md"]},
        {"Project": ["contributing.md", "changelog.md"]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no file in docs/."""
    for source, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for room in ROOMS:
        files.append(File.generated(config, f"reference/python/{room}.md", content=_reference(room)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between docs/ and the top of the repository into links between pages."""
    own = page.file.src_uri
    source = next((name for name, made in TOP.items() if made == own), f"docs/{own}")

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = TOP.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None:
            log.warning("%s links to %s, which is no page of the site: name the file in code instead", source, target)
            return match[0]
        return before + posixpath.relpath(there, posixpath.dirname(own) or ".") + after

    return _LINK.sub(moved, markdown)


def _pages(folder: str) -> list[str]:
    return [f"{folder}/{path.name}" for path in sorted((ROOT / "docs" / folder).glob("*.md"))]


def _reference(room: str) -> str:
    """Return the page of a package: its docstring, then what it exports, by name."""
    tree = ast.parse((ROOT / "medmdm" / room / "__init__.py").read_text(encoding="utf-8"))
    exported = next(
        (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
         and getattr(node.targets[0], "id", "") == "__all__"), [],
    )  # fmt: skip
    parts = [f"# medmdm.{room}", ast.get_docstring(tree) or ""]
    parts[1] = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", parts[1]).replace("``", "`")
    return "\n\n".join([*parts, *(f"::: medmdm.{room}.{name}" for name in exported)]) + "\n"
