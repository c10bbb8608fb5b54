"""Write the reference pages of the bundles' settings from their schemas: ``python docs/reference/config_pages.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medmdm.schemas import bundle_schema

PRETRAIN = """# The pre-training config

Settings of `bundles/mdm_pretrain.json`, each an override `--key value` of `monai.bundle run`. Parts (`network_def`,
`corruption`, `optimizer`, …) are dictionaries with `_target_`; reach into them with `#`, for example
`--network_def#model_channels 64`. Defaults are demo-sized; `overlays/paper.json` is the paper's recipe.

On the command line `true`, `false` and `null` mean what they mean in JSON, and `None` is `null`. Keys
that are none of these, nor an argument of the part they stand in, and values of another kind are refused before
anything is read, all at once. An override below a part that does not exist (`--optimzer#lr`) is refused by MONAI
itself, with a `KeyError` that names it; the short commands say it in a sentence. Settings marked ↻ may change when a
run goes on. Editors that read `$schema` complete and explain the keys.
"""

SEGMENT = """# The segmentation configs

Settings of `bundles/mdm_segment.json`, `mdm_evaluate.json`, `mdm_infer.json` and `mdm_study.json`, each an override
`--key value` of `monai.bundle run` (`true`, `false` and `null` mean what they mean in JSON). How to use them:
[segment](../howto/segment.md), [study](../howto/study.md). Settings marked ↻ may change when a run goes on.
"""

PAGES = {
    "pretrain_config.md": (PRETRAIN, ["mdm_pretrain"]),
    "segment_config.md": (SEGMENT, ["mdm_segment", "mdm_evaluate", "mdm_infer", "mdm_study"]),
}


def pages() -> dict[str, str]:
    """Return name -> text of the generated pages."""
    note = "\nThis page is made from `bundles/schemas/` by `python docs/reference/config_pages.py`.\n"
    made = {}
    for page, (head, bundles) in PAGES.items():
        chapters = [chapter(bundle, title=len(bundles) > 1) for bundle in bundles]
        made[page] = head + "".join(chapters) + note
    return made


def chapter(bundle: str, title: bool) -> str:
    """Return the tables of a bundle: its settings, then its parts."""
    keys = bundle_schema(bundle)["properties"]
    lines = ["", f"## `{bundle}.json`"] if title else []
    lines += ["", "| setting | default | must be | meaning |", "| --- | --- | --- | --- |"]
    lines += [row for key, part in keys.items() if not part.get("x-part") for row in setting(key, part)]
    lines += ["", "| part | what it is |", "| --- | --- |"]
    parts = {key: part for key, part in keys.items() if part.get("x-part") and key not in ("$schema", "bundle")}
    for key, part in list(parts.items()):
        parts |= {f"{key}#{name}": inner for name, inner in part.get("properties", {}).items()}
    lines += [f"| `{key}` | {part['description']} |" for key, part in parts.items()]
    return "\n".join(lines) + "\n"


def setting(key: str, part: dict[str, Any]) -> Iterator[str]:
    """Yield the row of a setting and of the settings inside it."""
    default = part.get("default")
    if isinstance(default, str) and default.startswith(("$", "@")):
        shown = "computed" if default.startswith("$") else f"`{default[1:]}`"
    else:
        shown = "" if "properties" in part else f"`{default}`" if isinstance(default, str) else json.dumps(default)
    resume = " ↻" if part.get("x-resume") else ""
    yield f"| `{key}`{resume} | {shown} | {part['title']} | {part['description']} |"
    for name, inner in part.get("properties", {}).items():
        yield from setting(f"{key}#{name}", inner)


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
