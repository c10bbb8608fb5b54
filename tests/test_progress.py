import logging

import pytest

import medmdm.progress as module
from medmdm.progress import Progress, followed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_after_five_seconds_then_every_fifteen(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in followed(range(20_000), "reading images"):
            clock[0] += 1 / 64
    assert caplog.messages[0] == "reading images: 320 of 20000, 5 min 08 s left"
    assert caplog.messages[1] == f"reading images: {20 * 64} of 20000, 4 min 52 s left"
    assert len(caplog.messages) == 1 + int(20_000 / 64 - 5) // 15


def test_what_is_over_soon_says_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in followed(iter("abc"), "reading", 3):
            clock[0] += 1
        for _ in followed("abc", "reading", shown=False):
            clock[0] += 60
    assert not caplog.messages


def test_slow_items_and_those_done_before(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    counter = Progress("training", 10, done=4)
    with caplog.at_level(logging.INFO):
        clock[0] = 60
        counter.tick("loss 0.5")
    assert caplog.messages == ["training: 5 of 10, loss 0.5, 5 min 00 s left"]
    assert Progress("fitting", 10).left() == "0 min 00 s"
