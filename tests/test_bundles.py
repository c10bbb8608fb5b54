"""What holds for all bundles and overlays, and for the versions that the repository's files state."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

import medmdm
from tests.bundle_runs import BUNDLES, OVERLAYS, REPOSITORY

SCHEMAS = BUNDLES / "schemas"
BUNDLE_FILES = sorted(BUNDLES.glob("mdm_*.json"))
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="bundles/schemas does not exist")


def keys(part: Any) -> Iterator[str]:
    """Yield every key of nested dicts and lists."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield key
            yield from keys(value)
    elif isinstance(part, list):
        for value in part:
            yield from keys(value)


def test_versions_agree() -> None:
    metadata = json.loads((BUNDLES / "metadata.json").read_text())
    citation = re.search(r"^version: (\S+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+) ", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation
    assert newest
    assert {metadata["version"], next(iter(metadata["changelog"])), citation[1], newest[1]} == {medmdm.__version__}


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.json")), ids=lambda p: p.stem)
def test_every_overlay_changes_what_it_says(path: Path) -> None:
    bundle = BUNDLES / ("mdm_study.json" if path.stem.endswith("_study") else "mdm_pretrain.json")
    before = ConfigParser.load_config_files([str(bundle)])
    after = ConfigParser(ConfigParser.load_config_files([str(bundle), str(path)]))
    after.parse()
    base = ConfigParser(before)
    overlay = json.loads(path.read_text())
    assert overlay
    same = [key for key in overlay if key in base and base[key] == after[key]]
    assert not same, f"{path.name} sets what {bundle.name} says already"


@needs_schemas
@pytest.mark.parametrize("path", BUNDLE_FILES, ids=lambda p: p.stem)
def test_no_key_of_a_bundle_holds_a_config_of_another(path: Path) -> None:
    assert not [key for key in keys(json.loads(path.read_text())) if key.endswith("_config")]
