import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from medmdm.errors import UserError, show_user_error
from medmdm.runs import log as module
from medmdm.runs.log import begin_log, keep_log

logger = logging.getLogger("medmdm.somewhere")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    logger.setLevel(logging.INFO)
    yield
    begin_log()
    handler = module._current.pop()
    for name in ("", "medmdm.shown"):
        logging.getLogger(name).removeHandler(handler)


def test_lines_wait_for_the_folder_and_a_later_session_appends(tmp_path: Path) -> None:
    for session in (1, 2):
        begin_log()
        logger.info("before the folder is there, %d", session)
        keep_log(tmp_path)
        keep_log(tmp_path / "nowhere")  # one file a run
        logger.info("in the folder")
        show_user_error(UserError("this is what ended it."))
    lines = (tmp_path / "run.log").read_text().splitlines()
    said = ["in the folder", "this is what ended it."]
    assert [line.split(maxsplit=3)[-1] for line in lines] == [
        "before the folder is there, 1", *said, "before the folder is there, 2", *said,
    ]  # fmt: skip


def test_a_run_that_is_refused_leaves_no_log(tmp_path: Path) -> None:
    begin_log()
    logger.info("refused")
    begin_log()
    keep_log(tmp_path)
    assert (tmp_path / "run.log").read_text() == ""


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    begin_log()
    keep_log(tmp_path)
    assert not (tmp_path / "run.log").exists()
    monkeypatch.delenv("RANK")


def test_a_full_disk_does_not_end_a_run(tmp_path: Path) -> None:
    begin_log()
    keep_log(tmp_path)
    (handler,) = module._current
    assert handler.file is not None
    handler.file.close()
    handler.file = open("/dev/full", "w") if Path("/dev/full").exists() else None  # noqa: SIM115
    logger.info("no space")
    assert handler.file is None
