"""The doors through which a user's files come in, each giving what it says to the user."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medmdm.check.sharing import quick_check
from medmdm.cli import main
from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import read_volume
from medmdm.errors import UserError, find_user_error

BUNDLE = Path(__file__).parents[2] / "bundles" / "mdm_pretrain.json"


@dataclass(frozen=True)
class Outcome:
    """What a door said: ``"error"``, ``"warning"`` or ``"nothing"``, and the sentences."""

    level: str
    sentences: tuple[str, ...]


Attempt = Callable[[Path], Outcome]  # takes a folder to write to
Make = Callable[[Path], list[Attempt]]


@dataclass(frozen=True)
class Damage:
    """A row of the table.

    Args:
        name: what is wrong.
        words: a regular expression that some sentence of every door must match.
        level: ``"error"`` or ``"warning"``.
        make: writes the input below a folder and returns the doors to try.
    """

    name: str
    words: str
    level: str
    make: Make


TABLE: list[Damage] = []


def damage(name: str, words: str, level: str = "error") -> Callable[[Make], Make]:
    """Make a row of the table from a function."""

    def add(make: Make) -> Make:
        TABLE.append(Damage(name, words, level, make))
        return make

    return add


def read(path: Path) -> Attempt:
    """Decode a picture."""
    return lambda out: _calling(lambda: read_image(path))


def read_as_volume(path: Path) -> Attempt:
    """Decode a volume."""
    return lambda out: _calling(lambda: read_volume(path))


def pretrain(folder: Path, data_list: str | None = None, **keys: Any) -> Attempt:
    """Start a pre-training with the shipped config, as far as the first step."""

    def attempt(out: Path) -> Outcome:
        parser = ConfigParser(globals=False)
        parser.read_config(str(BUNDLE))
        own = {"dataset_dir": str(folder), "data_list": data_list, "crop_size": [16, 16], "slice_cache": str(out)}
        parser.update({**own, **keys})

        def start() -> list[str]:
            warnings = quick_check(parser.get_parsed_content("selection"))
            parser.get_parsed_content("train#dataset")
            return [*parser.get_parsed_content("slices").warnings, *warnings]

        return _calling(start)

    return attempt


def check(data_list: Path) -> Attempt:
    """Run ``check``."""

    def attempt(out: Path) -> Outcome:
        status, shown, _ = _command("check", str(data_list), "--json")
        content = json.loads(shown)
        assert status == (1 if content["errors"] else 0)
        for level in ("error", "warning"):
            if content[f"{level}s"]:
                return Outcome(level, tuple(finding["message"] for finding in content[f"{level}s"]))
        return Outcome("nothing", ())

    return attempt


def prepare(kind: str, source: Path, *options: str) -> Attempt:
    """Run ``prepare``."""
    return lambda out: _command_outcome("prepare", kind, str(source), str(out), *options)


def split(data_list: Path, *options: str) -> Attempt:
    """Run ``split``."""
    return lambda out: _command_outcome("split", str(data_list), str(out / "split.json"), *options)


def _command_outcome(*arguments: str) -> Outcome:
    status, shown, complaint = _command(*arguments)
    if status == 0:
        return Outcome("warning", tuple(line for line in shown.splitlines() if line.strip()))
    assert complaint.startswith("error: ")
    assert shown == ""
    return Outcome("error", (complaint.removeprefix("error: ").removesuffix("\n"),))


def _command(*arguments: str) -> tuple[int, str, str]:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()) as complaint:
        status = main(arguments)
    return status, shown.getvalue(), complaint.getvalue()


def _calling(call: Callable[[], Any]) -> Outcome:
    """Call, and return the error or the warnings; an exception that is no user error passes."""
    with _logged() as logged:
        try:
            result = call()
        except Exception as error:
            # As `show_user_errors_as_sentences` does for MONAI's command line.
            user_error = find_user_error(error)
            if not isinstance(user_error, UserError):
                raise
            return Outcome("error", (str(user_error),))
    warnings = [*logged, *(result if isinstance(result, list) else [])]
    return Outcome("warning" if warnings else "nothing", tuple(warnings))


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the warnings that medmdm logs."""
    sentences: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentences.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logging.getLogger("medmdm").addHandler(handler)
    try:
        yield sentences
    finally:
        logging.getLogger("medmdm").removeHandler(handler)
