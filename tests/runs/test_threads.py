import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.runs import threads as module
from medmdm.runs.threads import choose, measured, recorded


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set by the environment, and the measurement says 2."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "measured", lambda: (2, "measured"))


def record(folder: Path, *threads: Any) -> Path:
    sessions = [{"hardware": {"torch_threads": count}} for count in threads]
    (folder / "run.json").write_text(json.dumps({"sessions": sessions}))
    return folder


@pytest.mark.parametrize(("speeds", "best"), [
    ({1: 100, 2: 195, 4: 380, 6: 500}, 6),
    ({1: 100, 2: 59, 4: 3, 6: 3}, 1),  # busy CPUs
    ({1: 100, 2: 105, 4: 108, 6: 109}, 1),  # ties to fewer
    ({1: 100, 2: 150, 4: 155, 6: 140}, 2),
    ({1: 100, 2: 20, 4: 300, 6: 310}, 1),  # what is much slower with two is not tried with more
])  # fmt: skip
def test_the_fastest_is_taken(speeds: dict[int, float], best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpus", lambda: 6)
    count, said = measured(lambda threads, seconds: speeds[threads])
    assert count == best
    assert said.startswith("measured, 1: 100 steps/s, 2: ")
    monkeypatch.setattr(module, "cpus", lambda: 1)
    assert measured()[0] == 1


def test_the_measurement_takes_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpus", lambda: 4)
    asked = []
    measured(lambda threads, seconds: asked.append(seconds) or 1.0)  # type: ignore[func-returns-value]
    assert sum(asked) == pytest.approx(module.SECONDS)
    assert module._speed(1, 0.01) > 0


@pytest.mark.usefixtures("free")
def test_what_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose(None, None) == choose(None, tmp_path) == torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        assert choose(None, tmp_path) == 1
        assert choose(3, tmp_path) == torch.get_num_threads() == 3
        assert choose(None, record(tmp_path, 4, 2)) == torch.get_num_threads() == 2
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert choose(3, tmp_path) == 3
        assert "threads 2 before: with 3 its last digits may differ" in caplog.text
        assert choose(None, record(tmp_path, 4096)) == 4096
        assert "This run began with threads 4096, but there are" in caplog.text


@pytest.mark.usefixtures("free")
def test_beside_a_gpu_nothing_is_measured() -> None:
    torch.set_num_threads(1)
    assert choose(None, None, on_cpu=False) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sessions": []}', '{"sessions": [{"hardware": {}}]}', None])
def test_a_record_without_the_number(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert recorded(tmp_path) is None
