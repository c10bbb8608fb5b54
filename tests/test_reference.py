import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def test_generated_pages_are_current() -> None:
    for name, text in runpy.run_path(str(FOLDER / "config_pages.py"))["pages"]().items():
        current = (FOLDER / name).read_text(encoding="utf-8")
        assert current == text, f"{name} is not current: run python docs/reference/config_pages.py"
