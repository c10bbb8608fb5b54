"""The reference pages name every setting of the bundles, and none that does not exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    "pretrain_config.md": ["mdm_pretrain"],
    "segment_config.md": ["mdm_segment", "mdm_evaluate", "mdm_infer", "mdm_study"],
}
# Of the runner or of several processes.
NOT_SETTINGS = {"bundle", "bundle_root", "imports", "initialize", "run", "finalize", "free_names", "rank", "world_size"}
# Parts that are lists, or are made of parts.
PARTS = {"train", "load", "augment", "scale", "stain", "preview_cut"}


def settings(bundle: str) -> set[str]:
    """What comes before the parts that are made of it."""
    config = json.loads((ROOT / "bundles" / f"{bundle}.json").read_text())
    parts = {key for key, value in config.items() if isinstance(value, dict) and "_target_" in value}
    made = {key for key, value in config.items() if isinstance(value, str) and value.startswith("$")}
    return set(config) - parts - made - NOT_SETTINGS - PARTS


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_has_its_line(page: str) -> None:
    text = (ROOT / "docs" / "reference" / page).read_text()
    named = set(re.findall(r"`(\w+)`", text))
    for bundle in PAGES[page]:
        assert settings(bundle) - named == set(), bundle


@pytest.mark.parametrize("page", PAGES)
def test_no_line_for_a_setting_that_is_gone(page: str) -> None:
    text = (ROOT / "docs" / "reference" / page).read_text()
    keys = set().union(*(json.loads((ROOT / "bundles" / f"{b}.json").read_text()) for b in PAGES[page]))
    for line in text.splitlines():
        if line.startswith("| `"):
            first = re.findall(r"`(\w+)`", line.split("|")[1])
            assert first
            assert set(first) <= keys, line
