"""The documentation site: built from docs/ without a warning, and it needs nothing from the network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(https?:)?//""")


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is made of."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("docs", "medmdm"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(file, root)
    return root


@pytest.mark.slow
def test_site_is_built_and_loads_nothing_from_elsewhere(copy: Path, tmp_path: Path) -> None:
    page = copy / "docs" / "howto" / "new_page.md"  # needs no line anywhere
    page.write_text("# New\n\n[link](running.md) and [home](../../README.md)\n", encoding="utf-8")
    done = build(copy, tmp_path / "site")
    page.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page for page in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "security.html", "howto/segment.html", "reference/python/heads.html"} <= pages.keys()
    for name, page in pages.items():
        found = LOADED.search(re.sub(r'<link rel="canonical"[^>]*>', "", page.read_text(encoding="utf-8")))
        assert found is None, f"{name}: {found}"
    heads = pages["reference/python/heads.html"].read_text(encoding="utf-8")
    assert "FromScratch" in heads
    assert ":class:" not in heads
    assert 'href="../index.html"' in pages["howto/new_page.html"].read_text(encoding="utf-8")


@pytest.mark.slow
def test_broken_links_fail_and_are_all_named(copy: Path, tmp_path: Path) -> None:
    page = copy / "docs" / "howto" / "wrong.md"
    links = ("nowhere.md", "running.md#nowhere", "../../bundles/mdm_pretrain.json")
    page.write_text("# Wrong\n\n" + "\n\n".join(f"[link]({link})" for link in links), encoding="utf-8")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING") and "wrong.md" in line]
    for link in links:
        assert any(link in line for line in warnings), (link, done.stderr)


def test_links_between_docs_and_the_top_of_the_repository_work_on_github() -> None:
    """Every relative link of a page names a file that is there, relative to where GitHub shows the page."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
