import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def test_generated_pages_are_current() -> None:
    for name, text in runpy.run_path(str(FOLDER / "config_pages.py"))["pages"]().items():
        current = (FOLDER / name).read_text(encoding="utf-8")
        assert current == text, f"{name} is not current: run python docs/reference/config_pages.py"


def test_every_overlay_is_listed() -> None:
    page = (FOLDER / "overlays.md").read_text(encoding="utf-8")
    overlays = [path.name for path in (FOLDER.parents[1] / "bundles" / "overlays").glob("*.json")]
    assert overlays
    assert not [name for name in overlays if f"`{name}`" not in page]
