import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from medmdm.pretrain.checkpoints import Checkpoints, get_random_state, set_random_state
from tests.made import refused


def test_newest_are_kept_and_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", every=1, keep=2)
    assert checkpoints.load_newest() is None
    for step in (5, 90, 100):
        checkpoints.save(step, {"step": step, "x": torch.arange(step)})
    assert [p.name for p in checkpoints.paths()] == ["step_00000090.pt", "step_00000100.pt"]
    assert checkpoints.load_newest()["step"] == 100


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_damaged_newest_is_skipped_with_a_warning(tmp_path: Path, damage, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    newest = checkpoints.paths()[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    assert checkpoints.load_newest()["step"] == 1
    assert "step_00000002.pt is damaged and is skipped" in caplog.text


def test_a_save_that_dies_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(1, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            checkpoints.save(2, {"step": 2})
    assert checkpoints.load_newest()["step"] == 1
    checkpoints.save(3, {"step": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003.pt"]  # the leftover is swept up


def test_a_save_that_is_killed_before_it_drops_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, {"step": 3})
    assert len(checkpoints.paths()) == 3
    assert checkpoints.load_newest()["step"] == 3
    assert [p.name for p in checkpoints.paths()] == ["step_00000002.pt", "step_00000003.pt"]


def test_random_states_go_round_a_file(tmp_path: Path) -> None:
    torch.save(get_random_state(), tmp_path / "s.pt")
    drawn = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    set_random_state(torch.load(tmp_path / "s.pt", weights_only=True))
    assert torch.equal(drawn[0], torch.rand(3))
    assert np.array_equal(drawn[1], np.random.rand(3))  # noqa: NPY002
    assert drawn[2] == random.random()


def test_bad_settings(tmp_path: Path) -> None:
    refused("at least 1", Checkpoints, tmp_path, every=0)
