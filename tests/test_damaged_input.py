"""A user's damaged file ends in one sentence or a listed warning, and nothing half-written stays behind."""

import re
from pathlib import Path

import pytest

from medmdm.data.files.pictures import read_image
from medmdm.errors import warn_once
from medmdm.files import TEMPORARY_SUFFIX
from tests.damage import lists, pictures, releases, volumes  # noqa: F401  they fill the table
from tests.damage.attempts import TABLE, Damage


def listing(root: Path) -> dict[str, int]:
    """Return every file and folder below ``root``, with the size of files."""
    return {
        path.relative_to(root).as_posix(): path.lstat().st_size if path.is_file() or path.is_symlink() else -1
        for path in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_damaged_input(row: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    source = tmp_path / "input"
    source.mkdir()
    doors = row.make(source)
    before = listing(source)
    assert doors
    for number, door in enumerate(doors):
        out = tmp_path / f"out{number}"
        warn_once.cache_clear()  # it warns once per process, and each door stands for one
        outcome = door(out)
        assert outcome.level == row.level, outcome
        assert any(re.search(row.words, sentence) for sentence in outcome.sentences), outcome.sentences
        assert not re.search("DOE|4711", " ".join(outcome.sentences))  # the patient of the DICOM files and lists
        if row.level == "error":
            for sentence in outcome.sentences:
                assert is_sentence(sentence), sentence
        assert listing(source) == before
        assert_nothing_half_written(out, failed=outcome.level == "error")
        assert not any(scratch.iterdir())  # where members of zip files are unpacked


def is_sentence(text: str) -> bool:
    return "\n" not in text and 20 < len(text) < 700 and not re.search(r"Traceback|Error\(|<class|object at 0x", text)


def assert_nothing_half_written(out: Path, failed: bool) -> None:
    """What a failed command wrote before it failed is whole, and does not pass for a finished data set."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.endswith(TEMPORARY_SUFFIX)]
    assert not failed or not [path for path in files if path.name in ("dataset.json", "split.json")]
    for path in files:
        if path.suffix == ".png":
            read_image(path)


def test_table_is_long_enough_and_names_differ() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 25
